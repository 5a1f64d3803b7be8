"""DICOM files as scanners write them, made by pydicom."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

NAME, PATIENT, STUDY = "Garibaldi^Giuseppe", "MRN-1807-0704", "1.2.826.0.1.3680043.8.498.777"


def dicom_dataset(pixels: NDArray[Any], *, bits: int = 0, **elements: Any) -> FileDataset:
    """A DICOM image of these pixels: (H, W), (frames, H, W) or (H, W, 3).

    Args:
        pixels: Integers.
        bits: BitsStored; 0 for all that are allocated.
        elements: Further elements by keyword, or other values of those that are here.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = (
        SecondaryCaptureImageStorage,
        meta.MediaStorageSOPInstanceUID,
    )
    dataset.PatientName, dataset.PatientID, dataset.StudyInstanceUID = NAME, PATIENT, STUDY
    color = pixels.ndim == 3 and pixels.shape[2] == 3
    if pixels.ndim == 3 and not color:
        dataset.NumberOfFrames = len(pixels)
    dataset.Rows, dataset.Columns = pixels.shape[:2] if color else pixels.shape[-2:]
    dataset.SamplesPerPixel = 3 if color else 1
    if color:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "RGB" if color else "MONOCHROME2"
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = np.ascontiguousarray(pixels).tobytes()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def saved(dataset: Dataset) -> bytes:
    """The file."""
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def dicom_file(pixels: NDArray[Any], **elements: Any) -> bytes:
    """The file of a `dicom_dataset`."""
    return saved(dicom_dataset(pixels, **elements))
