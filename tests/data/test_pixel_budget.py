"""Memory of decoded images: what headers imply, what decoding takes, who waits."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image
from tests.helpers.images import animated_webp
from tests.helpers.medical import dicom_file
from tests.helpers.serving import wait_until

from skipnets.data.decoding import ImageDecodeError, decoding_bytes, open_image
from skipnets.data.pixel_budget import AbandonedError, PixelBudget, webp_canvas
from skipnets.data.preprocessing import Preprocessing
from skipnets.errors import UserError

# Decodes each file and prints its name, the peak that was estimated and the one that was measured.
MEASURE = """
import sys
from pathlib import Path
from skipnets.data.decoding import decoding_bytes, open_image

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

for name in sys.argv[1:]:
    path = Path(name)
    open_image(path.with_name("small-" + path.name), 3)  # decoders are loaded
    with path.open("rb") as file:
        estimated = decoding_bytes(file)
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
        open_image(file, 3)
        print(path.name, estimated, peak() - before)
"""


def write_images(folder: Path, side: int, prefix: str = "") -> list[Path]:
    """An image of each kind that takes a decoder's or a converter's own amount of memory."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (32, 32, 4), np.uint8)).resize((side, side))
    rgb, turned = noise.convert("RGB"), Image.Exif()
    turned[0x112] = 6
    gray16 = Image.fromarray(np.asarray(noise.convert("L")).astype(np.uint16) * 257)
    kinds = {
        "progressive.jpg": (rgb, {"progressive": True, "subsampling": 0, "exif": turned}),
        "cmyk.jpg": (rgb.convert("CMYK"), {"exif": turned}),
        "gray.jpg": (rgb.convert("L"), {"exif": turned}),
        "transparent.png": (noise, {"exif": turned, "compress_level": 1}),
        "gray16.png": (gray16, {"exif": turned, "compress_level": 1}),
        "palette.gif": (rgb.quantize(16), {"transparency": 3}),
        "transparent.tif": (noise, {"compression": "tiff_lzw"}),
        "animated.webp": (noise, {"save_all": True, "append_images": [noise.rotate(90)], "method": 0}),
        "transparent.avif": (noise, {"speed": 10}),
        "full-color.avif": (noise, {"speed": 10, "subsampling": "4:4:4"}),
        "transparent.jp2": (noise, {}),
    }
    paths = []
    for name, (image, options) in kinds.items():
        paths.append(folder / f"{prefix}{name}")
        image.save(paths[-1], **options)
    planes = np.moveaxis(np.asarray(rgb).astype(np.uint16) * 257, -1, 0)
    paths.append(folder / f"{prefix}planes.tif")
    pytest.importorskip("tifffile").imwrite(paths[-1], planes, photometric="rgb", planarconfig="separate")
    return paths


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures by Linux's peak memory")
def test_no_image_takes_more_memory_than_its_header_implies(tmp_path: Path) -> None:
    write_images(tmp_path, 16, "small-")
    paths = write_images(tmp_path, 700)
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, paths)],
        check=True,
        capture_output=True,
        text=True,
        # Freed memory goes back at once, so that each image's own is measured.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"},
    )
    rows = [line.split() for line in ran.stdout.splitlines()]
    assert len(rows) == len(paths)
    for name, estimated, measured in rows:
        # 2 MB: what decoders take beside pixels.
        assert int(measured) < int(estimated) + 2e6, name
        assert int(measured) > int(estimated) / 3, name


def test_a_webp_file_tells_its_canvas_before_it_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({"lossless": True}, {"quality": 50}):
        file = io.BytesIO()
        Image.new("RGB", (301, 77), "red").save(file, "WEBP", **options)
        assert webp_canvas(file.getvalue()[:30]) == (301, 77)
    bomb = animated_webp(7000, 6999)
    assert len(bomb) < 150
    assert webp_canvas(bomb[:30]) == (7000, 6999)
    assert webp_canvas(b"RIFF") is None
    assert webp_canvas(b"\x89PNG" * 10) is None
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    for source in (bomb, io.BytesIO(bomb)):
        with pytest.raises(ImageDecodeError, match="larger than 1,000,000 pixels"):
            open_image(source, 3, max_pixels=1_000_000)
    assert decoding_bytes(io.BytesIO(bomb)) > 7000 * 6999 * 16


