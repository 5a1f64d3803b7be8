"""How large the images in an AVIF or HEIC file are: what its boxes declare, and what its AV1 streams say.

An AV1 decoder allocates what the stream says, whatever the file's boxes do. libheif, which reads HEIC, holds
its decoder to the boxes itself.

Sources: ISO/IEC 14496-12 (boxes), ISO/IEC 23008-12 (images in them), and the AV1 bitstream specification
(https://aomediacodec.github.io/av1-spec/), sections 5.3 to 5.9.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, pairwise

__all__ = ["StoredSizes", "is_heic", "is_iso_image", "stored_sizes"]

# ISO/IEC 23008-12, annex B.
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
_HEVC = (b"hvc1", b"hev1")
_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"iprp", b"ipco", b"meta")
_OBU_SEQUENCE_HEADER = 1
_OBUS_WITH_FRAME_HEADER = (3, 6, 7)
_KEY_FRAME, _SWITCH_FRAME = 0, 3
_SELECT = 2  # of an option of a sequence: each frame says
# Boxes, items, frames and headers together: a file of a few megabytes could have millions, or name the same
# bytes often.
_MOST_PARTS = 100_000


@dataclass(frozen=True)
class StoredSizes:
    """The largest images of a file, in pixels.

    Attributes:
        declared: By a box.
        coded: By an AV1 stream; 0 where there is none.
        scaled: Whether a stream says another size than every box, so that what it holds is scaled.
        full_color: Whether a stream has color at its full resolution, or 12 bits.
    """

    declared: int
    coded: int
    scaled: bool
    full_color: bool


def is_heic(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a HEIC image, or may be one."""
    return head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS


def is_iso_image(head: bytes) -> bool:
    """Whether a file that begins with these bytes is an AVIF or HEIC image."""
    return is_heic(head) or (head[4:8] == b"ftyp" and head[8:12] in _AVIF_BRANDS)


def stored_sizes(data: bytes) -> StoredSizes:
    """The largest images of an AVIF or HEIC file, from its boxes and from the headers of its AV1 streams.

    Args:
        data: The whole file.

    Raises:
        ValueError: It is damaged.
    """
    view, parts = memoryview(data), _Parts(2 * len(data))
    boxes = list(_boxes(view, 0, len(data), parts))
    declared = {
        (_number(view, box.start + 4, 4), _number(view, box.start + 8, 4))
        for box in boxes
        if box.kind == b"ispe"
    }
    coded: set[tuple[int, int]] = set()
    full_color = False
    for stream in chain(_items(view, boxes, parts), _tracks(view, boxes, parts)):
        for width, height, profile in _frames(stream, parts):
            coded.add((width, height))
            full_color = full_color or profile > 0
    return StoredSizes(
        declared=max((width * height for width, height in declared), default=0),
        coded=max((width * height for width, height in coded), default=0),
        scaled=not coded <= declared,
        full_color=full_color,
    )


class _Parts:
    """Counts what is looked at, so that a small file does not take long."""

    def __init__(self, most_bytes: int) -> None:
        self._left, self._bytes_left = _MOST_PARTS, most_bytes

    def count(self, parts: int = 1, size: int = 0) -> None:
        """So many more, with so many bytes.

        Raises:
            ValueError: They are too many.
        """
        self._left -= parts
        self._bytes_left -= size
        if min(self._left, self._bytes_left) < 0:
            raise ValueError("damaged: has more parts than an image can have")


@dataclass(frozen=True)
class _Box:
    """A box's name and where its content lies; `parent` is where its parent's does."""

    kind: bytes
    start: int
    end: int
    parent: int


def _boxes(
    view: memoryview, start: int, end: int, parts: _Parts, parent: int = 0, depth: int = 0
) -> Iterator[_Box]:
    """All boxes, those within others included."""
    while start + 8 <= end:
        parts.count()
        size, header = _number(view, start, 4), 8
        if size == 1:
            size, header = _number(view, start + 8, 8), 16
        size = size or end - start  # up to the end
        if size < header or start + size > end:
            raise ValueError("damaged: a box is larger than what it lies in")
        kind = bytes(view[start + 4 : start + 8])
        box = _Box(kind, start + header, start + size, parent)
        yield box
        if kind in _CONTAINERS and depth < 8:
            inner = box.start + (4 if kind == b"meta" else 0)
            yield from _boxes(view, inner, box.end, parts, box.start, depth + 1)
        start += size


def _number(view: memoryview, start: int, size: int) -> int:
    if start + size > len(view):
        raise ValueError("damaged: a box ends too early")
    return int.from_bytes(view[start : start + size], "big")


class _Fields:
    """Reads a box's fields one after the other."""

    def __init__(self, view: memoryview, box: _Box) -> None:
        self._view, self._at, self._end = view, box.start, box.end
        self.version = self(1)
        self(3)

    def __call__(self, size: int) -> int:
        """The next number, of so many bytes."""
        if self._at + size > self._end:
            raise ValueError("damaged: a box ends too early")
        self._at += size
        return _number(self._view, self._at - size, size)


