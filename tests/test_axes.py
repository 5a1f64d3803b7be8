"""The words for inputs of one, two and three axes."""

from __future__ import annotations

from skipnets.axes import AXES, INPUTS, SIDES, worded


def test_each_number_of_axes_has_its_words() -> None:
    for dims in (1, 2, 3):
        assert len(AXES[dims].split(", ")) == dims
        assert len(SIDES[dims].replace(" and ", ", ").split(", ")) == dims
    assert list(INPUTS) == list(AXES) == list(SIDES) == [1, 2, 3]


def test_a_text_about_images_is_told_of_signals_and_volumes() -> None:
    text = "an image of 12 images, 3 ms an image; imagenet-images are ImageNet's"
    assert worded(text, 2) == text
    assert worded(text, 1) == "a signal of 12 signals, 3 ms a signal; imagenet-signals are ImageNet's"
    assert worded("Images; no image.", 3) == "Volumes; no volume."
    assert worded("An image of ImageNet", 1) == "A signal of ImageNet"
    assert worded("fewer than images", 3) == "fewer than volumes"
