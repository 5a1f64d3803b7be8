"""The one preprocessing, held to torchvision's on PIL images."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from skipnets.data import Preprocessing, open_dataset
from skipnets.data.decoding import ImageDecodeError
from skipnets.data.loading import training_loader, validation_loader
from skipnets.errors import UserError


def make_image(width: int, height: int, channels: int = 3) -> Image.Image:
    pixels = np.random.default_rng(width * 1000 + height).integers(
        0, 256, (height, width, channels), np.uint8
    )
    return Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.integers(1, 48),
    larger=st.integers(0, 12),
    channels=st.sampled_from([1, 3]),
    interpolation=st.sampled_from(["bilinear", "bicubic", "nearest", "lanczos"]),
)
def test_crop_equals_torchvision_bit_for_bit(width, height, size, larger, channels, interpolation):
    preprocessing = Preprocessing(
        size, fit="crop", crop_fraction=size / (size + larger), channels=channels, interpolation=interpolation
    )
    reference = transforms.Compose(
        [
            transforms.Resize(size + larger, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )
    image = make_image(width, height, channels)
    np.testing.assert_array_equal(preprocessing(image), reference(image).numpy())


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (333, 1000), (224, 224), (231, 1001)])
@pytest.mark.parametrize(("size", "resized"), [(224, 256), (224, 232), (224, 224)])
def test_crop_equals_torchvision_at_imagenet_sizes(width, height, size, resized):
    preprocessing = Preprocessing(size, fit="crop", crop_fraction=size / resized)
    reference = transforms.Compose([transforms.Resize(resized), transforms.CenterCrop(size)])
    image = make_image(width, height)
    np.testing.assert_array_equal(preprocessing.pixels(image), np.asarray(reference(image)))


@pytest.mark.parametrize(("width", "height"), [(50, 37), (37, 51), (30, 90), (32, 32), (9, 40)])
def test_center_equals_torchvision_s_center_crop(width, height):
    image = make_image(width, height)
    preprocessing = Preprocessing(32, fit="center", mean=(0, 0, 0), std=(1, 1, 1))
    expected = np.asarray(transforms.CenterCrop(32)(image))
    np.testing.assert_array_equal(preprocessing.pixels(image), expected)
    left, top, right, bottom = preprocessing.geometry(width, height)
    assert (right - left, bottom - top) == (32, 32)


def test_batch_equals_one_by_one():
    preprocessing = Preprocessing((20, 30), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    images = [make_image(40, 30), make_image(10, 50), make_image(30, 20)]
    batch = preprocessing.batch(images)
    assert batch.shape == (3, 3, 20, 30)
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous
    for one, several in zip(images, batch, strict=True):
        np.testing.assert_array_equal(preprocessing(one), several)
    assert preprocessing.batch([]).shape == (0, 3, 20, 30)


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (7, 7), (100, 1)])
def test_pad_shows_all_of_the_image_on_the_mean_color(width, height):
    preprocessing = Preprocessing(32, mean=(0.2, 0.4, 0.6), std=(1, 1, 1))
    got = preprocessing.pixels(Image.new("RGB", (width, height), "white"))
    shown = (got == 255).all(2)
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    assert max(len(rows), len(columns)) == 32
    scale = 32 / max(width, height)
    assert len(rows) == pytest.approx(max(height * scale, 1), abs=0.5)
    assert len(columns) == pytest.approx(max(width * scale, 1), abs=0.5)
    assert abs(rows[0] - (31 - rows[-1])) <= 1
    assert abs(columns[0] - (31 - columns[-1])) <= 1
    assert (got[~shown] == [51, 102, 153]).all()
    padding = preprocessing(got)[:, ~shown]
    np.testing.assert_allclose(padding, np.zeros_like(padding), atol=0.002)


def test_stretch_fills_the_input():
    got = Preprocessing((8, 16), fit="stretch").pixels(make_image(50, 50))
    np.testing.assert_array_equal(
        got, np.asarray(make_image(50, 50).resize((16, 8), Image.Resampling.BILINEAR))
    )


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize(("width", "height"), [(200, 120), (120, 200), (160, 160), (33, 240)])
def test_geometry_tells_where_an_input_pixel_comes_from(fit, width, height):
    preprocessing = Preprocessing((48, 64), fit=fit, crop_fraction=0.8 if fit == "crop" else 1)
    # Each pixel's value is its own position; red says x, green says y.
    ramp = np.zeros((height, width, 3), dtype=np.uint8)
    ramp[..., 0] = np.arange(width)
    ramp[..., 1] = np.arange(height)[:, None]
    ramp[..., 2] = 255
    got = preprocessing.pixels(ramp).astype(float)
    left, top, right, bottom = preprocessing.geometry(width, height)
    x = left + (np.arange(64) + 0.5) * (right - left) / 64 - 0.5
    y = top + (np.arange(48) + 0.5) * (bottom - top) / 48 - 0.5
    inside_x, inside_y = (x > 2) & (x < width - 3), (y > 2) & (y < height - 3)
    assert inside_x.sum() >= 5
    assert inside_y.sum() >= 5
    seen = got[np.ix_(inside_y, inside_x)]
    assert (seen[..., 2] == 255).all()
    x_step, y_step = (right - left) / 64, (bottom - top) / 48
    np.testing.assert_allclose(
        seen[..., 0], np.broadcast_to(x[inside_x], seen.shape[:2]), atol=0.6 + x_step / 2
    )
    np.testing.assert_allclose(
        seen[..., 1], np.broadcast_to(y[inside_y][:, None], seen.shape[:2]), atol=0.6 + y_step / 2
    )
    if fit == "stretch":
        assert (left, top, right, bottom) == (0, 0, width, height)
    if fit == "crop":
        assert left >= 0
        assert top >= 0
    if fit == "pad":
        assert left <= 0
        assert top <= 0


def test_gray_and_color_images_become_the_channels_asked_for():
    assert Preprocessing(8, channels=1)(make_image(9, 9, 3)).shape == (1, 8, 8)
    assert Preprocessing(8, channels=3)(make_image(9, 9, 1)).shape == (3, 8, 8)


def test_dict_round_trip_through_json():
    preprocessing = Preprocessing(
        (32, 48), fit="crop", crop_fraction=0.875, channels=1, mean=[0.3], std=[0.2]
    )
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing


def test_defaults_are_imagenet():
    assert Preprocessing(224).mean == (0.485, 0.456, 0.406)
    assert Preprocessing(224, channels=1).mean == pytest.approx([np.mean([0.485, 0.456, 0.406])])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 0}, "size=0: must be a positive"),
        ({"size": (32, 0)}, "size="),
        ({"size": (32, 32, 32, 3)}, "size="),
        ({"fit": "padd"}, "fit='padd': must be one of pad, crop, stretch, center; did you mean pad"),
        ({"crop_fraction": 0}, "crop_fraction=0: must be above 0 and at most 1"),
        ({"crop_fraction": 1.1}, "crop_fraction=1.1"),
        ({"channels": 0}, "channels=0: must be 1"),
        ({"bits": 16}, "window: must be given for images of 16 bits"),
        ({"window": (5, 5)}, r"window=\(5, 5\): must be two numbers, the lower one first"),
        ({"window": (0, float("inf"))}, "window=.*must be two numbers"),
        ({"window": (0, 1, 2, 3)}, "window=.*or 3 such pairs, one a channel"),
        ({"channels": 5, "shown_channels": (0, 1, 5)}, "shown_channels=.*must be three of the 5 channels"),
        ({"mean": (0.5,)}, "mean=.* must have 3 values"),
        ({"std": (0.5, 0, 0.5)}, "std=.* must be positive"),
        ({"interpolation": "cubic"}, "interpolation='cubic': must be one of .*did you mean bicubic"),
        ({"sized": 3}, "no field 'sized'; did you mean size"),
    ],
)
def test_impossible_values(fields, message):
    with pytest.raises(UserError, match=message):
        Preprocessing.from_dict({"size": 32, **fields})


def test_elongated_images_do_not_exhaust_memory():
    with pytest.raises(UserError, match="too elongated"):
        Preprocessing(224, fit="crop").pixels(Image.new("L", (1, 60_000)))
    assert Preprocessing(224).pixels(Image.new("L", (1, 60_000))).shape == (224, 224, 3)


RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "lanczos"])
@pytest.mark.parametrize("channels", [1, 3])
def test_windowed_is_8_bits_without_rounding(fit, interpolation, channels):
    # Smooth, because filters overshoot at edges, and 8 bits cut that off between the passes of a resize.
    x, y, z = np.meshgrid(np.arange(53), np.arange(37), np.arange(channels))
    pixels = (128 + 80 * np.sin(x / 7 + z) * np.cos(y / 5)).astype(np.uint8)
    options = {"fit": fit, "interpolation": interpolation, "channels": channels, "crop_fraction": 0.8}
    plain = Preprocessing((24, 20), **options).pixels(pixels).astype(float)
    windowed = Preprocessing((24, 20), **options, window=(0, 65535), bits=16)
    got = windowed.pixels(pixels.astype(np.uint16) * 257)
    assert (got.dtype, got.shape) == (np.float32, (24, 20, channels))
    np.testing.assert_allclose(got, plain, atol=1.5)
    assert np.abs(got - plain).mean() < 0.5


def test_windowed_resize_is_pytorchs():
    values = RANDOM.random((40, 60, 2)).astype(np.float32)
    got = Preprocessing((15, 25), fit="stretch", channels=2, window=(0, 1), bits=32).pixels(values)
    channels_first = torch.from_numpy(values.transpose(2, 0, 1))[None]
    expected = torch.nn.functional.interpolate(channels_first, (15, 25), mode="bilinear", antialias=True)
    np.testing.assert_allclose(got, 255 * expected[0].permute(1, 2, 0).numpy(), atol=1e-3)


def test_windows_cut_off_and_have_a_value_for_everything():
    values = np.array([[-np.inf, -5, 0, 2, 5, 10, 99, np.inf, np.nan]], dtype=np.float32)
    preprocessing = Preprocessing((1, 9), channels=1, window=(0, 10), bits=32)
    np.testing.assert_allclose(
        preprocessing.pixels(values)[0, :, 0], [0, 0, 0, 51, 127.5, 255, 255, 255, 0], atol=1e-4
    )


def test_every_band_has_its_window_mean_and_std():
    windows = ((0, 1), (-10, 10), (100, 300), (0, 1e-6), (0, 65535))
    means, stds = (0.1, 0.2, 0.3, 0.4, 0.5), (1, 2, 3, 4, 5)
    preprocessing = Preprocessing((4, 6), channels=5, window=windows, mean=means, std=stds, bits=64)
    shares = RANDOM.random((4, 6, 5))
    low, high = np.array(windows).T
    values = low + shares * (high - low)
    expected = ((shares - means) / stds).transpose(2, 0, 1)
    np.testing.assert_allclose(preprocessing(values), expected, atol=1e-5)
    np.testing.assert_allclose(preprocessing(values.transpose(2, 0, 1)), expected, atol=1e-5)
    # What is padded is the mean, exactly.
    padded = replace_size(preprocessing, (8, 6))(values)
    np.testing.assert_allclose(padded[:, :2], 0, atol=1e-6)


def replace_size(preprocessing: Preprocessing, size: tuple[int, int]) -> Preprocessing:
    return Preprocessing.from_dict({**preprocessing.to_dict(), "size": list(size)})


def test_8_bits_are_taken_as_shown_where_more_were_trained_on():
    shown = RANDOM.integers(0, 256, (6, 7), dtype=np.uint8)
    for bits, expected in ((16, shown), (8, np.clip((shown - 50.0) / 100, 0, 1) * 255)):
        got = Preprocessing((6, 7), channels=1, window=(50, 150), bits=bits).pixels(shown)
        np.testing.assert_allclose(got[:, :, 0], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "32×32, color, pad"),
        ({"channels": 1, "window": (-160, 240), "bits": 12}, "32×32, gray, pad, window -160 to 240"),
        ({"channels": 1, "window": "voi", "bits": 12}, "32×32, gray, pad, each file's own window"),
        ({"channels": 2, "fit": "crop"}, "32×32, 2 bands, crop, window 0 to 255"),
        ({"channels": 5, "window": [[0, 1]] * 4 + [[0, 9]], "bits": 32}, "window 0 to 1, 0 to 9"),
    ],
)
def test_windows_survive_json_and_are_told(fields, words):
    preprocessing = Preprocessing(32, **fields)
    text = json.dumps(preprocessing.to_dict())
    assert Preprocessing.from_dict(json.loads(text)) == preprocessing
    assert words in preprocessing.summary()
    # Files of models for 8 bits are what they were.
    assert ("window" in text) == (preprocessing.pixel_type == "float32")


def test_levels_become_values_and_levels_again():
    levels = RANDOM.integers(0, 256, (6, 7, 2), dtype=np.uint8)
    preprocessing = Preprocessing((6, 7), channels=2, window=[(-1000, 400), (0, 1e-3)], bits=32)
    np.testing.assert_allclose(preprocessing.pixels(preprocessing.unwindowed(levels)), levels, atol=1e-3)
    gray = Preprocessing((6, 7), channels=1, window=(-5, 5), bits=32)
    np.testing.assert_allclose(gray.pixels(gray.unwindowed(levels[..., 0])), levels[..., :1], atol=1e-3)
    assert Preprocessing(8).unwindowed(levels) is levels


def test_an_image_without_a_finite_value_cannot_be_read(tmp_path):
    preprocessing = Preprocessing((4, 6), channels=1, window=(0, 1), bits=32)
    np.save(tmp_path / "lost.npy", np.full((4, 6), np.nan, np.float32))
    with pytest.raises(ImageDecodeError, match=r"lost\.npy: has no finite value"):
        preprocessing.pixels(tmp_path / "lost.npy")
    partly = np.full((4, 6), np.nan, np.float32)
    partly[1, 2] = 1
    assert preprocessing.pixels(partly).sum() == 255


def photograph(width: int, height: int, *, orientation: int = 1, mode: str = "RGB") -> bytes:
    """Blots of all sizes and some noise, as JPEG."""
    generator = np.random.default_rng(width)
    shape = (height, width, 3)
    pixels = np.zeros(shape)
    for cells in (3, 12, 48):
        blots = Image.fromarray(255 * generator.integers(0, 2, (cells, cells, 3), np.uint8))
        pixels += np.asarray(blots.resize((width, height), Image.Resampling.BICUBIC)) / 3
    pixels = np.clip(pixels + generator.normal(0, 5, shape), 0, 255).astype(np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", quality=90, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("width", [1024, 1203])
@pytest.mark.parametrize(
    "options",
    [
        {"size": 64},
        {"size": (48, 96), "fit": "crop", "crop_fraction": 0.8, "interpolation": "bicubic"},
        {"size": (96, 48), "fit": "stretch", "channels": 1},
    ],
)
def test_large_photographs_are_nearly_the_same_in_training(options, width, orientation):
    source = photograph(width, 877, orientation=orientation)
    preprocessing = Preprocessing(**options)
    exact = preprocessing.pixels(source).astype(int)
    difference = np.abs(preprocessing.training_pixels(source) - exact)
    assert 0 < difference.mean() < 0.7
    assert difference.max() <= 8
    for other in (exact[:, ::-1], exact[::-1], np.roll(exact, 1, axis=0), np.roll(exact, 1, axis=1)):
        assert np.abs(preprocessing.training_pixels(source) - other).mean() > 2 * difference.mean()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["small", "png", "array", "gray", "as it is", "nearest"])
def test_all_else_is_the_same_in_training(kind, channels):
    options = {"as it is": {"fit": "center"}, "nearest": {"interpolation": "nearest"}}.get(kind, {})
    preprocessing = Preprocessing(64, channels=channels, **options)
    source: object = photograph(*((150, 120) if kind in ("small", "gray") else (600, 500)))
    if kind == "gray":
        source = photograph(150, 120, mode="L")
    elif kind in ("png", "array"):
        image = Image.open(io.BytesIO(source))
        source = np.asarray(image)
        if kind == "png":
            file = io.BytesIO()
            image.save(file, "PNG")
            source = file.getvalue()
    np.testing.assert_array_equal(preprocessing.training_pixels(source), preprocessing.pixels(source))


def test_too_elongated_and_damaged_images_are_refused_in_training_too():
    preprocessing = Preprocessing(224, fit="crop")
    with pytest.raises(ImageDecodeError, match="too elongated"):
        preprocessing.training_pixels(Image.new("L", (60_000, 1)))
    with pytest.raises(ImageDecodeError):
        preprocessing.training_pixels(photograph(600, 500)[:5000])


def test_the_training_loader_reads_large_photographs_so_and_that_of_validation_exactly(tmp_path):
    for number in range(4):
        folder = tmp_path / "ab"[number % 2]
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(photograph(600 + number, 500))
    dataset = open_dataset(tmp_path, fractions=None)
    preprocessing = Preprocessing(64)
    for held_bytes in (0, 2**30):
        training = training_loader(dataset, preprocessing, batch_size=4, held_bytes=held_bytes)
        validation = validation_loader(dataset, preprocessing, batch_size=4, held_bytes=held_bytes)
        for loader, read in (
            (training, preprocessing.training_pixels),
            (validation, preprocessing.pixels),
        ):
            for images, _, index in loader:
                expected = np.stack([read(dataset.source(position)) for position in index.tolist()])
                np.testing.assert_array_equal(images.numpy().transpose(0, 2, 3, 1), expected)
