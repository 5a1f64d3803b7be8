"""Predictions as they are shown and as columns of a table."""

from __future__ import annotations

from skipnets.prediction import Prediction, RegressionPrediction, number_columns, uncertainty_columns


def test_a_prediction_shows_its_ranking_or_why_it_failed() -> None:
    shown = str(Prediction(source="[3]", label="a", probability=0.9, ranking=(("a", 0.9), ("b", 0.1))))
    assert [line.split() for line in shown.splitlines()[1:]] == [["[3]", "a", "90.0%"], ["b", "10.0%"]]
    failed = Prediction(source="<b>.jpg", error="not an image")
    assert "failed: not an image" in str(failed)
    assert "&lt;b&gt;.jpg" in failed._repr_html_()


def test_columns_of_uncertainty_are_those_that_were_asked_for() -> None:
    rows = [
        Prediction(source="a", prediction_set=("x", "y"), p_value=0.01, rejected=True),
        Prediction(source="b", prediction_set=(), p_value=0.5, rejected=False),
        Prediction(source="c", error="not an image"),
    ]
    assert uncertainty_columns(rows, coverage=False, reject=False) == {}
    assert uncertainty_columns(rows, coverage=True, reject=False) == {"set": ["x|y", "", None]}
    assert uncertainty_columns(rows, coverage=False, reject=True) == {
        "p_value": [0.01, 0.5, None],
        "rejected": [True, False, None],
    }


def test_columns_of_numbers_hold_limits_and_no_name_is_taken_twice() -> None:
    rows = [
        RegressionPrediction(
            source="a",
            values=(("age", 41.5), ("error", 2.0)),
            intervals=(("age", 38.25, 44.75), ("error", 1, 3)),
        ),
        Prediction(source="b", error="not an image"),
    ]
    assert number_columns(rows, ["age", "error"], coverage=True) == {
        "age": [41.5, None],
        "low:age": [38.25, None],
        "high:age": [44.75, None],
        "p:error": [2.0, None],
        "low:error": [1, None],
        "high:error": [3, None],
    }
    several = [RegressionPrediction(source="a", values=(("p_value", 1.0), ("p:p_value", 2.0)))]
    assert number_columns(several, ["p_value", "p:p_value"]) == {"p:p_value": [1.0], "p:p:p_value": [2.0]}
    assert (rows[0].value, rows[0].text("age")) == (41.5, "41.5 (38.25 to 44.75)")  # type: ignore[attr-defined]
    assert RegressionPrediction(source="b").value is None
