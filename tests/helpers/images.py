"""Images as bytes: saved by Pillow, written without it, and such that declare more than they hold."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def animated_webp(width: int, height: int) -> bytes:
    """An animation of one frame of one pixel on a canvas of any size, in some hundred bytes."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1), "red").save(file, "WEBP", lossless=True)
    frame = file.getvalue()[12:]  # the chunk VP8L

    def chunk(name: bytes, data: bytes) -> bytes:
        return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)

    def three(value: int) -> bytes:
        return value.to_bytes(3, "little")

    animated = b"\x02\0\0\0"
    head = chunk(b"VP8X", animated + three(width - 1) + three(height - 1))
    place = three(0) + three(0) + three(0) + three(0) + three(100) + b"\0"
    chunks = head + chunk(b"ANIM", bytes(6)) + chunk(b"ANMF", place + frame)
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def declaring(data: bytes, width: int, height: int) -> bytes:
    """An AVIF or HEIC file with a box that says another size than its stream."""
    at = data.index(b"ispe") + 8
    assert data.count(b"ispe") == 1
    return data[:at] + struct.pack(">II", width, height) + data[at + 8 :]


def png(pixels: np.ndarray, color_type: int, size: tuple[int, int] | None = None) -> bytes:
    """A 16-bit PNG written after the specification, independently of Pillow."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    width, height = size or (pixels.shape[1], pixels.shape[0])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """The file that Pillow writes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# EXIF 2.32, tag 274: which side of the scene the stored rows and columns begin at.
STORED = {
    1: lambda seen: seen,
    2: lambda seen: seen[:, ::-1],
    3: lambda seen: seen[::-1, ::-1],
    4: lambda seen: seen[::-1],
    5: lambda seen: seen.swapaxes(0, 1),
    6: lambda seen: np.rot90(seen),
    7: lambda seen: seen[::-1, ::-1].swapaxes(0, 1),
    8: lambda seen: np.rot90(seen, -1),
}
