"""What a source says beside its tensors."""

from __future__ import annotations

from skipnets.models.weights.checkpoint import Checkpoint, PublishedInput, PublishedLabels


def test_gray_is_the_mean_and_further_channels_repeat() -> None:
    published = PublishedInput(
        size=(8, 8), resize_size=None, mean=(0.1, 0.2, 0.6), std=(1.0, 2.0, 3.0), interpolation="bilinear"
    )
    assert published.for_channels(1).mean == (0.3,)
    assert published.for_channels(4).std == (1.0, 2.0, 3.0, 1.0)


def test_windows_are_those_of_other_channels() -> None:
    """Like the means; which channels are shown is nothing that others have."""
    fields = {"size": (8, 8), "resize_size": None, "interpolation": "bilinear"}
    rest = {"fit": "pad", "bits": 16, "shown_channels": (5, 3, 1)}
    bands = PublishedInput(
        mean=(0.1, 0.5), std=(1.0, 1.0), further={**rest, "window": ((0.0, 100.0), (10.0, 300.0))}, **fields
    )
    assert bands.for_channels(2) is bands
    assert bands.for_channels(1).further == {"fit": "pad", "bits": 16, "window": ((5.0, 200.0),)}
    assert bands.for_channels(3).to_preprocessing()["window"] == ((0.0, 100.0), (10.0, 300.0), (0.0, 100.0))
    own = PublishedInput(mean=(0.1,), std=(1.0,), further={"window": "voi"}, **fields)
    assert own.for_channels(3).further == {"window": "voi"}


def test_small_numbers_are_shown() -> None:
    published = PublishedInput(
        size=(224, 224), resize_size=224, mean=(0.5,), std=(1 / 2048,), interpolation="bilinear"
    )
    assert str(published).endswith("mean (0.5), std (0.0004883)")


def test_labels_are_listed() -> None:
    labels = PublishedLabels(names=("Edema", "Effusion"), thresholds=(0.1, 0.2))
    assert str(labels) == "labels: Edema, Effusion"


def test_a_source_says_nothing_by_default() -> None:
    checkpoint = Checkpoint(source="w.pth", tensors={}, ordered=True)
    assert (
        checkpoint.input,
        checkpoint.labels,
        checkpoint.task,
        dict(checkpoint.fields),
        checkpoint.notes,
    ) == (
        None,
        None,
        None,
        {},
        (),
    )
