"""Which images are the same bytes: the size and hash of every file, by which images are known again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from skipnets.data.dataset import ImageDataset

# 16 bytes: among a billion images, two different ones agree with a probability of 10⁻²¹.
_DIGEST_BYTES = 16
# Images that a thread takes at once: handing over each would take longer than hashing a small one.
_AT_ONCE = 64


class Content(NamedTuple):
    """What distinguishes an image's content from any other's.

    Attributes:
        size: Of its file in bytes, or of its pixels in memory; -1 where the file cannot be read.
        hash: BLAKE2b in hexadecimal digits, with "#2" for the second page of a file.
    """

    size: int
    hash: str


def digest(data: bytes) -> str:
    """BLAKE2b of an image's bytes, in hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()


def contents(
    dataset: ImageDataset,
    *,
    of_sizes: Container[int] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[Content]:
    """The content of every image, read by several threads.

    Args:
        dataset: Of any size.
        of_sizes: Only files of these sizes are read; of others the hash stays "".
        progress: Called with the number of images done and their total.
    """
    if dataset.contents is not None:
        return dataset.contents

    def of_part(start: int) -> list[Content]:
        part = range(start, min(start + _AT_ONCE, len(dataset)))
        return [_content(dataset, index, of_sizes) for index in part]

    with ThreadPoolExecutor(8) as pool:
        found: list[Content] = []
        for part in pool.map(of_part, range(0, len(dataset), _AT_ONCE)):
            found += part
            if progress is not None:
                progress(len(found), len(dataset))
        return found


def _content(dataset: ImageDataset, index: int, of_sizes: Container[int] | None) -> Content:
    if dataset.images is not None:
        data = dataset.images[index].tobytes()
    else:
        path = dataset.file(index)
        try:
            if (
                dataset.members is None
                and of_sizes is not None
                and (size := path.stat().st_size) not in of_sizes
            ):
                return Content(size, "")
            if not path.is_file():  # reading from a pipe may never end
                return Content(-1, "")
            data = path.read_bytes() if dataset.members is None else dataset.members[index].read(path)
        except OSError:
            return Content(-1, "")
    page = 0 if dataset.pages is None else int(dataset.pages[index])
    return Content(len(data), of_page(digest(data), page))


def of_page(file_hash: str, page: int) -> str:
    """The hash of a page, counted from 0, from that of its file."""
    return f"{file_hash}#{page + 1}" if page else file_hash


def repeated(known: Sequence[Content]) -> Iterator[list[int]]:
    """The positions of images with equal content, for each content that occurs more than once."""
    positions: dict[Content, list[int]] = {}
    for position, content in enumerate(known):
        if content.hash:
            positions.setdefault(content, []).append(position)
    return (same for same in positions.values() if len(same) > 1)
