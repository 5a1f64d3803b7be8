"""The augmentation is torchvision's in distribution, although crops are chosen before decoding."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from simplejpeg import decode_jpeg
from torchvision import transforms
from torchvision.transforms import v2

from skipnets.data.augmentation import (
    AUGMENTATIONS,
    draw_box,
    erase,
    find_augmentation,
    resized_crop,
    shift_and_mirror,
    vary,
)
from skipnets.data.decoding import ImageDecodeError, open_region
from skipnets.errors import UserError


@pytest.mark.parametrize(("width", "height"), [(500, 400), (400, 500), (1000, 60), (32, 32)])
def test_boxes_are_distributed_as_torchvisions(width, height):
    ours = np.array([draw_box(width, height) for _ in range(1500)])
    image = Image.new("L", (width, height))
    theirs = np.array(
        [
            transforms.RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))  # top, left, h, w
            for _ in range(1500)
        ]
    )
    assert (ours >= 0).all()
    assert (ours[:, 2] <= width).all()
    assert (ours[:, 3] <= height).all()
    figures = {
        "left": (ours[:, 0], theirs[:, 1]),
        "top": (ours[:, 1], theirs[:, 0]),
        "width": (ours[:, 2] - ours[:, 0], theirs[:, 3]),
        "height": (ours[:, 3] - ours[:, 1], theirs[:, 2]),
    }
    for name, (got, expected) in figures.items():
        assert stats.ks_2samp(got, expected).pvalue > 0.001, name


@pytest.mark.parametrize("mirror", [False, True])
def test_shifts_and_mirrors_are_torchvisions_and_equally_likely(mirror):
    image = np.random.default_rng(0).integers(1, 256, (6, 6, 3), dtype=np.uint8)
    padded = transforms.functional.pad(Image.fromarray(image), 4)
    possible = {}
    for top in range(9):
        for left in range(9):
            for flip in (False, True)[: 1 + mirror]:
                crop = transforms.functional.crop(padded, top, left, 6, 6)
                crop = transforms.functional.hflip(crop) if flip else crop
                possible[np.asarray(crop).tobytes()] = len(possible)
    assert len(possible) == (162 if mirror else 81)
    mirrored = mirror & (np.arange(162 * 30) % 2 == 1)
    got = shift_and_mirror(np.repeat(image[None], 162 * 30, axis=0), padding=4, mirrored=mirrored)
    counts = np.bincount([possible[result.tobytes()] for result in got], minlength=len(possible))
    assert stats.chisquare(counts).pvalue > 0.001


def test_reflected_edges_are_torchvisions():
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    padded = transforms.functional.pad(Image.fromarray(image), 2, padding_mode="reflect")
    possible = {
        np.asarray(transforms.functional.crop(padded, top, left, 6, 5)).tobytes()
        for top in range(5)
        for left in range(5)
    }
    got = shift_and_mirror(
        np.repeat(image[None], 500, axis=0), padding=2, mirrored=np.zeros(500, bool), reflect=True
    )
    assert {result.tobytes() for result in got} == possible


def test_mirroring_alone():
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 4, 1), dtype=np.uint8)
    got = shift_and_mirror(images, padding=0, mirrored=np.array([True, False, False, True]))
    np.testing.assert_array_equal(got[[1, 2]], images[[1, 2]])
    np.testing.assert_array_equal(got[[0, 3]], images[[0, 3], :, ::-1])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("policy", "theirs"),
    [("trivial", v2.TrivialAugmentWide()), ("rand", v2.RandAugment()), ("augmix", v2.AugMix())],
)
def test_policies_are_torchvisions(policy, theirs, channels):
    images = np.random.default_rng(0).integers(0, 256, (40, 12, 10, channels), dtype=np.uint8)
    torch.manual_seed(3)
    got = vary(images, policy)
    torch.manual_seed(3)
    for result, image in zip(got, images, strict=True):
        image = v2.functional.to_pil_image(torch.from_numpy(image).permute(2, 0, 1))
        expected = v2.functional.pil_to_tensor(theirs(image)).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(result, expected)
    assert len(np.unique(got)) > 100


@pytest.mark.parametrize("policy", ["trivial", "rand", "augmix"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_bands_are_varied_within_their_range(policy, channels):
    images = np.random.default_rng(0).uniform(0, 255, (12, 9, 8, channels)).astype(np.float32)
    got = vary(images, policy)
    assert got.dtype == np.float32
    assert got.min() >= 0
    assert got.max() <= 255
    assert not np.array_equal(got, images)


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_erased_boxes_have_the_mean_color_and_the_share_that_was_asked_for(kind):
    images = np.random.default_rng(0).integers(0, 100, (400, 16, 16, 3)).astype(kind)
    got = erase(images, 0.25, [200.4, 210.0, 220.0])
    changed = (got != images).any(3)
    assert (got[changed] == [200, 210, 220]).all()
    erased = changed.any((1, 2))
    assert stats.binomtest(int(erased.sum()), 400, 0.25).pvalue > 0.001
    for mask in changed[erased]:  # one whole box each, of 2 to 33% of the area, up to rounding
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert 0.01 < mask.mean() < 0.36


def test_pixels_of_reduced_decoding_are_distributed_as_torchvisions():
    """Mean, contrast and sharpness of crops of a photograph-like JPEG, ours and RandomResizedCrop's."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(600)[:, None], np.fft.rfftfreq(800)[None]) + 1 / 800
    waves = np.exp(2j * np.pi * rng.random((3, *frequency.shape))) / frequency  # 1/f, as photographs have
    field = np.fft.irfft2(waves, s=(600, 800)).transpose(1, 2, 0)
    pixels = (128 + 45 * field / field.std()).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    whole = Image.open(file)
    crop = transforms.RandomResizedCrop(48)

    def figures(image: np.ndarray) -> tuple[float, float, float]:
        values = image.astype(float)
        return values.mean(), values.std(), float(np.abs(np.diff(values, axis=1)).mean())

    ours, theirs = [], []
    for _ in range(400):
        image, box = open_region(
            file.getvalue(), draw_box, size=(48, 48), channels=3, decode_jpeg=decode_jpeg
        )
        ours.append(figures(resized_crop(image, box, size=(48, 48), interpolation="bilinear", mirror=False)))
        theirs.append(figures(np.asarray(crop(whole))))
    ours_mean, theirs_mean = np.mean(ours, axis=0), np.mean(theirs, axis=0)
    for got, expected in zip(np.transpose(ours), np.transpose(theirs), strict=True):
        assert stats.ks_2samp(got, expected).pvalue > 0.001
    assert ours_mean[0] == pytest.approx(theirs_mean[0], abs=2)
    np.testing.assert_allclose(ours_mean[1:], theirs_mean[1:], rtol=0.02)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_is_decoded_as_it_is_has_pillows_pixels(subsampling, progressive):
    pixels = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", subsampling=subsampling, progressive=progressive)
    given = {"size": (40, 50), "channels": 3}
    fast, box = open_region(file.getvalue(), lambda *_: (3, 4, 70, 60), decode_jpeg=decode_jpeg, **given)
    slow, same = open_region(file.getvalue(), lambda *_: (3, 4, 70, 60), **given)
    assert isinstance(fast, np.ndarray)
    assert box == same
    np.testing.assert_array_equal(fast, np.asarray(slow))
    for interpolation in ("bilinear", "lanczos"):
        how = {"size": (40, 50), "interpolation": interpolation, "mirror": True}
        np.testing.assert_array_equal(resized_crop(fast, box, **how), resized_crop(slow, box, **how))