def _items(view: memoryview, boxes: list[_Box], parts: _Parts) -> Iterator[Iterable[bytes]]:
    """The AV1 streams of images.

    Raises:
        ValueError: An image in HEVC has no size, to which libheif would hold its decoder.
    """
    for meta in boxes:
        if meta.kind == b"meta":
            parts.count(len(boxes))  # all of them are looked through
            within = [box for box in boxes if box.parent == meta.start]
            kinds = dict(_kinds(view, within, parts))
            with_size = set(_with_size(view, boxes, within, parts))
            if any(kind in _HEVC and number not in with_size for number, kind in kinds.items()):
                raise ValueError("damaged: an image does not declare its size")
            idat = next((box.start for box in within if box.kind == b"idat"), 0)
            for box in within:
                if box.kind == b"iloc":
                    for number, extents in _located(view, box, idat, parts):
                        if kinds.get(number) == b"av01":
                            parts.count(size=sum(map(len, extents)))
                            yield [b"".join(extents)]


def _kinds(view: memoryview, within: list[_Box], parts: _Parts) -> Iterator[tuple[int, bytes]]:
    """Each item's number and what it is."""
    for box in within:
        if box.kind == b"iinf":
            count_size = 2 if _number(view, box.start, 1) == 0 else 4
            for entry in _boxes(view, box.start + 4 + count_size, box.end, parts):
                fields = _Fields(view, entry)
                number = fields(4 if fields.version >= 3 else 2)
                fields(2)
                yield number, fields(4).to_bytes(4, "big")


def _with_size(view: memoryview, boxes: list[_Box], within: list[_Box], parts: _Parts) -> Iterator[int]:
    """The numbers of the items that have a size."""
    for group in (box for box in within if box.kind == b"iprp"):
        parts.count(len(boxes) * (1 + sum(box.parent == group.start for box in boxes)))
        lists = [box for box in boxes if box.parent == group.start]
        properties = [
            box.kind for list_ in lists if list_.kind == b"ipco" for box in boxes if box.parent == list_.start
        ]
        for box in lists:
            if box.kind == b"ipma":
                fields = _Fields(view, box)
                long = _number(view, box.start + 3, 1) & 1
                for _ in range(fields(4)):
                    parts.count()
                    number = fields(4 if fields.version >= 1 else 2)
                    for _ in range(fields(1)):
                        index = fields(2) & 0x7FFF if long else fields(1) & 0x7F
                        if 0 < index <= len(properties) and properties[index - 1] == b"ispe":
                            yield number


def _located(view: memoryview, box: _Box, idat: int, parts: _Parts) -> Iterator[tuple[int, list[memoryview]]]:
    """Each item's number and the pieces of its data, of a box that says where items are."""
    fields = _Fields(view, box)
    sizes = fields(2)
    offset_size, length_size, base_size, index_size = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    for _ in range(fields(4 if fields.version >= 2 else 2)):
        number = fields(4 if fields.version >= 2 else 2)
        in_idat = fields.version > 0 and fields(2) & 15 == 1
        fields(2)
        base = fields(base_size) + (idat if in_idat else 0)
        extents = []
        for _ in range(fields(2)):
            parts.count()
            if fields.version > 0:
                fields(index_size)
            start, length = base + fields(offset_size), fields(length_size)
            extents.append(view[start : start + length if length else None])
        yield number, extents


def _tracks(view: memoryview, boxes: list[_Box], parts: _Parts) -> Iterator[Iterable[bytes]]:
    """The AV1 streams of animations: of each track, the data of its frames."""
    for table in boxes:
        if table.kind == b"stbl":
            parts.count(len(boxes))  # all of them are looked through
            within = {box.kind: box for box in boxes if box.parent == table.start}
            entries = within.get(b"stsd")
            if entries is not None and bytes(view[entries.start + 12 : entries.start + 16]) == b"av01":
                yield _samples(view, within, parts)


def _samples(view: memoryview, table: Mapping[bytes, _Box], parts: _Parts) -> Iterator[bytes]:
    """The data of a track's frames, from the boxes that say where they are."""
    offset_size = 8 if b"co64" in table else 4
    try:
        chunks = _Fields(view, table[b"co64" if offset_size == 8 else b"stco"])
        runs, sizes = _Fields(view, table[b"stsc"]), _Fields(view, table[b"stsz"])
    except KeyError:
        raise ValueError("damaged: an animation without its frames") from None
    count = chunks(4)
    parts.count(count)
    offsets = [chunks(offset_size) for _ in range(count)]
    count = runs(4)
    parts.count(count)
    spans = [(runs(4), runs(4), runs(4)) for _ in range(count)]
    each, left = sizes(4), sizes(4)
    for (first, in_chunk, _), (after, _, _) in pairwise([*spans, (len(offsets) + 1, 0, 0)]):
        for start in offsets[max(first - 1, 0) : max(after - 1, 0)]:
            for _ in range(min(in_chunk, left)):
                left -= 1
                size = each or sizes(4)
                parts.count(size=size)
                yield bytes(view[start : start + size])
                start += size