def test_a_tile_larger_than_its_image_counts() -> None:
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((8, 8), np.uint8), tile=(1024, 2048), compression="zlib")
    assert decoding_bytes(file) >= 1024 * 2048


def test_readers_wait_until_memory_is_free() -> None:
    budget = PixelBudget(100)
    most, lock, here = 0, threading.Lock(), 0

    def read(size: int) -> None:
        nonlocal most, here
        with budget.reserved(size):
            with lock:
                here += size
                most = max(most, here)
            with lock:
                here -= size

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, [60, 30, 50, 100, 1] * 40))
    assert most <= 100
    assert budget.used == 0


def test_first_come_first_served() -> None:
    budget, served = PixelBudget(100), []

    def read(name: str, size: int) -> None:
        with budget.reserved(size):
            served.append(name)

    with ThreadPoolExecutor(2) as pool:
        with budget.reserved(50):
            large = pool.submit(read, "large", 80)
            wait_until(lambda: len(budget._waiting) == 1)
            small = pool.submit(read, "small", 10)  # would fit now, but would starve the large one
            wait_until(lambda: len(budget._waiting) == 2)
            assert not served
        large.result()
        small.result()
    assert served == ["large", "small"]


def test_what_nobody_waits_for_gives_up_its_turn() -> None:
    budget, gone = PixelBudget(100), threading.Event()

    def read() -> None:
        with budget.reserved(80, abandoned=gone.is_set):
            pytest.fail("was read")

    with ThreadPoolExecutor(1) as pool, budget.reserved(50):
        waiting = pool.submit(read)
        wait_until(lambda: len(budget._waiting) == 1)
        gone.set()
        assert isinstance(waiting.exception(5), AbandonedError)
        with budget.reserved(50):
            assert budget.used == 100


def test_what_never_fits_is_refused() -> None:
    budget = PixelBudget(2**20)
    with (
        pytest.raises(UserError, match="decoding it can take 2 MiB, and 1 MiB is the limit"),
        budget.reserved(2**21),
    ):
        pass
    with pytest.raises(UserError, match="limit=0: must be above 0"):
        PixelBudget(0)


SIDE = 300
DEEP = np.random.default_rng(0).integers(0, 4096, (SIDE, SIDE), dtype=np.uint16)
SCALED = {"bits": 12, "RescaleSlope": 2, "RescaleIntercept": -1024}


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _tiff(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, photometric="rgb")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "channels", "window"),
    [
        (dicom_file(DEEP, bits=12), 1, (0, 4095)),
        (dicom_file(DEEP, **SCALED, PixelPaddingValue=0), 1, (0, 4095)),
        (dicom_file(DEEP, **SCALED, WindowCenter=40, WindowWidth=400), 1, "voi"),
        (dicom_file(DEEP, **SCALED, PixelPaddingValue=0, WindowCenter=40, WindowWidth=400), 1, "voi"),
        (nibabel.Nifti1Image(DEEP.astype(np.int16)[:, :, None], np.eye(4)).to_bytes(), 1, (0, 4095)),
        (_tiff(np.stack([DEEP] * 3, 2)), 3, (0, 4095)),
        (_tiff(np.stack([DEEP] * 3, 2)), 1, (0, 4095)),
        (_npy(np.zeros((SIDE, SIDE, 5))), 5, (0, 1)),
        (_npy(np.zeros((SIDE, SIDE), np.float32)), 1, (0, 1)),
        (_npy(np.zeros((SIDE, SIDE, 6), np.uint8)), 6, (0, 1)),
    ],
)
def test_windowing_takes_no_more_than_its_estimate(data: bytes, channels: int, window: object) -> None:
    preprocessing = Preprocessing(32, channels=channels, window=window, bits=16)
    preprocessing.pixels(data)  # what is imported does not count
    estimate = decoding_bytes(io.BytesIO(data), windowed=True)
    tracemalloc.start()
    preprocessing.pixels(preprocessing.open(data))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak / 1.1 - 60_000 < estimate < 8 * peak
