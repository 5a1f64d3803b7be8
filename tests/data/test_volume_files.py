"""Signals and volumes in files, against what numpy and nibabel wrote."""

from __future__ import annotations

import gzip
import io
import itertools
import struct
import tracemalloc
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from skipnets.data import volume_files
from skipnets.data.decoding import ImageDecodeError, Page, read_values
from skipnets.data.volume_files import read_volume, read_volume_header

RANDOM = np.random.default_rng(0)
# From the patient's left to right, from back to front, from foot to head.
BODY = RANDOM.integers(-1000, 1000, (5, 6, 7)).astype(np.int16)
ORIENTATIONS = [
    "".join(codes)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for codes in itertools.product(*order)
]


def nifti(codes: str = "RAS", zooms: tuple[float, ...] = (1, 1, 1)) -> bytes:
    """The body with its axes stored as these codes say, such as "LPS"; its voxels' sides are the body's."""
    transform = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    affine = np.diag([*zooms, 1]) @ inv_ornt_aff(transform, BODY.shape)
    return nibabel.Nifti1Image(apply_orientation(BODY, transform), affine).to_bytes()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def test_nifti_volumes_are_turned_however_they_are_stored() -> None:
    expected = BODY.transpose(2, 1, 0)[:, ::-1, ::-1]
    for codes in ORIENTATIONS:
        data = nifti(codes, (1, 2, 3))
        volume, header = read_volume(data, 3), read_volume_header(data, 3)
        np.testing.assert_array_equal(volume.array[..., 0], expected, codes)
        assert (header.sides, header.channels, header.bits, header.format) == ((7, 6, 5), 1, 16, "NIfTI")
        assert header.spacing == volume.spacing == (3, 2, 1)
    # A slice of it is what the reader of slices shows.
    np.testing.assert_array_equal(volume.array[3], read_values(nifti()).array)


def test_channels_scales_and_compression_of_nifti(tmp_path: Path) -> None:
    several = RANDOM.normal(size=(3, 4, 5, 2)).astype(np.float32)
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(several, np.eye(4)), path)
    found = read_volume(path, 3, 2).array
    np.testing.assert_array_equal(found, several.transpose(2, 1, 0, 3)[:, ::-1, ::-1])
    scaled = bytearray(nifti())
    scaled[112:120] = struct.pack("<ff", 0.5, 10)  # slope and intercept
    assert read_volume(bytes(scaled), 3).array.max() == pytest.approx(BODY.max() / 2 + 10)
    levels = nibabel.Nifti1Image((BODY % 256).astype(np.uint8), np.eye(4)).to_bytes()
    assert read_volume(levels, 3).array.dtype == np.uint8
    assert read_volume_header(levels, 3).bits == 8


def test_arrays_with_their_channels_last_or_first(tmp_path: Path) -> None:
    volume = RANDOM.normal(size=(4, 5, 6)).astype(np.float32)
    several = RANDOM.normal(size=(4, 5, 6, 3)).astype(np.float32)
    first = np.moveaxis(several, -1, 0)
    for data, channels, expected in (
        (npy(volume), None, volume[..., None]),
        (npy(np.asfortranarray(volume.astype(">f8"))), 1, volume[..., None]),
        (npy(several), None, several),
        (npy(first), None, several),
        (npy(several), 3, several),
        (npz(image=first, mask=volume > 0), 3, several),
        (several, 3, several),
        (io.BytesIO(npy(first)), 3, several),
    ):
        found = read_volume(data, 3, channels).array
        np.testing.assert_array_equal(found, expected)
        assert found.dtype.isnative
        header = read_volume_header(data, 3)
        assert (*header.sides, header.channels) == expected.shape
    # The first axis is no shorter, but as many channels are wanted.
    square = RANDOM.integers(0, 2, (3, 3)) > 0
    np.testing.assert_array_equal(read_volume(square, 1, 3).array, square * 255)
    (tmp_path / "signal.npy").write_bytes(npy(np.arange(9)))
    page = Page(tmp_path / "signal.npy", max_pixels=9)
    np.testing.assert_array_equal(read_volume(page, 1).array[:, 0], np.arange(9))


@pytest.mark.parametrize(
    "text", ["\ufefft,v\n0,1.5\n1,-2\n", "0;1.5\r\n1;-2\r\n", "t\tv\n\n0\t1.5\n1\t-2", ",0\n0,1.5\n1,-2"]
)
def test_tables_of_signals(text: str) -> None:
    np.testing.assert_array_equal(read_volume(text.encode(), 1, 2).array, [[0, 1.5], [1, -2]])
    header = read_volume_header(text.encode(), 1)
    assert (header.sides, header.channels, header.format) == ((2,), 2, "CSV")


def test_one_line_is_a_signal_of_one_channel() -> None:
    np.testing.assert_array_equal(read_volume(b"1,2,3\n", 1, 1).array, [[1], [2], [3]])


