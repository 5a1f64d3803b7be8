"""Make one classifier of several runs or model files: an ensemble, which averages their probabilities.

What each network has seen in training is joined as well, so that the ensemble is evaluated on images that are
new to all of them.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skipnets import run_folder
from skipnets.axes import INPUTS
from skipnets.classifier import Classifier, describe, load
from skipnets.data.splits import SPLITS, SplitRow, read_split_rows, write_splits
from skipnets.description import CLASS_NOUNS
from skipnets.errors import UserError, listed
from skipnets.files import atomic_path, check_can_write
from skipnets.runtimes.model_file import read_model_file
from skipnets.tables import Display, properties_table
from skipnets.trust import Trust

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["MadeEnsemble", "make_ensemble"]


@dataclass(frozen=True, kw_only=True)
class MadeEnsemble(Display):
    """An ensemble in a folder of its own.

    Attributes:
        folder: Where it is; every command takes it as a model.
        classifier: The ensemble.
        images: How many images train, choose the best epoch of ("val") or test it, an image that any of the
            networks was trained on being "train"; None where a network's own images are not known.
        notes: What is to be known of it, one sentence each.
    """

    folder: Path
    classifier: Classifier
    images: Mapping[str, int] | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values for JSON."""
        return {
            "folder": str(self.folder),
            "networks": [str(each["name"]) for each in self.classifier.architectures],
            "classes": list(self.classifier.classes),
            "task": self.classifier.task,
            "images": None if self.images is None else dict(self.images),
            "notes": list(self.notes),
        }

    def tables(self) -> list[Table]:
        """Tables that `print` and notebooks show."""
        names = Counter(str(each["name"]) for each in self.classifier.architectures)
        counts = ", ".join(name if count == 1 else f"{count} {name}" for name, count in names.items())
        rows = {
            "networks": counts if len(names) == 1 else f"{self.classifier.ensemble}: {counts}",
            CLASS_NOUNS[self.classifier.task]: listed(self.classifier.classes, 20),
            "preprocessing": self.classifier.preprocessing.summary(),
        }
        if self.images is not None:
            shown = ", ".join(f"{name} {self.images[name]:,}" for name in SPLITS)
            kind = INPUTS[self.classifier.preprocessing.dims]
            rows[kind] = f"{shown}, for all networks together"
        rows["written"] = str(self.folder / run_folder.MODEL)
        return [properties_table(rows), *(properties_table({"note": note}) for note in self.notes)]


@dataclass(frozen=True, kw_only=True)
class _Record:
    """Which images a model was trained on.

    Attributes:
        model: The model's path, as it was given.
        data: The DATA argument of its training, and the options that it was read with.
        rows: Of its splits.csv.
    """

    model: str
    data: tuple[Any, Any]
    rows: Sequence[SplitRow]


def make_ensemble(
    models: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, trust: Trust = None
) -> MadeEnsemble:
    """Write a classifier that averages the probabilities, or numbers, of several.

    Each network counts the same; of a model that is an ensemble itself, each of its networks does. What
    `skipnets calibrate` fitted to the models is left out, for it would not hold for the ensemble. With
    several labels an image, its thresholds are the means of the models'.

    The folder also gets a `splits.csv`, where all models lie in run folders. In it, an image belongs to
    "train" if any of the networks was trained on it, else to "val" if the best epoch of any was chosen on it.
    So `evaluate` takes images that are new to all networks, and says how many of other images are not.

    Args:
        models: At least two model files or run folders, with the same classes and preprocessing. Networks of
            this package may differ; others must be of one architecture.
        out: A new folder.
        trust: As for `skipnets.load`.

    Raises:
        UserError: If a model cannot be loaded or averaged with the first, one is there twice, or the folder
            exists.
    """
    folder = Path(out)
    _check_free(folder)
    if len(models) < 2:
        raise UserError(f"models: must be at least two to average, not {len(models)}")
    names = [os.fspath(model) for model in models]
    for name in names:
        if "export" in describe(name):
            raise UserError(f"{name} is an export: take the model file that it was made from")
    loaded = [load(name, device="cpu", trust=trust) for name in names]
    _check_differ(names, loaded)
    notes = []
    members: list[Classifier] = []
    for name, classifier in zip(names, loaded, strict=True):
        if classifier.ensemble > 1:
            notes.append(f"{name} is an ensemble: each of its {classifier.ensemble} networks counts as one")
        members += (member.uncalibrated() for member in classifier.members)
    calibrated = [
        name
        for name, classifier in zip(names, loaded, strict=True)
        if classifier.temperature != 1 or classifier.uncertainty is not None
    ]
    if calibrated:
        notes.append(
            f"the calibration of {listed(calibrated)} is left out: skipnets calibrate {folder} fits the "
            "ensemble's own"
        )
    records = [_record(name, classifier) for name, classifier in zip(names, loaded, strict=True)]
    known = [record for record in records if record is not None]
    rows = _joined(known) if len(known) == len(records) else None
    notes += _notes_on_images(names, records, rows, INPUTS[loaded[0].preprocessing.dims])
    images = None if rows is None else {split: _count(rows, split) for split in SPLITS}
    ensemble = Classifier.from_members(members, provenance=_provenance(members, known, images))
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        if rows is not None:
            write_splits(temporary / run_folder.SPLITS, rows)
        ensemble.save(temporary / run_folder.MODEL)
    return MadeEnsemble(folder=folder, classifier=ensemble, images=images, notes=tuple(notes))


