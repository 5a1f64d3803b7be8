"""DICOM images: their values in the units of the modality, or as their own display window shows them.

The order is the standard's (PS3.3, C.11): modality LUT or rescale, then a window (VOI LUT), then MONOCHROME1
is inverted. Nothing here passes on what identifies a patient.

H height, W width, C channels.
"""

from __future__ import annotations

import functools
import importlib.util
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from skipnets.data.raster import Header, Values, check_page, check_size, eight_bits
from skipnets.errors import one_line

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES = (".dcm", ".dic", ".dicom")
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_TAGS = (
    *("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *("RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor"),
    *("BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData"),
    *("GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
# Where a file of several frames keeps what may differ between them.
_FRAME_GROUPS = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
_PERSON_TAGS = ("PatientID", "StudyInstanceUID")


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a DICOM file."""
    return head[128:132] == b"DICM"


@functools.cache
def can_read_dicom() -> bool:
    """Whether pydicom is there."""
    return importlib.util.find_spec("pydicom") is not None


class DicomFile:
    """An open DICOM file; a `RasterFile`.

    Args:
        file: Open for reading; it stays open.
        max_pixels: The most that one frame may have.

    Raises:
        ValueError: It holds no image, or cannot be read.
    """

    def __init__(self, file: BinaryIO, *, max_pixels: int) -> None:
        self._file = file
        self._dataset = dataset = _read(file, _TAGS)
        if not dataset.get("Rows") or not dataset.get("Columns"):
            raise ValueError("a DICOM file without an image")
        self.pages = int(dataset.get("NumberOfFrames") or 1)
        self._photometric = str(dataset.get("PhotometricInterpretation") or "MONOCHROME2")
        gray = self._photometric in ("MONOCHROME1", "MONOCHROME2")
        frame = _of_frame(dataset, 0)
        if self._photometric == "PALETTE COLOR":
            self._bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
        else:
            self._bits = int(dataset.get("BitsStored") or dataset.get("BitsAllocated") or 16)
        if self._bits <= 8 and gray and (_is_rescaled(frame) or dataset.get("PixelRepresentation") == 1):
            self._bits = 16  # of few bits, but not from black to white
        self.header = Header(
            width=int(dataset.Columns),
            height=int(dataset.Rows),
            channels=1 if gray else 3,
            bits=self._bits,
            format="DICOM",
            several=self.pages > 1,
            display_window=gray and _has_display_window(frame),
        )
        check_size(self.header.width * self.header.height, max_pixels)

    def read(self, page: int | None, channels: int | None) -> Values:  # noqa: ARG002 - the file says itself
        """One frame in the modality's units, such as Hounsfield units; padding is NaN."""
        frame, stored = self._stored(page)
        if self._bits <= 8:
            array = eight_bits(stored, self._bits)
        elif self.header.channels == 3:
            array = stored
        else:
            array = _in_units(stored, frame)
        return Values(array=array, bits=self._bits, white_is_low=self._white_is_low)

    def read_as_displayed(self, page: int | None) -> NDArray[np.float64]:
        """One frame as the file's own VOI LUT or window shows it: (H, W, C) from 0 (black) to 255 (white).

        Without one, from the lowest to the highest value of the frame.
        """
        from pydicom.pixels.processing import apply_windowing

        frame, stored = self._stored(page)
        if self.header.channels == 3:
            return stored * (255 / (2**self._bits - 1))
        values = _in_units(stored, frame)
        missing = np.isnan(values)
        if missing.all():
            raise ValueError("has no finite value")
        known = np.where(missing, 0, values) if missing.any() else values
        if frame.get("VOILUTSequence"):
            shown = _look_up(known, frame.VOILUTSequence[0])
            low, high = 0.0, 2.0 ** int(frame.VOILUTSequence[0].LUTDescriptor[2]) - 1
        elif _has_display_window(frame):
            with np.errstate(over="ignore"):  # of a sigmoid's tails
                shown = apply_windowing(known, frame)
                low, high = apply_windowing(np.array([-1e30, 1e30]), frame).tolist()
        else:
            shown, low, high = known, float(np.nanmin(values)), float(np.nanmax(values))
        displayed = (shown.astype(np.float64) - low) * (255 / ((high - low) or 1))
        if self._white_is_low:
            displayed = 255 - displayed
        displayed[missing] = 0
        return displayed

    def close(self) -> None:
        """Nothing: the file is the caller's."""

    @property
    def _white_is_low(self) -> bool:
        return self._photometric == "MONOCHROME1"

    def _stored(self, page: int | None) -> tuple[Dataset, NDArray[Any]]:
        """What holds for a frame, and its stored values (H, W, C)."""
        from pydicom.pixels.processing import apply_color_lut
        from pydicom.pixels.utils import pixel_array

        page = check_page(page or 0, self.pages)
        self._file.seek(0)
        try:
            stored = pixel_array(self._file, index=page)
        except (RuntimeError, NotImplementedError) as error:  # no decoder for its compression
            hint = "; python-gdcm decodes lossless JPEG and JPEG-LS" if "plugin" in str(error) else ""
            raise ValueError(f"{one_line(error)}{hint}") from error
        if self._photometric == "PALETTE COLOR":
            stored = apply_color_lut(stored, self._dataset)
        stored = stored[:, :, None] if stored.ndim == 2 else stored
        if stored.shape != (self.header.height, self.header.width, self.header.channels):
            raise ValueError(f"its pixels have the shape {stored.shape}")
        return _of_frame(self._dataset, page), stored


def groups_of(paths: Sequence[Path]) -> list[str]:
    """Which images belong together: those of one patient, as "patient 1", "patient 2", ….

    Numbers follow the order of the paths, so that no identity is written anywhere. Where no or only one
    patient is named, as in de-identified files, studies are groups. What is not DICOM is a group of its own.

    Args:
        paths: Of DICOM and other images.
    """
    people = [_person(path) for path in paths]
    patient_of = {study: patient for patient, study in people if patient}
    word = "patient" if len({patient for patient, _ in people if patient}) > 1 else "study"
    number: dict[tuple[str, str], int] = {}
    groups = []
    for path, (patient, study) in zip(paths, people, strict=True):
        known = (patient or patient_of.get(study, "")) if word == "patient" else study
        key = ("", str(path)) if not (known or study) else (word, known) if known else ("study", study)
        groups.append(f"{word} {number.setdefault(key, len(number) + 1)}")
    return groups


def _person(path: Path) -> tuple[str, str]:
    """Patient and study of a DICOM file; "" and "" of another."""
    try:
        with path.open("rb") as file:
            if not is_dicom(file.read(132)):
                return "", ""
            dataset = _read(file, _PERSON_TAGS)
    except Exception:  # damaged files make pydicom raise nearly anything
        return "", ""
    patient, study = (str(dataset.get(tag) or "").strip() for tag in _PERSON_TAGS)
    return patient, study


def _read(file: BinaryIO, tags: Sequence[str]) -> Dataset:
    """These elements of a file, without its pixels."""
    from pydicom import dcmread

    file.seek(0)
    if _transfer_syntax(file.read(4096)) == _DEFLATED:
        raise ValueError("a deflated DICOM file: it could be of any size, and is not read")
    file.seek(0)
    return dcmread(file, stop_before_pixels=True, specific_tags=list(tags))


def _transfer_syntax(head: bytes) -> bytes:
    """(0002,0010), which is never compressed itself."""
    start = head.find(b"\x02\x00\x10\x00UI", 132)
    if start < 0:
        return b""
    (length,) = struct.unpack_from("<H", head, start + 6)
    return head[start + 8 : start + 8 + length].rstrip(b"\0 ")


def _of_frame(dataset: Dataset, page: int) -> Dataset:
    """The elements that hold for one frame, those of its functional groups included."""
    from pydicom import Dataset

    frame = Dataset()
    frame.update(dataset)
    frame.file_meta = dataset.file_meta
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for groups in (dataset.get("SharedFunctionalGroupsSequence") or [])[:1], per_frame[page : page + 1]:
        for group in groups:
            for name in _FRAME_GROUPS:
                for item in (group.get(name) or [])[:1]:
                    frame.update(item)
    return frame


def _is_rescaled(frame: Dataset) -> bool:
    rescale = (frame.get("RescaleSlope") or 1, frame.get("RescaleIntercept") or 0)
    return bool(frame.get("ModalityLUTSequence")) or rescale != (1, 0)


def _has_display_window(frame: Dataset) -> bool:
    window = (frame.get("WindowCenter"), frame.get("WindowWidth"))
    return bool(frame.get("VOILUTSequence")) or None not in window


def _in_units(stored: NDArray[Any], frame: Dataset) -> NDArray[Any]:
    """Stored values after the modality LUT or rescale; padding is NaN."""
    values = stored
    if frame.get("ModalityLUTSequence"):
        values = _look_up(stored, frame.ModalityLUTSequence[0])
    elif _is_rescaled(frame):
        values = stored * float(frame.get("RescaleSlope") or 1) + float(frame.get("RescaleIntercept") or 0)
    padding = frame.get("PixelPaddingValue")
    if padding is None:
        return values
    limits = (padding, frame.get("PixelPaddingRangeLimit", padding))
    padded = (stored >= min(limits)) & (stored <= max(limits))
    return np.where(padded, np.nan, values) if padded.any() else values


def _look_up(values: NDArray[Any], item: Dataset) -> NDArray[Any]:
    """What a modality or VOI LUT has for each value (PS3.3, C.11.1.1.1).

    pydicom 3.0 counts the entries of a table of 8 bits in 8 bits, and knows no modality LUT of 10 to 15.
    """
    count, first, _ = (int(number) for number in item.LUTDescriptor)
    data = item.LUTData
    if isinstance(data, bytes):
        table = np.frombuffer(data, dtype="<u2" if len(data) >= 2 * (count or 2**16) else "u1")
    else:
        table = np.asarray(data, dtype=np.uint16)
    place = np.clip(np.rint(values).astype(np.int64) - first, 0, (count or 2**16) - 1)
    return table[place]
