"""How an image looks is measured as it is defined, and changes with blur, darkness and color as it should."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter
from scipy.ndimage import gaussian_filter
from scipy.stats import entropy
from tests.helpers.flawed import scene

from skipnets.data.appearance import appearance, measure_appearance, open_small
from skipnets.data.decoding import ImageDecodeError
from skipnets.data.sources import find_dataset


def test_numbers_are_those_of_numpy_and_scipy() -> None:
    image = scene(0)
    gray = np.asarray(image.convert("L"))
    seen = appearance(image)
    low, dark, high = np.percentile(gray, (1, 5, 99), method="inverted_cdf") / 255
    assert seen.brightest == pytest.approx(high)
    assert seen.darkest == pytest.approx(dark)
    assert seen.contrast == pytest.approx(high - low)
    assert seen.information == pytest.approx(entropy(np.unique(gray, return_counts=True)[1], base=2))
    assert not seen.colorless


def test_sharpness_of_noise_and_of_blur() -> None:
    """Of white noise: the squared coefficients 1, 1, 1, 1, 4 sum to 20; those of the two differences to 4."""
    noise = np.random.default_rng(0).normal(0, 1, (128, 128))

    def image(values: NDArray[np.float64]) -> Image.Image:
        return Image.fromarray((128 + 30 * values / values.std()).clip(0, 255).astype(np.uint8)).convert(
            "RGB"
        )

    assert appearance(image(noise)).sharpness == pytest.approx(5, rel=0.03)
    # In the Fourier domain, ∫k⁵e^(-k²r²)dk / ∫k³e^(-k²r²)dk = 2/r² for a Gaussian of r pixels.
    for radius in (2, 3):
        blurred = image(gaussian_filter(noise, radius))
        assert appearance(blurred).sharpness == pytest.approx(2 / radius**2, rel=0.15)
    assert np.isnan(appearance(scene(0).resize((15, 40))).sharpness)


def test_color() -> None:
    gray = scene(1).convert("L").convert("RGB")
    assert appearance(gray).colorless
    tinted = Image.blend(gray, Image.new("RGB", gray.size, (255, 0, 0)), 0.1)
    assert not appearance(tinted).colorless


def test_every_image_or_why_not(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    scene(0).save(tmp_path / "a" / "0.png")
    ImageEnhance.Brightness(scene(1)).enhance(0.1).save(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "2.png").write_bytes(b"nothing")
    dataset = find_dataset(tmp_path, fractions=None)
    told: list[tuple[int, int]] = []
    first, dark, broken = measure_appearance(dataset, lambda done, total: told.append((done, total)))
    assert first == appearance(scene(0))
    assert not isinstance(dark, ImageDecodeError)
    assert dark.brightest < 0.1
    assert isinstance(broken, ImageDecodeError)
    assert told == [(3, 3)]


def test_large_images_are_made_small(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    scene(0).resize((900, 300)).save(tmp_path / "a" / "0.jpg", quality=95)
    scene(0).save(tmp_path / "a" / "1.png")
    dataset = find_dataset(tmp_path, fractions=None)
    assert open_small(dataset, 0, 128).size == (128, 43)
    assert open_small(dataset, 1, 128).size == (64, 48)
    whole = dataset.open(0).resize((128, 43), Image.Resampling.BOX)
    difference = np.asarray(open_small(dataset, 0, 128), dtype=int) - np.asarray(whole, dtype=int)
    assert np.abs(difference).mean() < 2


def test_more_than_8_bits_are_shown_as_a_person_sees_them(tmp_path: Path) -> None:
    """12 bits in 16: as they are stored, the brightest is a sixteenth of white."""
    (tmp_path / "a").mkdir()
    for seed in range(2):
        gray = np.asarray(scene(seed).convert("L"), dtype=np.uint16)
        Image.fromarray(gray * 16 + 5).save(tmp_path / "a" / f"{seed}.png")
    Image.fromarray(np.full((40, 40), 900, dtype=np.uint16)).save(tmp_path / "a" / "blank.png")
    dataset = find_dataset(tmp_path, fractions=None)
    first, second, blank = measure_appearance(dataset)
    for seen in (first, second):
        assert not isinstance(seen, ImageDecodeError)
        assert seen.brightest > 0.95
        assert seen.colorless
    assert not isinstance(blank, ImageDecodeError)
    assert blank.contrast == 0


def test_thumbnails_in_gray_are_those_in_color(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    gray = scene(0).convert("L")
    gray.save(tmp_path / "a" / "0.jpg", quality=95)
    Image.fromarray(np.asarray(gray, dtype=np.uint16) * 16).save(tmp_path / "a" / "1.png")
    deep = find_dataset(tmp_path, fractions=None)
    shallow = deep.select(np.array([0]))
    for dataset, index in ((deep, 0), (deep, 1), (shallow, 0)):
        in_gray, in_color = (dataset.open_reduced(index, 32, channels=channels) for channels in (1, 3))
        assert (in_gray.mode, in_color.mode) == ("L", "RGB")
        np.testing.assert_array_equal(np.asarray(in_gray), np.asarray(in_color)[:, :, 1])
    assert deep.open_reduced(1, 32, channels=1).getextrema() == (0, 255)


def test_images_in_memory() -> None:
    digits = find_dataset("digits", fractions=None).select(np.arange(5))
    for image, seen in zip(digits.images, measure_appearance(digits), strict=True):  # type: ignore[arg-type]
        assert seen[:4] == appearance(Image.fromarray(image).convert("RGB"))[:4]


FASHION = Path("/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz")


@pytest.mark.skipif(not FASHION.exists(), reason="needs Debian's dataset-fashion-mnist")
def test_blurred_real_images_are_less_than_half_as_sharp() -> None:
    images = np.frombuffer(gzip.decompress(FASHION.read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28)
    originals = [Image.fromarray(image).convert("RGB") for image in images[:150]]
    sharp = np.array([appearance(image).sharpness for image in originals])
    blurred = [appearance(image.filter(ImageFilter.GaussianBlur(28 / 25))).sharpness for image in originals]
    bound = np.median(sharp) / 2
    assert (np.array(blurred) < bound).mean() > 0.95
    assert (sharp < bound).mean() < 0.02


def test_more_than_8_bits_are_stretched_and_of_bands_three_are_shown(tmp_path: Path) -> None:
    gray = np.asarray(scene(0).convert("L")).astype(np.float32)
    for name, array in (("a", gray / 1000 - 3), ("b", gray.astype(np.uint16) * 16)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "0.npy", array)
    deep = find_dataset(tmp_path, fractions=None)
    small = [np.asarray(open_small(deep, index, 64).convert("L")).astype(float) for index in range(2)]
    np.testing.assert_allclose(small[0], small[1], atol=2)
    assert np.ptp(small[0]) > 150
    assert not [each for each in measure_appearance(deep) if isinstance(each, ImageDecodeError)]
    for name in "ab":
        np.save(tmp_path / name / "0.npy", np.random.default_rng(0).random((40, 50, 5)))
    bands = find_dataset(tmp_path, fractions=None)
    assert open_small(bands, 0, 32).mode == "RGB"
    assert open_small(bands, 0, 32).size == (32, 26)
