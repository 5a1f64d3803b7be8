"""Which images an export is checked on, and what the check finds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.helpers.classifiers import make_classifier, make_images, some_image, write_class_folders

from skipnets.data.dataset import ImageDataset
from skipnets.deploy.verification import CHECKED_IMAGES, CheckImages, check_images
from skipnets.errors import UserError


def test_a_classifier_agrees_with_itself_in_batches_of_any_size() -> None:
    classifier = make_classifier("resnet20")
    check = CheckImages(name="some", sources=[some_image(seed=seed) for seed in range(11)])
    found = check.compare(classifier, classifier)
    assert (found.images, found.count, found.same_labels, found.largest_difference) == ("some", 11, 11, 0)


def test_another_classifier_is_found_out() -> None:
    first, second = make_classifier("resnet20"), make_classifier("densenet_bc40_k12")
    sources = [some_image(seed=seed) for seed in range(11)]
    found = CheckImages(name="some", sources=sources).compare(first, second)
    expected = [each.probabilities(each.preprocess(sources)) for each in (first, second)]
    assert found.largest_difference == pytest.approx(np.abs(expected[0] - expected[1]).max(), abs=1e-6)
    assert found.same_labels == (expected[0].argmax(1) == expected[1].argmax(1)).sum()
    assert found.largest_difference > 1e-3


def test_images_that_were_given_come_first_and_generated_ones_last(tmp_path: Path) -> None:
    classifier = make_classifier("resnet20")
    data = write_class_folders(tmp_path / "data", ("ant", "bee"))
    assert check_images(classifier, data).name == str(data)
    assert check_images(classifier, make_images(classifier, 4)).name == "the given images"
    generated = check_images(classifier, None)
    assert generated.name == "generated images"
    again = check_images(classifier, None)
    for one, other in zip(generated.sources, again.sources, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len({image.shape for image in generated.sources}) > 20


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
def test_a_sample_is_even_and_no_larger_than_it_need_be(count: int) -> None:
    images = np.arange(count, dtype=np.uint8)[:, None, None] + np.zeros((1, 4, 4), np.uint8)
    dataset = ImageDataset(
        classes=("a",),
        names=[str(index) for index in range(count)],
        labels=np.zeros(count, np.int64),
        splits=np.array(["test"] * count),
        images=images,
    )
    sources = check_images(make_classifier("resnet20"), dataset).sources
    chosen = [int(np.asarray(source).flat[0]) for source in sources]
    assert len(chosen) == min(count, CHECKED_IMAGES)
    steps = np.diff(chosen)
    assert len(steps) == 0 or (steps.min() >= 1 and steps.max() - steps.min() <= 1)
    with pytest.raises(UserError, match="the given images: there are no images to check on"):
        check_images(make_classifier("resnet20"), replace(dataset.select(np.array([], np.int64))))


def test_files_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    data = write_class_folders(tmp_path / "data", ("ant", "bee"))
    files = sorted(data.rglob("*.png"))
    for file in files[:-1]:
        file.write_bytes(b"no image")
    assert len(check_images(make_classifier("resnet20"), data).sources) == 1
    files[-1].write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the images can be read"):
        check_images(make_classifier("resnet20"), data)
