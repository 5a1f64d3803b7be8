"""DICOM images against pydicom's own modality LUT and VOI LUT; nothing that identifies a patient is kept."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, RLELossless
from tests.helpers.medical import NAME, PATIENT, STUDY, dicom_dataset, dicom_file, saved

from skipnets.data.decoding import ImageDecodeError, Page, open_image, read_header, read_values
from skipnets.data.dicom import groups_of
from skipnets.data.options import DataOptions
from skipnets.data.preprocessing import Preprocessing
from skipnets.data.sources import find_dataset
from skipnets.errors import install_command

RANDOM = np.random.default_rng(0)
CT = RANDOM.integers(0, 4096, (6, 9), dtype=np.uint16)
SIGNED = RANDOM.integers(-2048, 2048, (6, 9), dtype=np.int16)
RESCALED = {"bits": 12, "RescaleSlope": 2, "RescaleIntercept": -1024}
WINDOW = {"WindowCenter": 1500, "WindowWidth": 1000}


def with_modality_lut(dataset: Dataset) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [4096, 0, 16]
    item.add_new("LUTData", "US", (np.arange(4096) * 7 % 65536).tolist())
    dataset.ModalityLUTSequence = [item]
    return dataset


def with_voi_lut(dataset: Dataset, bits: int) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [4096, 0, bits]
    item.add_new("LUTData", "US", (np.arange(4096) >> (12 - bits)).tolist())
    dataset.VOILUTSequence = [item]
    return dataset


DATASETS = {
    "stored": dicom_dataset(CT, bits=12),
    "rescaled": dicom_dataset(CT, **RESCALED),
    "signed": dicom_dataset(SIGNED, bits=12, RescaleSlope=1, RescaleIntercept=0),
    "float slope": dicom_dataset(CT, bits=12, RescaleSlope="0.37", RescaleIntercept="-3.5"),
    "modality lut": with_modality_lut(dicom_dataset(CT, bits=12)),
}


@pytest.mark.parametrize("kind", DATASETS)
def test_values_are_in_the_units_of_the_modality(kind):
    dataset = DATASETS[kind]
    expected = apply_modality_lut(dataset.pixel_array, dataset)
    for source in (saved(dataset), io.BytesIO(saved(dataset))):
        values = read_values(source)
        np.testing.assert_array_equal(values.array[:, :, 0], expected)
        assert not values.white_is_low
    header = read_header(saved(dataset))
    assert (header.width, header.height, header.channels, header.bits, header.format) == (
        9,
        6,
        1,
        12,
        "DICOM",
    )


VOI = {
    "window": dicom_dataset(CT, bits=12, **WINDOW),
    "rescaled window": dicom_dataset(CT, **RESCALED, **WINDOW),
    "linear exact": dicom_dataset(CT, bits=12, **WINDOW, VOILUTFunction="LINEAR_EXACT"),
    "sigmoid": dicom_dataset(CT, bits=12, **WINDOW, VOILUTFunction="SIGMOID"),
    "several windows": dicom_dataset(CT, bits=12, WindowCenter=[1500, 40], WindowWidth=[1000, 80]),
    "signed": dicom_dataset(SIGNED, bits=12, WindowCenter=40, WindowWidth=400),
    "lut": with_voi_lut(dicom_dataset(CT, bits=12), 10),
    "inverted": dicom_dataset(CT, bits=12, **WINDOW, PhotometricInterpretation="MONOCHROME1"),
}


@pytest.mark.parametrize("kind", VOI)
def test_the_files_own_window_as_pydicom_applies_it(kind):
    dataset = VOI[kind]
    assert read_header(saved(dataset)).display_window
    shown = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(float)
    # The displayed range is the stored one in the modality's units (PS3.3, C.11.2.1.2.1), of a LUT its bits'.
    low, high = (-2048, 2047) if kind == "signed" else (0, 1023) if kind == "lut" else (0, 4095)
    if kind == "rescaled window":
        low, high = low * 2 - 1024, high * 2 - 1024
    expected = (shown - low) / (high - low) * 255
    expected = 255 - expected if kind == "inverted" else expected
    got = Preprocessing((6, 9), channels=1, window="voi", bits=12).pixels(saved(dataset))[:, :, 0]
    np.testing.assert_allclose(got, expected, atol=1e-3)
    assert np.ptp(got) > 100


def test_a_lut_of_8_bits_has_all_its_entries():
    data = saved(with_voi_lut(dicom_dataset(CT, bits=12), 8))
    got = Preprocessing((6, 9), channels=1, window="voi", bits=12).pixels(data)[:, :, 0]
    np.testing.assert_array_equal(got, CT >> 4)


def test_without_a_window_of_its_own_a_frame_is_shown_whole():
    got = Preprocessing((6, 9), channels=1, window="voi", bits=12).pixels(dicom_file(CT, bits=12))
    np.testing.assert_allclose(got[:, :, 0], (CT - CT.min()) / float(np.ptp(CT)) * 255, atol=1e-3)
    with pytest.raises(ImageDecodeError, match="no display window of its own"):
        Preprocessing((6, 9), channels=1, window="voi", bits=16).open(CT)


def test_a_chosen_window_is_in_hounsfield_units_and_monochrome1_is_inverted():
    preprocessing = Preprocessing((6, 9), channels=1, window=(-160, 240), bits=12)
    expected = np.clip((CT * 2.0 - 1024 + 160) / 400, 0, 1) * 255
    got = preprocessing.pixels(dicom_file(CT, **RESCALED))[:, :, 0]
    np.testing.assert_allclose(got, expected, atol=1e-3)
    inverted = preprocessing.pixels(dicom_file(CT, **RESCALED, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_allclose(inverted[:, :, 0], 255 - expected, atol=1e-3)


def test_padding_is_black_and_has_no_value():
    pixels = SIGNED.copy()
    pixels[0] = -2000
    for extra in ({}, {"PhotometricInterpretation": "MONOCHROME1"}):
        data = dicom_file(pixels, bits=16, PixelPaddingValue=-2000, **extra)
        assert np.isnan(read_values(data).array[0]).all()
        shown = Preprocessing((6, 9), channels=1, window=(-2048, 2047), bits=12).pixels(data)
        assert (shown[0] == 0).all()
        assert shown[1:].mean() > 100


def test_frames():
    frames = RANDOM.integers(0, 4096, (5, 6, 9), dtype=np.uint16)
    data = dicom_file(frames, bits=12)
    assert read_header(data).several
    np.testing.assert_array_equal(read_values(data).array[:, :, 0], frames[0])


def test_frames_of_a_file(tmp_path):
    frames = RANDOM.integers(0, 4096, (5, 6, 9), dtype=np.uint16)
    for label in "ab":
        (tmp_path / label).mkdir()
        (tmp_path / label / "cine.dcm").write_bytes(dicom_file(frames, bits=12))
    path = tmp_path / "a" / "cine.dcm"
    np.testing.assert_array_equal(read_values(Page(path, 3)).array[:, :, 0], frames[3])
    with pytest.raises(ImageDecodeError, match=r"cine\.dcm, page 6: there is no such page"):
        read_values(Page(path, 5))
    every = find_dataset(tmp_path, fractions=None, options=DataOptions(page="all"))
    assert len(every) == 10
    np.testing.assert_array_equal(read_values(every.source(7)).array[:, :, 0], frames[2])


def test_values_of_each_frame_of_an_enhanced_file():
    frames = RANDOM.integers(0, 4096, (2, 6, 9), dtype=np.uint16)
    dataset = dicom_dataset(frames, bits=12)
    dataset.PerFrameFunctionalGroupsSequence = []
    for slope in (2, 3):
        group, rescale = Dataset(), Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept = slope, -slope
        group.PixelValueTransformationSequence = [rescale]
        dataset.PerFrameFunctionalGroupsSequence.append(group)
    path = io.BytesIO(saved(dataset))
    np.testing.assert_array_equal(read_values(path).array[:, :, 0], frames[0] * 2.0 - 2)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_pixels(syntax):
    dataset = dicom_dataset(CT.repeat(4, 0).repeat(4, 1), bits=12)
    expected = dataset.pixel_array
    if syntax == JPEG2000Lossless:
        from imagecodecs import jpeg2k_encode
        from pydicom.encaps import encapsulate

        dataset.PixelData = encapsulate(
            [jpeg2k_encode(expected, level=0, bitspersample=12, codecformat="j2k")]
        )
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax
    else:
        dataset.compress(syntax)
    np.testing.assert_array_equal(read_values(saved(dataset)).array[:, :, 0], expected)


def test_8_bits_are_images_like_others():
    gray, color = (RANDOM.integers(0, 256, shape, dtype=np.uint8) for shape in ((6, 9), (6, 9, 3)))
    np.testing.assert_array_equal(np.asarray(open_image(dicom_file(gray))), gray)
    np.testing.assert_array_equal(np.asarray(open_image(dicom_file(color))), color)
    inverted = dicom_file(gray, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(np.asarray(open_image(inverted)), 255 - gray)
    with pytest.raises(ImageDecodeError, match=r"values \(12 bits\) have no fixed range"):
        open_image(dicom_file(CT, bits=12))


@pytest.mark.parametrize("bits", range(2, 9))
def test_few_bits_end_in_white(bits):
    top = 2**bits - 1
    pixels = np.arange(54, dtype=np.uint16).reshape(6, 9) % top
    pixels[0, :2] = top, 0
    shown = np.asarray(open_image(dicom_file(pixels.astype(np.uint8), bits=bits)))
    np.testing.assert_allclose(shown, pixels / top * 255, atol=0.5)
    assert shown.max() == 255
    # Of what is allocated beyond the stored bits, nothing belongs to the pixel (PS3.5, 8.1.1).
    beyond = dicom_file(pixels | np.uint16(0x100), bits=bits)
    np.testing.assert_array_equal(np.asarray(open_image(beyond)), shown)


def test_what_is_no_image_is_one_line(tmp_path):
    report = dicom_dataset(CT)
    del report.Rows, report.Columns, report.PixelData
    with pytest.raises(ImageDecodeError, match="a DICOM file without an image"):
        read_values(saved(report))
    with pytest.raises(ImageDecodeError, match="image: "):
        read_values(dicom_file(CT)[:-40])
    bomb = dicom_dataset(CT, Rows=60000, Columns=60000)
    with pytest.raises(ImageDecodeError, match="larger than 89,478,485 pixels"):
        read_values(saved(bomb))
    head = dicom_file(CT)
    start = head.index(struct.pack("<HH2sH", 2, 16, b"UI", 20))
    uid = DeflatedExplicitVRLittleEndian.encode()
    deflated = head[:start] + struct.pack("<HH2sH", 2, 16, b"UI", len(uid)) + uid + head[start + 28 :]
    with pytest.raises(ImageDecodeError, match="a deflated DICOM file"):
        read_values(deflated)


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("skipnets.data.dicom.can_read_dicom", lambda: False)
    monkeypatch.setattr("skipnets.data.sources.can_read_dicom", lambda: False)
    with pytest.raises(ImageDecodeError, match="a DICOM file; to read it: pip install"):
        read_values(dicom_file(CT))
    for label in "ab":
        (tmp_path / label).mkdir()
        open_image(CT).save(tmp_path / label / "x.png")
        (tmp_path / label / "y.dcm").write_bytes(dicom_file(CT))
    listing = find_dataset(tmp_path, fractions=None).listing
    assert listing.passed_over == {f".dcm ({install_command('medical')})": 2}


def plant(root: Path, people: list[tuple[str, str]]) -> None:
    for index, (patient, study) in enumerate(people):
        folder = root / "ab"[index % 2]
        folder.mkdir(exist_ok=True)
        # Without a suffix, as archives write them.
        data = dicom_file(CT + np.uint16(index), PatientID=patient, StudyInstanceUID=study)
        (folder / f"IM{index:04}").write_bytes(data)


def test_patients_are_groups_by_number(tmp_path):
    plant(tmp_path, [(f"{PATIENT}-{index // 4}", f"{STUDY}.{index // 2}") for index in range(24)])
    dataset = find_dataset(tmp_path)
    assert dataset.groups is not None
    people = [pydicom.dcmread(dataset.file(index)).PatientID for index in range(24)]
    assert len(set(dataset.groups)) == 6
    assert len(set(zip(people, dataset.groups, strict=True))) == 6
    assert all(group.startswith("patient ") for group in dataset.groups)
    splits_of = {group: set(dataset.splits[dataset.groups == group]) for group in dataset.groups}
    assert all(len(splits) == 1 for splits in splits_of.values())
    dataset.write_splits(tmp_path / "splits.csv")
    written = (tmp_path / "splits.csv").read_text() + " ".join(dataset.listing.notes)
    assert not any(secret in written for secret in (NAME, PATIENT, STUDY))
    assert "patient identifiers, numbered" in " ".join(dataset.listing.notes)


def test_studies_are_groups_where_patients_have_one_name(tmp_path):
    plant(tmp_path, [("ANONYMOUS", f"{STUDY}.{index // 4}") for index in range(8)])
    paths = sorted(path for path in tmp_path.rglob("IM*"))
    groups = groups_of([*paths, tmp_path / "other.png"])
    assert len(set(groups)) == 3
    assert groups[-1] == "study 3"
    # Given splits stay as they are, with a warning.
    assert len(set(groups_of([paths[0]]))) == 1


def test_one_patient_alone_is_no_group_but_a_warning(tmp_path):
    plant(tmp_path, [(PATIENT, STUDY)] * 8)
    dataset = find_dataset(tmp_path)
    assert dataset.groups is None
    assert any("all DICOM files are of one patient" in warning for warning in dataset.listing.warnings)


def test_patients_across_given_splits_are_a_warning(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        plant(tmp_path / split, [(f"{PATIENT}-{index // 2}", STUDY) for index in range(4)])
    warnings = find_dataset(tmp_path).listing.warnings
    assert any("2 patients or studies lie in several of the given splits" in warning for warning in warnings)
