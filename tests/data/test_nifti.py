"""NIfTI slices, against arrays that nibabel wrote in every orientation."""

from __future__ import annotations

import gzip
import itertools

import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from skipnets.data.decoding import ImageDecodeError, Page, open_image, read_header, read_values
from skipnets.data.options import DataOptions
from skipnets.data.sources import find_dataset

RANDOM = np.random.default_rng(0)
# From the patient's left to right, from back to front, from foot to head.
BODY = RANDOM.integers(-1000, 1000, (5, 6, 7)).astype(np.int16)


def stored(codes: str, zooms: tuple[float, float, float] = (1, 1, 1)) -> nibabel.Nifti1Image:
    """The body with its axes stored as these codes say, such as "LPS"."""
    transform = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    affine = np.diag([*zooms, 1]) @ inv_ornt_aff(transform, BODY.shape)
    return nibabel.Nifti1Image(apply_orientation(BODY, transform), affine)


ORIENTATIONS = [
    "".join(codes)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for codes in itertools.product(*order)
]


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_axial_slices_however_they_are_stored(codes):
    data = stored(codes).to_bytes()
    header = read_header(data)
    assert (header.width, header.height, header.bits, header.several) == (5, 6, 16, True)
    # The patient's right at the left of the image, the front at the top.
    np.testing.assert_array_equal(read_values(data).array[:, :, 0], BODY[::-1, ::-1, 3].T)


def test_acquired_slices_where_they_are_thick(tmp_path):
    for zooms, expected in (((5, 1, 1), BODY[2, ::-1, ::-1].T), ((1, 5, 1), BODY[::-1, 3, ::-1].T)):
        np.testing.assert_array_equal(read_values(stored("LPI", zooms).to_bytes()).array[:, :, 0], expected)


@pytest.mark.parametrize("compressed", [False, True])
def test_pages_are_slices_and_volumes(tmp_path, compressed):
    volumes = RANDOM.random((4, 5, 3, 2)).astype(np.float32)
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / ("v.nii.gz" if compressed else "v.nii")
    nibabel.save(nibabel.Nifti1Image(volumes, np.diag([1, 1, 3, 1])), path)
    for page in range(6):
        expected = volumes[::-1, ::-1, page % 3, page // 3].T
        np.testing.assert_array_equal(read_values(Page(path, page)).array[:, :, 0], expected)
    with pytest.raises(ImageDecodeError, match="no such page"):
        read_values(Page(path, 6))
    every = find_dataset(tmp_path, fractions=None, options=DataOptions(page="all"))
    assert len(every) == 6
    assert len(set(every.groups)) == 1


def test_scaled_values_and_other_kinds():
    image = nibabel.Nifti2Image(BODY, np.eye(4))
    np.testing.assert_array_equal(read_values(image.to_bytes()).array[:, :, 0], BODY[::-1, ::-1, 3].T)
    scaled = nibabel.Nifti1Image(BODY.astype(np.float64) / 7, np.eye(4))
    scaled.set_data_dtype(np.int16)
    expected = nibabel.Nifti1Image.from_bytes(scaled.to_bytes()).get_fdata()[::-1, ::-1, 3].T
    np.testing.assert_array_equal(read_values(scaled.to_bytes()).array[:, :, 0], expected)
    flat = nibabel.Nifti1Image(BODY[:, :, 0], np.eye(4))
    np.testing.assert_array_equal(read_values(flat.to_bytes()).array[:, :, 0], BODY[::-1, ::-1, 0].T)
    color = np.zeros((4, 5, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    color["G"] = RANDOM.integers(0, 256, color.shape)
    got = np.asarray(open_image(nibabel.Nifti1Image(color, np.eye(4)).to_bytes()))
    np.testing.assert_array_equal(got[:, :, 1], color["G"][::-1, ::-1, 1].T)


def test_what_is_not_read():
    with pytest.raises(ImageDecodeError, match="not of numbers"):
        read_values(nibabel.Nifti1Image(BODY.astype(np.complex64), np.eye(4)).to_bytes())
    with pytest.raises(ImageDecodeError, match="not of slices"):
        read_values(nibabel.Nifti1Image(np.zeros((2, 2, 2, 2, 2), np.int16), np.eye(4)).to_bytes())
    header = nibabel.Nifti1Header()
    header.set_data_shape((30000, 30000, 1))
    header["magic"], header["vox_offset"] = b"n+1", 352
    for data in (header.binaryblock + bytes(8), gzip.compress(header.binaryblock + bytes(8))):
        with pytest.raises(ImageDecodeError, match="larger than 89,478,485 pixels"):
            read_values(data)


def test_without_nibabel_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("skipnets.data.nifti.can_read_nifti", lambda: False)
    with pytest.raises(ImageDecodeError, match="a NIfTI file; to read it: pip install"):
        read_values(stored("RAS").to_bytes())
