"""Files that declare more than they hold."""

from __future__ import annotations

import io
import struct

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