class _Bits:
    """Reads bits, the highest of each byte first."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def __call__(self, count: int = 1) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("damaged: an AV1 header ends too early")
        return self._value >> self._left & (1 << count) - 1


@dataclass(frozen=True)
class _Sequence:
    """What an AV1 sequence header says, as far as sizes depend on it; names are the specification's.

    Attributes:
        profile: 0 for color at half the resolution in up to 10 bits.
        width: In pixels, of a frame that does not say its own.
        height: Likewise.
        most: Width and height of the largest frame that can say its own.
        reduced: Whether no frame can.
        presentation_bits: Of a frame's time, in its header.
        force_screen_content_tools: 0, 1 or `_SELECT`.
        force_integer_mv: Likewise.
        frame_id_bits: In a frame's header.
    """

    profile: int
    width: int
    height: int
    most: tuple[int, int]
    reduced: bool
    presentation_bits: int
    force_screen_content_tools: int
    force_integer_mv: int
    frame_id_bits: int


def _frames(stream: Iterable[bytes], parts: _Parts) -> Iterator[tuple[int, int, int]]:
    """Width, height and profile of an AV1 stream's sequences, and of frames that may be larger."""
    sequence = None
    for data in stream:
        at = 0
        while at < len(data):
            parts.count()
            head = data[at]
            kind, extended, sized = head >> 3 & 15, head >> 2 & 1, head >> 1 & 1
            at += 1 + extended
            size, at = _leb128(data, at) if sized else (len(data) - at, at)
            bits = _Bits(data[at : at + min(size, 256)])  # headers are shorter
            at += size
            if kind == _OBU_SEQUENCE_HEADER:
                sequence = _sequence(bits)
                yield sequence.width, sequence.height, sequence.profile
            elif kind in _OBUS_WITH_FRAME_HEADER and sequence and _says_its_size(bits, sequence):
                yield *sequence.most, sequence.profile


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = 0
    for place in range(8):
        if at >= len(data):
            break
        byte, at = data[at], at + 1
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at
    raise ValueError("damaged: an AV1 header ends too early")


def _sequence(bits: _Bits) -> _Sequence:
    profile, _, reduced = bits(3), bits(), bits()
    presentation_bits = delay_bits = frame_id_bits = 0
    tools, integer_mv = _SELECT, _SELECT
    if reduced:
        bits(5)
    else:
        equal_interval = 0
        if bits():  # timing_info_present_flag
            bits(64)
            equal_interval = bits()
            if equal_interval:
                _skip_uvlc(bits)
            if bits():  # decoder_model_info_present_flag
                delay_bits = bits(5) + 1
                bits(37)
                presentation_bits = bits(5) + 1
        presentation_bits = 0 if equal_interval else presentation_bits
        with_display_delay = bits()
        for _ in range(bits(5) + 1):  # operating points
            bits(12)
            if bits(5) > 7:
                bits()
            if delay_bits and bits():
                bits(2 * delay_bits + 1)
            if with_display_delay and bits():
                bits(4)
    width_bits, height_bits = bits(4) + 1, bits(4) + 1
    width, height = bits(width_bits) + 1, bits(height_bits) + 1
    if not reduced:
        if bits():  # frame_id_numbers_present_flag
            frame_id_bits = bits(4) + bits(3) + 3
        bits(3 + 4)
        if bits():  # enable_order_hint
            bits(2)
        tools = _SELECT if bits() else bits()
        if tools:
            integer_mv = _SELECT if bits() else bits()
    return _Sequence(
        profile=profile,
        width=width,
        height=height,
        most=(2**width_bits, 2**height_bits),
        reduced=bool(reduced),
        presentation_bits=presentation_bits,
        force_screen_content_tools=tools,
        force_integer_mv=integer_mv,
        frame_id_bits=frame_id_bits,
    )


def _skip_uvlc(bits: _Bits) -> None:
    zeros = 0
    while not bits():
        zeros += 1
    bits(zeros if zeros < 32 else 0)


def _says_its_size(bits: _Bits, sequence: _Sequence) -> bool:
    """Whether a frame has a size of its own (frame_size_override_flag)."""
    if sequence.reduced or bits():  # or it shows an existing frame
        return False
    kind, shown = bits(2), bits()
    if shown:
        bits(sequence.presentation_bits)
    else:
        bits()
    if kind != _SWITCH_FRAME and not (kind == _KEY_FRAME and shown):
        bits()
    bits()
    tools = bits() if sequence.force_screen_content_tools == _SELECT else sequence.force_screen_content_tools
    if tools and sequence.force_integer_mv == _SELECT:
        bits()
    bits(sequence.frame_id_bits)
    return kind == _SWITCH_FRAME or bool(bits())
