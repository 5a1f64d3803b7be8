"""Sizes in AVIF and HEIC files: of the boxes, and of the streams, which may say something else."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image
from tests.helpers.images import declaring

from skipnets.data.decoding import ImageDecodeError, declared_size, decoding_bytes, open_image
from skipnets.data.iso_media import StoredSizes, is_heic, is_iso_image, stored_sizes


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    return Image.effect_noise((width, height), 50).convert(mode)


def avif(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "AVIF", speed=10, **options)
    return file.getvalue()


def heic(image: Image.Image) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file)
    return file.getvalue()


def packed(*fields: tuple[int, int]) -> bytes:
    """Values of so many bits each, one after the other, and zeros up to a whole byte."""
    text = "".join(f"{value:0{bits}b}" for value, bits in fields)
    return bytes(int(text[at : at + 8].ljust(8, "0"), 2) for at in range(0, len(text), 8))


def with_stream(stream: bytes) -> bytes:
    """An AVIF file of 70×50 pixels whose stream is replaced."""
    data = avif(picture(70, 50))
    at = data.index(b"mdat")
    iloc = data.index(b"iloc")
    length_at = data.index(struct.pack(">II", at + 4, len(data) - at - 4), iloc) + 4
    data = data[:length_at] + struct.pack(">I", len(stream)) + data[length_at + 4 :]
    return data[: at - 4] + struct.pack(">I", 8 + len(stream)) + b"mdat" + stream


def unit(kind: int, content: bytes) -> bytes:
    """An AV1 unit that says its size."""
    return bytes([kind << 3 | 2, len(content)]) + content


def test_sizes_of_stills() -> None:
    plain = StoredSizes(declared=70 * 50, coded=70 * 50, scaled=False, full_color=False)
    assert stored_sizes(avif(picture(70, 50))) == plain
    assert stored_sizes(avif(picture(70, 50, "RGBA"))) == plain
    full = stored_sizes(avif(picture(70, 50), subsampling="4:4:4"))
    assert (full.coded, full.full_color) == (70 * 50, True)
    photograph = stored_sizes(heic(picture(128, 64)))
    assert photograph == StoredSizes(declared=128 * 64, coded=0, scaled=False, full_color=False)


@pytest.mark.parametrize("advanced", [{}, {"timing-info": "model"}, {"enable-order-hint": "0"}])
def test_sizes_of_animations(advanced: dict[str, str]) -> None:
    frames = [picture(70, 50, "RGBA") for _ in range(3)]
    animation = avif(
        frames[0], save_all=True, append_images=frames[1:], codec="aom", advanced=advanced, duration=40
    )
    assert Image.open(io.BytesIO(animation)).n_frames == 3
    assert stored_sizes(animation) == stored_sizes(avif(frames[0]))


def test_an_avif_file_costs_what_its_stream_holds() -> None:
    honest = avif(Image.new("RGB", (1000, 900)))
    lying = declaring(honest, 64, 64)
    assert declared_size(lying) == (64, 64)
    assert stored_sizes(lying) == StoredSizes(64 * 64, 1000 * 900, scaled=True, full_color=False)
    assert decoding_bytes(lying) > decoding_bytes(honest) >= 1000 * 900 * 18
    with pytest.raises(ImageDecodeError, match="larger than 899,999 pixels, the most that is read"):
        open_image(lying, max_pixels=899_999)
    # The other way round, the declared size is what the decoder scales to.
    grown = declaring(honest, 2000, 2000)
    assert decoding_bytes(grown) > 2000 * 2000 * 18
    with pytest.raises(ImageDecodeError, match="larger than 3,999,999 pixels"):
        open_image(grown, max_pixels=3_999_999)


def test_nothing_is_decoded_of_what_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.avif"
    path.write_bytes(declaring(avif(Image.new("RGB", (1000, 900))), 64, 64))
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
        with pytest.raises(ImageDecodeError, match="larger than 640,000 pixels"):
            open_image(source, max_pixels=640_000)


def test_libheif_decodes_no_more_than_is_declared() -> None:
    honest = heic(Image.new("RGB", (1000, 900)))
    assert open_image(honest).size == (1000, 900)
    with pytest.raises(ImageDecodeError, match="Security limit exceeded: Image size 1000x"):
        open_image(declaring(honest, 64, 64))
    # Nor of what declares nothing, to which it would not hold its decoder where it is a tile.
    with pytest.raises(ImageDecodeError, match="image: damaged: an image does not declare its size"):
        open_image(honest.replace(b"ispe", b"skip"))


@pytest.mark.parametrize("own_size", [False, True])
def test_frames_may_say_their_own_size(own_size: bool) -> None:
    # A sequence header as the specification has it (5.5.1): no timing, one operating point, sizes of up to
    # 13 and 12 bits, of which 70×50 is the usual; tools for screens and whole motion vectors per frame.
    sequence = packed(
        *((0, 3), (0, 1), (0, 1), (0, 1), (0, 1), (0, 5), (0, 12), (4, 5)),
        *((12, 4), (11, 4), (69, 13), (49, 12), (0, 1)),
        *((0, 3), (0, 4), (0, 1), (1, 1), (1, 1)),
    )
    # A key frame that is shown (5.9.2): show_existing_frame, frame_type, show_frame, disable_cdf_update,
    # allow_screen_content_tools, force_integer_mv, frame_size_override_flag.
    frame = packed((0, 1), (0, 2), (1, 1), (1, 1), (1, 1), (1, 1), (int(own_size), 1), (0, 8))
    sizes = stored_sizes(with_stream(unit(2, b"") + unit(1, sequence) + unit(6, frame)))
    assert sizes.declared == 70 * 50
    assert sizes.coded == (2**13 * 2**12 if own_size else 70 * 50)
    assert sizes.scaled == own_size
    # The same of a frame that is not shown, whose errors are contained: showable_frame, error_resilient_mode.
    frame = packed((0, 1), (1, 2), (0, 1), (1, 1), (0, 1), (0, 1), (0, 1), (int(own_size), 1), (0, 8))
    hidden = stored_sizes(with_stream(unit(1, sequence) + unit(3, frame)))
    assert hidden.coded == sizes.coded


def test_damaged_files() -> None:
    data = avif(picture(70, 50, "RGBA"))
    rng, messages = np.random.default_rng(0), []
    for _ in range(400):
        changed = bytearray(data[: rng.integers(1, len(data) + 1)])
        for at in rng.integers(0, min(len(changed), 500), 3):
            changed[at] = rng.integers(256)
        try:
            stored_sizes(bytes(changed))
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert all(message.startswith("damaged: ") for message in messages)
    with pytest.raises(ImageDecodeError, match="image: damaged: a box is larger than what it lies in"):
        open_image(data[:200])


def test_a_file_cannot_have_millions_of_parts() -> None:
    data = avif(picture(70, 50))
    assert stored_sizes(data + bytes(4)) == stored_sizes(data + b"\0\0\0\x08free") == stored_sizes(data)
    tables = b"\0\0\0\x08stbl" * 3000  # each is looked for in all boxes
    for many in (
        data + b"\0\0\0\x08free" * 110_000,
        with_stream(unit(2, b"") * 110_000),
        data + struct.pack(">I4s", 8 + len(tables), b"moov") + tables,
    ):
        with pytest.raises(ValueError, match="more parts than an image can have"):
            stored_sizes(many)


def test_what_is_looked_at() -> None:
    assert is_iso_image(avif(picture(8, 8))[:12])
    assert not is_heic(avif(picture(8, 8))[:12])
    assert is_heic(heic(picture(64, 64))[:12])
    assert is_iso_image(heic(picture(64, 64))[:12])
    assert not is_iso_image(b"\0\0\0\x18ftypisom")  # a film
    assert not is_iso_image(b"\x89PNG\r\n\x1a\n\0\0\0\r")