def _check_free(folder: Path) -> None:
    """Check that a folder can be made.

    Raises:
        UserError: If something is there, or it cannot.
    """
    if folder.suffix == ".safetensors":
        raise UserError(f"out={folder}: must be a folder, which gets a {run_folder.MODEL}")
    check_can_write(folder, folder=True)
    if folder.exists():
        raise UserError(f"out={folder}: already exists; remove it or name another")


def _check_differ(names: Sequence[str], loaded: Sequence[Classifier]) -> None:
    """Check that no network would count twice.

    Raises:
        UserError: If one would.
    """
    found: dict[str, str] = {}
    for name, classifier in zip(names, loaded, strict=True):
        if names.count(name) > 1:
            raise UserError(f"{name}: must be given once, as its network would count twice")
        assert classifier.path is not None
        file = read_model_file(classifier.path)
        for tensors in [file.tensors()] if classifier.ensemble == 1 else file.members():
            digest = hashlib.blake2b(digest_size=16)
            for tensor in sorted(tensors):
                digest.update(tensor.encode())
                digest.update(tensors[tensor].tobytes())
            if (other := found.setdefault(digest.hexdigest(), name)) != name:
                raise UserError(
                    f"{name}: has a network of {other}, which would count twice; runs of other --seed differ"
                )


def _record(name: str, classifier: Classifier) -> _Record | None:
    """What is known of a model's images; None outside a run folder."""
    assert classifier.path is not None
    splits = classifier.path.with_name(run_folder.SPLITS)
    if not splits.is_file():
        return None
    run_folder.check_splits(splits.parent)
    about = classifier.provenance
    return _Record(
        model=name, data=(about.get("data"), about.get("data_options")), rows=read_split_rows(splits)
    )


def _joined(records: Sequence[_Record]) -> list[SplitRow]:
    """A row for each image that any network has used, with the split that it has for all together.

    Images are the same by name where the models have the same data. Otherwise names are told apart by the
    model's number, and it is by their content that images are known.
    """
    named: dict[str, SplitRow] = {}
    alike = _same_data(records)
    for number, record in enumerate(records, start=1):
        for row in record.rows:
            path = row.path if alike else f"{number}/{row.path}"
            before = named.get(path, row)
            split = min(before.split, row.split, key=SPLITS.index)
            named[path] = before._replace(path=path, split=split, fold="")
    return list(named.values())


def _same_data(records: Sequence[_Record]) -> bool:
    """Whether all models were trained on the same data, and it has not changed between their trainings."""
    contents: dict[str, tuple[str, int, str]] = {}
    for record in records:
        if record.data != records[0].data:
            return False
        for row in record.rows:
            content = row.label, row.size, row.hash
            if contents.setdefault(row.path, content) != content:
                return False
    return True


def _count(rows: Sequence[SplitRow], split: str) -> int:
    return sum(row.split == split for row in rows)


def _notes_on_images(
    names: Sequence[str], records: Sequence[_Record | None], rows: Sequence[SplitRow] | None, kind: str
) -> list[str]:
    """What the networks' images, or what `kind` calls them, mean for an evaluation of the ensemble."""
    if rows is None:
        unknown = [name for name, record in zip(names, records, strict=True) if record is None]
        return [
            f"{listed(unknown)} {'is' if len(unknown) == 1 else 'are'} in no run folder, so it is not known "
            f"which {kind} the ensemble has seen: evaluate and calibrate it on {kind} that you know are new"
        ]
    known = [record for record in records if record is not None]
    if not _same_data(known):
        return [
            f"the networks were trained on different data: name the {kind} to evaluate the ensemble on; "
            "those that one of the networks has seen are counted"
        ]
    notes = []
    for split, use, seen in (("test", "evaluate", "trained or chosen"), ("val", "calibrate", "trained")):
        least = min(_count(record.rows, split) for record in known)
        common = _count(rows, split)
        if common == 0:
            notes.append(f"no {kind} are left to {use} the ensemble on: each has {seen} one of the networks")
        elif common < least:
            notes.append(
                f"{common:,} {kind} are left to {use} the ensemble on: other {split} {kind} of one network "
                f"have {seen} another"
            )
        if common < least:
            notes[-1] += f"; runs with one splits.csv (skipnets train --splits) have the same {kind}"
    return notes


def _provenance(
    members: Sequence[Classifier], records: Sequence[_Record], images: Mapping[str, int] | None
) -> dict[str, Any]:
    """Where the ensemble comes from; the data only where all networks have the same."""
    about: dict[str, Any] = {}
    if images is not None and _same_data(records):
        data, options = records[0].data
        about |= {} if data is None else {"data": data}
        about |= {} if options is None else {"data_options": options}
    if images is not None:
        about["images"] = dict(images)
    about["networks"] = [f"{member.network} of {member.path}" for member in members]
    return about
