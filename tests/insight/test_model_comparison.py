"""Comparisons of named networks: counts as elsewhere, speeds measured once and kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from skipnets.duration import format_duration
from skipnets.errors import UserError
from skipnets.insight import compare_models, model_comparison, summarize, training_memory


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(model_comparison, "_SECONDS", 0.0)


def test_rows_are_what_the_other_commands_say() -> None:
    seen: list[tuple[str, int, int]] = []
    found = compare_models(
        ["resnet20", "resnet8_w16"], batch_size=2, progress=lambda *about: seen.append(about)
    )
    assert seen == [("resnet20", 0, 2), ("resnet8_w16", 1, 2)]
    for row in found.models:
        totals = summarize(row.name).totals
        assert (row.parameters, row.macs) == (totals.parameters, totals.macs)
        assert row.images_per_second > 0
        assert (row.top1, row.source, row.weights) == (None, "", "")
    assert "resnet8_w16" in str(found)
    assert found.to_dict()["models"][0]["name"] == "resnet20"


def test_what_was_measured_before_is_no_part_of_a_row_s_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    left_behind: list[bytes] = []

    def measured(*_: object) -> float:
        left_behind.append(b"x" * (64 << 20))
        return 1.0

    monkeypatch.setattr(model_comparison, "_images_per_second", measured)
    found = compare_models(["resnet20", "resnet18", "resnet8_w16"], batch_size=2)
    programs = {
        row.training_bytes - training_memory(row.name, batch_size=2, program=0).peak for row in found.models
    }
    assert len(left_behind) == 3
    assert len(programs) == 1
    assert programs.pop() > 64 << 20


def test_speeds_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before = compare_models(["resnet8_w16"], batch_size=1)
    monkeypatch.setattr(model_comparison, "build_model", lambda _config: pytest.fail("measured again"))
    after = compare_models(["resnet8_w16"], batch_size=1)
    assert after.models[0].images_per_second == before.models[0].images_per_second


def test_the_most_accurate_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_comparison, "_images_per_second", lambda *_: 1.0)
    found = compare_models(["resnet20", "resnet18", "resnet50", "rdnet_tiny"], batch_size=1)
    assert [row.name for row in found.models] == ["rdnet_tiny", "resnet50", "resnet18", "resnet20"]
    assert found.models[0].source == "github.com/naver-ai/rdnet"


def test_impossible_batches_are_refused() -> None:
    with pytest.raises(UserError, match=r"^batch_size=0: must be at least 1"):
        compare_models(["resnet20"], batch_size=0)


def test_how_much_is_to_be_measured_is_said_before(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "skipnets")
    compare_models(["resnet20"], batch_size=1)
    assert not caplog.messages
    monkeypatch.setattr(model_comparison, "_SECONDS", 2.0)
    monkeypatch.setattr(model_comparison, "_images_per_second", lambda *_: 1.0)
    compare_models(["resnet20", "resnet8_w16", "resnet32", "resnet44"], batch_size=1)
    first, *others = (summarize(name).totals.macs for name in ("resnet8_w16", "resnet32", "resnet44"))
    # An image takes resnet8_w16 1 s. After a first one there are three, or what fits into 2 s.
    seconds = sum(each / first + max(3 * each / first, 2.0) for each in others)
    assert caplog.messages == [
        "measuring 3 of 4 networks, each for at least 2 s, and keeping what is measured",
        f"the other 2 will take about {format_duration(seconds)}",
    ]