def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path) -> None:
    huge = bytearray(npy(np.zeros((2, 2, 2))))
    at = huge.index(b"(2, 2, 2), }")
    huge[at : at + 21] = b"(9999, 9999, 9999), }"
    cases = [
        (np.zeros((5, 5)), 3, r"must be \(D, H, W\) of numbers for a volume, or have channels as well, not"),
        (np.zeros((5, 5, 5)), 1, r"must be \(L,\) of numbers for a signal"),
        (npy(np.array(["a"])), 1, "of numbers for a signal"),
        (npy(np.zeros((0, 2, 2))), 3, r"not float64 of shape \(0, 2, 2\)"),
        (npy(np.zeros((2, 2, 12))).replace(b" 12)", b" -2)"), 3, r"not float64 of shape \(2, 2, -2\)"),
        (np.full((2, 2, 2), np.nan), 3, "has no finite value"),
        (np.array([1, np.nan, -np.inf]), 1, "has infinite values"),
        (npy(np.zeros((2, 2, 2, 2))), 3, "has 2 channels where 1 are expected"),
        (npz(a=np.zeros(3), b=np.zeros(3)), 1, r"holds 2 arrays \(a, b\)"),
        (bytes(huge), 3, "larger than 89,478,485 values, the most that is read; --max-pixels allows more"),
        (npy(np.zeros((9, 9, 9)))[:400], 3, "image: "),
        (nifti()[:600], 3, "image: "),
        (nifti(), 1, "a NIfTI file holds a volume, not a signal"),
        (b"t,v\n", 1, "holds no numbers"),
        (b"", 3, "an empty file"),
        (b"t,v\n0,1\n2,x\n", 1, "could not convert string 'x'"),
        (b"0,1\n2\n", 1, "number of columns"),
        (b"1.5,?\n2,3\n", 1, r"could not convert string '\?'"),  # a bad number, not names
        (b"1.5,\n2,3\n", 1, "could not convert string ''"),
        (b"GIF89a", 3, r"not a volume in a known format \(.npy, .npz, .nii, .nii.gz\)"),
        (tmp_path, 3, "not a file"),
        (tmp_path / "no.npy", 3, "no.npy: no such file"),
    ]
    for source, dims, message in cases:
        with pytest.raises(ImageDecodeError, match=message) as error:
            read_volume(source, dims, 1)
        assert "\n" not in str(error.value)
    with pytest.raises(ImageDecodeError, match=r"larger than 7 values, the most that is read$"):
        read_volume(npy(np.zeros((2, 2, 2))), 3, max_values=7)


def test_what_is_missing_of_a_volume_stays_so_which_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_files, "_said", set())
    brain = RANDOM.normal(size=(4, 5, 6)).astype(np.float32)
    brain[:2] = np.nan
    path = tmp_path / "brain.nii"
    nibabel.save(nibabel.Nifti1Image(brain, np.eye(4)), path)
    for source, expected in ((path, brain.transpose(2, 1, 0)[:, ::-1, ::-1]), (brain, brain)):
        np.testing.assert_array_equal(read_volume(source, 3).array[..., 0], expected)
    [message] = caplog.messages
    assert message.startswith("values that are NaN, such as those of ")
    assert message.endswith("brain.nii: in volumes they count as the lower end of the window")


def test_gaps_of_signals_are_interpolated(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_files, "_said", set())
    ramps = np.stack([np.arange(8) * 2.0, 5 - np.arange(8)], axis=1)
    holed = ramps.copy()
    holed[2:5, 0] = holed[3, 1] = holed[6:, 1] = np.nan
    ramps[6:, 1] = ramps[5, 1]  # nothing lies beyond it
    np.testing.assert_allclose(read_volume(holed, 1).array, ramps)
    table = "\n".join(",".join(map(str, row)) for row in holed).encode()
    np.testing.assert_allclose(read_volume(table, 1).array, ramps)
    assert caplog.messages == ["values that are NaN: in signals they are interpolated"]
    holed[:, 1] = np.nan
    with pytest.raises(ImageDecodeError, match="has no finite value in channel 2"):
        read_volume(holed, 1)


def test_pickled_objects_are_never_loaded() -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, ...]:
            return (pytest.fail, ("unpickled",))

    file = io.BytesIO()
    np.save(file, np.array([Harm()], dtype=object), allow_pickle=True)
    with pytest.raises(ImageDecodeError, match="not object of shape"):
        read_volume(file.getvalue(), 1)


def test_headers_that_inflate_to_much_memory_are_not_read() -> None:
    """A few kilobytes whose header, or what follows it, claims 16 MiB, or its values far behind it."""
    claimed = 2**24
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", claimed) + b" " * claimed)
    plain = nifti()
    extension = b"\1\0\0\0" + struct.pack("<ii", claimed, 0)
    extended = gzip.compress(plain[:348] + extension + bytes(claimed - 8), 1)
    far = bytearray(plain)
    far[108:112] = struct.pack("<f", 2**26 + 16)
    tracemalloc.start()
    try:
        with pytest.raises(ImageDecodeError, match="EOF: reading array header"):
            read_volume_header(archive.getvalue(), 3)
        assert read_volume_header(extended, 3).sides == (7, 6, 5)
        with pytest.raises(ImageDecodeError, match="begins its values after 67,108,880 bytes"):
            read_volume(gzip.compress(far), 3)
        assert tracemalloc.get_traced_memory()[1] < claimed / 8
    finally:
        tracemalloc.stop()


def test_extensions_of_nifti_are_passed_over() -> None:
    image = nibabel.Nifti1Image(BODY, np.eye(4))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"scanned"))
    expected = BODY.transpose(2, 1, 0)[:, ::-1, ::-1]
    for data in (image.to_bytes(), nibabel.Nifti2Image.from_image(image).to_bytes()):
        for stored in (data, gzip.compress(data)):
            np.testing.assert_array_equal(read_volume(stored, 3).array[..., 0], expected)