@pytest.mark.parametrize("what", ["gray", "cmyk", "turned", "large", "png", "wanted gray"])
def test_other_images_are_left_to_pillow(what):
    mode = {"gray": "L", "cmyk": "CMYK"}.get(what, "RGB")
    exif = Image.Exif()
    exif[274] = 6 if what == "turned" else 1
    side = 400 if what == "large" else 60
    file = io.BytesIO()
    Image.new(mode, (side, side)).save(file, "PNG" if what == "png" else "JPEG", exif=exif)
    image, _ = open_region(
        file.getvalue(),
        lambda width, height: (0, 0, width, height),
        size=(50, 50),
        channels=1 if what == "wanted gray" else 3,
        decode_jpeg=decode_jpeg,
    )
    assert isinstance(image, Image.Image)


def test_what_the_fast_decoder_refuses_pillow_reads():
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(file, "JPEG")
    odd = file.getvalue()[:-2] + b"\x11\x22" + file.getvalue()[-2:]  # a stray byte before the last marker
    with pytest.raises(ValueError, match="extraneous"):
        decode_jpeg(odd)
    image, _ = open_region(odd, draw_box, size=(50, 50), channels=3, decode_jpeg=decode_jpeg)
    assert isinstance(image, Image.Image)


@pytest.mark.parametrize("keep", [0.3, 0.99])
def test_a_jpeg_cut_short_is_refused_by_name(keep, tmp_path):
    path = tmp_path / "short.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(ImageDecodeError, match=r"short\.jpg"):
        open_region(path, draw_box, size=(50, 50), channels=3, decode_jpeg=decode_jpeg)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("mirror", [False, True])
def test_resized_crop_is_torchvisions(channels, interpolation, mirror):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, channels), dtype=np.uint8)
    image = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])
    mode = transforms.InterpolationMode(interpolation)
    expected = transforms.functional.resized_crop(
        image, 7, 5, 30, 40, (16, 20), mode
    )  # top, left, height, width
    expected = transforms.functional.hflip(expected) if mirror else expected
    got = resized_crop(image, (5, 7, 45, 37), size=(16, 20), interpolation=interpolation, mirror=mirror)
    assert got.shape == (16, 20, channels)
    difference = np.abs(got.astype(int) - np.asarray(expected).reshape(got.shape))
    if interpolation == "nearest":  # the two round the source's position differently
        assert np.isin(got, pixels).all()
    else:
        assert difference.max() <= 1


def test_names():
    assert list(AUGMENTATIONS) == [
        "none",
        "flip",
        "crop",
        "crop-flip",
        "shift",
        "shift-flip",
        "resized-crop",
        "trivial",
        "rand",
        "augmix",
    ]
    assert find_augmentation("trivial", (224, 224)).resized_crop
    small = find_augmentation("trivial", (32, 32))
    assert (small.resized_crop, small.padding, small.mirror, small.policy) == (False, 4, True, "trivial")
    crops = [find_augmentation("crop", (side, side)) for side in (8, 28, 32, 224)]
    assert [(crop.padding, crop.mirror) for crop in crops] == [(1, False), (3, False), (4, False), (4, False)]
    with pytest.raises(UserError, match=r"augmentation='flop': must be one of none, .*did you mean flip"):
        find_augmentation("flop", (32, 32))
