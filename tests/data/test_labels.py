"""Class names that make a dataset doubtful."""

from __future__ import annotations

import pytest

from skipnets.data.labels import check_group_names, check_labels, spellings
from skipnets.data.listing import Entry, Listing
from skipnets.errors import UserError


def listing(*labels: tuple[str, str]) -> Listing:
    """One image of each label and split."""
    entries = [Entry(f"{index}.png", label, split) for index, (label, split) in enumerate(labels)]
    return Listing(entries=entries, classes=sorted({label for label, _ in labels}))


@pytest.mark.parametrize("names", [("Cat", "cat"), ("jack-russell", "jack russell"), ("Señal", "senal")])
def test_one_class_in_two_spellings(names: tuple[str, str]) -> None:
    found = listing(*[(name, "") for name in names])
    check_labels(found)
    [warning] = found.warnings
    assert "differ only in spelling" in warning
    assert all(f'"{name}"' in warning for name in names)
    with pytest.raises(UserError, match="differ only in spelling"):
        check_labels(listing((names[0], "train"), (names[1], "test")))
    lenient = listing((names[0], "train"), (names[1], "test"))
    check_labels(lenient, strict=False)
    assert any("differ only in spelling; are they one class?" in warning for warning in lenient.warnings)
    assert list(spellings(["cow", *names, "cattle"])) == [sorted(names)]


def test_different_names_are_left_alone() -> None:
    found = listing(("cat", ""), ("car", ""), ("ca", ""), ("5", ""), ("50", ""))
    check_labels(found)
    assert found.warnings == []


def test_labels_that_tables_write_for_missing_ones() -> None:
    found = listing(("cat", ""), ("NaN", ""), ("none", ""))
    check_labels(found)
    [warning] = found.warnings
    assert warning.startswith('classes "NaN": as tables name a value that is missing')
    several = Listing(classes=["cat", "nan"], multi_label=True)
    check_labels(several)
    assert several.warnings[0].startswith('labels "nan": as tables')


def test_classes_that_a_split_lacks() -> None:
    found = listing(("a", "train"), ("b", "train"), ("a", "test"), ("c", "test"))
    check_labels(found)
    assert found.warnings == [
        'classes that are not in train, so every image of them counts as wrong: "c"',
        'classes that are in train but not in test: "b"',
    ]


def test_several_labels_in_one() -> None:
    found = listing(("cat", ""), ("dog", ""), ("cat,dog", ""), ("salt & pepper", ""))
    check_labels(found)
    [warning] = found.warnings
    assert '"cat,dog"' in warning
    assert "salt" not in warning


def test_file_names_that_tell_of_patients() -> None:
    def warnings(*names: str) -> list[str]:
        found = Listing(entries=[Entry(name, "a") for name in names])
        check_group_names(found)
        return found.warnings

    assert "--group-pattern" in warnings("patient_1/a.png", "patient_1/b.png", "patient_2/a.png")[0]
    assert warnings("patient_1.png", "patient_2.png", "patient_3.png") == []  # one image each
    assert warnings("patient_1/a.png", "patient_1/b.png") == []  # one patient
    assert warnings("a.png", "b.png", "impatient1.png") == []


def test_class_folders_that_all_hold_the_same_folders() -> None:
    """Splits in words that are not known, such as "a" for training: what is below them are the classes."""

    def warnings(*names: str) -> list[str]:
        found = Listing(entries=[Entry(name, name.split("/")[0]) for name in names])
        check_labels(found)
        return found.warnings

    [warning] = warnings("a/cat/1.png", "a/dog/1.png", "b/cat/1.png", "b/dog/1.png", "b/dog/2.png")
    assert 'the class folders "a", "b" all hold the folders "cat", "dog"' in warning
    assert "name them train, val and test" in warning
    assert warnings("a/cat/1.png", "a/dog/1.png", "b/cat/1.png", "b/emu/1.png") == []
    assert warnings("a/img/1.png", "b/img/1.png") == []
    assert warnings("a/cat/1.png", "a/dog/1.png", "a/2.png", "b/cat/1.png", "b/dog/1.png", "b/2.png") == []
