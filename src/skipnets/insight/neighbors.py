"""Search by example: the images whose embeddings are nearest to those of a query. Needs no torch.

Every vector is compared with every query. Below a million images that takes seconds, and reading the images
takes so much longer that an index of approximate neighbors would gain nothing.

Shapes: N images, Q queries, F features.
"""

from __future__ import annotations

import base64
import html
import io
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from skipnets.axes import INPUTS
from skipnets.batch_prediction import fingerprint
from skipnets.classifier import Classifier, as_classifier
from skipnets.data.loading import evaluation_batches
from skipnets.errors import UserError, check_at_least_1, listed
from skipnets.evaluation.tables import check_table_path, write_table
from skipnets.files import atomic_path
from skipnets.inputs import named_sources
from skipnets.insight.cells import CELL, INK, SOFT_INK, find_font, fitted, short_names, truncated
from skipnets.insight.planes import shown_image
from skipnets.probabilities import NOT_FINITE
from skipnets.tables import Display, make_table
from skipnets.terminal import printable

if TYPE_CHECKING:
    from rich.table import Table

    from skipnets.data.decoding import Source
    from skipnets.data.preprocessing import Preprocessing
    from skipnets.inputs import Images

__all__ = ["Neighbor", "Search", "check_search_output", "nearest", "search"]

_LOG = logging.getLogger("skipnets")
_KEY = "skipnets-index"
_TABLES = (".csv", ".jsonl", ".parquet")
_COLUMNS = 5  # of neighbors on a sheet
_GAP = 14
_TEXT = 44
_QUERIES_AT_ONCE = 16

_Stamp = tuple[int, int]  # size, and time of change in ns


@dataclass(frozen=True, kw_only=True)
class Neighbor:
    """An image that was found.

    Attributes:
        source: Its path, or "[3]" for the fourth image where that is not a path.
        similarity: Cosine of the angle between its embedding and the query's, from -1 to 1.
    """

    source: str
    similarity: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Search(Display):
    """What a search found.

    Attributes:
        queries: Names of the Q queries.
        neighbors: For each query the nearest images, best first.
        images: Number of images that were searched.
        failures: Name → reason, of the images that could not be read.
        sources: Name → image, of those that were found, to draw them.
        query_sources: The same of the queries.
        preprocessing: How they are opened.
    """

    queries: tuple[str, ...]
    neighbors: tuple[tuple[Neighbor, ...], ...]
    images: int
    failures: dict[str, str]
    sources: Mapping[str, Source]
    query_sources: Mapping[str, Source]
    preprocessing: Preprocessing

    def to_dict(self) -> dict[str, Any]:
        """The results as plain values for JSON."""
        return {
            "images": self.images,
            "queries": [
                {"query": query, "neighbors": [vars(found) for found in row]}
                for query, row in zip(self.queries, self.neighbors, strict=True)
            ],
            "failures": self.failures,
        }

    def columns(self) -> dict[str, list[Any]]:
        """Columns with one row for each image found: query, rank, path, similarity."""
        rows = [
            (query, rank, found.source, found.similarity)
            for query, row in zip(self.queries, self.neighbors, strict=True)
            for rank, found in enumerate(row, start=1)
        ]
        names = ("query", "rank", "path", "similarity")
        return {name: [row[index] for row in rows] for index, name in enumerate(names)}

    def tables(self) -> list[Table]:
        """Tables that `print` and notebooks show."""
        return [
            make_table(
                {INPUTS[self.preprocessing.dims].removesuffix("s"): "left", "similarity": "right"},
                [(found.source, f"{found.similarity:.3f}") for found in row],
                title=query,
            )
            for query, row in zip(self.queries, self.neighbors, strict=True)
        ]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a contact sheet (.png, .html) or a table (.csv, .jsonl, .parquet) atomically.

        Raises:
            UserError: If the path ends otherwise, or cannot be written.
        """
        check_search_output(path)
        suffix = Path(path).suffix.lower()
        if suffix in _TABLES:
            write_table(path, self.columns())
            return
        with atomic_path(path) as temporary:
            if suffix == ".png":
                self.sheet().save(temporary)
            else:
                temporary.write_text(self.page(), "utf-8", errors="backslashreplace")

    def sheet(self) -> Image.Image:
        """A contact sheet: in each row a query and, to its right, the images found with their similarity."""
        groups = [
            [row[start : start + _COLUMNS] for start in range(0, max(len(row), 1), _COLUMNS)]
            for row in self.neighbors
        ]
        columns = min(max((len(row) for row in self.neighbors), default=0), _COLUMNS)
        step = CELL + _GAP
        size = (_GAP + (columns + 1) * step + _GAP, _GAP + sum(map(len, groups)) * (CELL + _TEXT))
        sheet = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(sheet)
        names = self._names()
        top = _GAP

        def place(name: str, source: Source, left: int, note: str) -> None:
            image = self._open(source)
            sheet.paste(image, (left, top + CELL - image.height))
            caption = truncated(draw, printable(names[name]), 14)
            draw.text((left, top + CELL + 4), caption, fill=INK, font=find_font(14))
            draw.text((left, top + CELL + 22), note, fill=SOFT_INK, font=find_font(12))

        for query, lines in zip(self.queries, groups, strict=True):
            place(query, self.query_sources[query], _GAP, "query")
            draw.line((_GAP + CELL + _GAP, top, _GAP + CELL + _GAP, top + CELL), fill=SOFT_INK)
            for line in lines:
                for index, found in enumerate(line, start=1):
                    note = f"similarity {found.similarity:.3f}"
                    place(found.source, self.sources[found.source], 2 * _GAP + index * step, note)
                top += CELL + _TEXT
        return sheet

    def page(self) -> str:
        """A page with the images in it, which needs no other file and opens no connection."""
        names = self._names()

        def figure(name: str, source: Source, note: str, kind: str = "") -> str:
            title, short = html.escape(printable(name)), html.escape(printable(names[name]))
            return (
                f'<figure{kind}><img src="{_data_uri(self._open(source))}" alt="{title}">'
                f'<figcaption title="{title}">{short}<span>{note}</span></figcaption></figure>'
            )

        sections = "\n".join(
            f"<section>{figure(query, self.query_sources[query], 'query', ' class=query')}<div>"
            + "\n".join(
                figure(found.source, self.sources[found.source], f"similarity {found.similarity:.3f}")
                for found in row
            )
            + "</div></section>"
            for query, row in zip(self.queries, self.neighbors, strict=True)
        )
        kind = INPUTS[self.preprocessing.dims]
        return _PAGE.format(kind=kind, count=f"{self.images:,}", sections=sections)

    def _names(self) -> dict[str, str]:
        """What each image is called: with its folder, which is the class where each class has one."""
        paths = [*self.queries, *(found.source for row in self.neighbors for found in row)]
        return short_names(paths, folders=1)

    def _open(self, source: Source) -> Image.Image:
        return fitted(shown_image(self.preprocessing, source).convert("RGB"))


def search(
    model: str | os.PathLike[str] | Classifier,
    images: Images,
    *,
    query: Images,
    count: int = 10,
    index: str | os.PathLike[str] | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Search:
    """Find the images that are most similar to others, by the cosine of their embeddings.

    A query is not found itself, if it is a file among the images.

    Args:
        model: A model file, a run folder, an export, or a classifier.
        images: The images to search, as for `Classifier.predict`.
        query: One image or several, to each of which the nearest are looked for.
        count: How many images to find for each query.
        index: A .safetensors file that keeps the embeddings: only images that are new or have changed are
            embedded the next time, whichever part of them is searched. It is written anew where the model is
            another one, or was changed in memory.
        batch_size: Images per forward pass.
        workers: Threads that read images; None uses one per core.
        progress: Called after every batch with the number of images done and their total.

    Raises:
        UserError: If a query cannot be read, no image can, or the index is another kind of file; with an
            index, if the model's file was replaced since the classifier was loaded from it.

    Examples:
        >>> found = search("runs/cats", "photos", query="a.jpg", count=5)
        >>> found.neighbors[0][0].source, found.neighbors[0][0].similarity
        >>> found.save("similar.html")
    """
    check_at_least_1(count=count, batch_size=batch_size, workers=workers)
    classifier = as_classifier(model)
    # Dictionaries, so that an image that is named twice is taken once.
    sources = dict(named_sources(images, classifier.preprocessing))
    queries = dict(named_sources(query, classifier.preprocessing))
    if not sources:
        raise UserError("images: must name at least one")
    if not queries:
        raise UserError("query: must name at least one image")

    def embed(
        wanted: Mapping[str, Source], report: Callable[[int, int], object] | None
    ) -> tuple[list[str], NDArray[np.float32], dict[str, str]]:
        return _embed(classifier, wanted, batch_size=batch_size, workers=workers, progress=report)

    asked, query_vectors, unreadable = embed(queries, None)
    if unreadable:
        name, reason = next(iter(unreadable.items()))
        raise UserError(f"query: {reason if name in reason else f'{name}: {reason}'}")
    by = "" if index is None else f"{fingerprint(classifier)} {classifier.tta}"
    kept = _Index.empty() if index is None else _Index.read(Path(index), by)
    # Taken before the images are read: one that changes meanwhile is embedded again the next time.
    stamps = {} if index is None else {name: _stamp(source) for name, source in sources.items()}
    known = kept.still_valid(stamps)
    names, vectors, failures = embed(
        {name: source for name, source in sources.items() if name not in known}, progress
    )
    if index is not None:
        kept.add(Path(index), by, {name: stamps[name] for name in names}, vectors)
    if known:
        rows = np.array(list(known.values()))
        names = [*known, *names]
        vectors = np.concatenate([kept.vectors[rows], vectors]) if len(vectors) else kept.vectors[rows]
    if not names:
        raise UserError(f"images: none can be read: {next(iter(failures.values()))}")
    own = _positions_of(asked, names)
    similarity, positions = nearest(vectors, query_vectors, count, leave_out=own)
    neighbors = tuple(
        tuple(
            Neighbor(source=names[position], similarity=float(value))
            for value, position in zip(values, found, strict=True)
            if math.isfinite(value)
        )
        for values, found in zip(similarity, positions, strict=True)
    )
    if alone := [query for query, row in zip(asked, neighbors, strict=True) if not row]:
        _LOG.warning("no image but the query itself was searched: %s", listed(alone))
    found_names = {found.source for row in neighbors for found in row}
    return Search(
        queries=tuple(asked),
        neighbors=neighbors,
        images=len(names),
        failures=failures,
        sources={name: sources[name] for name in found_names},
        query_sources=queries,
        preprocessing=classifier.preprocessing,
    )


def nearest(
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    count: int,
    *,
    leave_out: Sequence[int | None] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The vectors with the largest cosine similarity to each query; of equal ones the first.

    Args:
        vectors: (N, F); one that is zero has similarity 0 to all.
        queries: (Q, F).
        count: How many to find; at most N are.
        leave_out: For each query the position of a vector that is not to be found.

    Returns:
        Similarities (Q, count) in falling order, -inf for one that was left out, and positions (Q, count).

    Raises:
        UserError: If a vector, or its length in float32, is not finite.
    """
    count = min(count, len(vectors))
    # One divided by the length, rather than a copy of all vectors divided by theirs; zero stays zero.
    lengths = _lengths(vectors)
    for name, found in (("vectors", lengths), ("queries", _lengths(queries))):
        if not np.isfinite(found).all():
            raise UserError(f"{name}: must be finite; row {np.flatnonzero(~np.isfinite(found))[0]} is not")
    scales = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    similarities = np.empty((len(queries), count), np.float32)
    positions = np.empty((len(queries), count), np.int64)
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        products = _normalized(queries[start : start + _QUERIES_AT_ONCE]) @ vectors.T * scales
        for row, product in enumerate(products, start=start):
            if leave_out is not None and (own := leave_out[row]) is not None:
                product[own] = -np.inf
            least = np.partition(product, -count)[-count]
            candidates = np.flatnonzero(product >= least)
            order = candidates[np.argsort(-product[candidates], kind="stable")][:count]
            similarities[row], positions[row] = product[order], order
    return similarities, positions


def check_search_output(path: str | os.PathLike[str]) -> None:
    """Check, before the work, that `Search.save` can write this kind of file.

    Raises:
        UserError: If it cannot.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".png", ".html", *_TABLES):
        raise UserError(f"output={path}: must end in .png, .html, {', '.join(_TABLES[:-1])} or {_TABLES[-1]}")
    if suffix in _TABLES:
        check_table_path(path, "output")


def _embed(
    classifier: Classifier,
    sources: Mapping[str, Source],
    *,
    batch_size: int,
    workers: int | None,
    progress: Callable[[int, int], object] | None,
) -> tuple[list[str], NDArray[np.float32], dict[str, str]]:
    """Names of the images that can be embedded, their embeddings (n, F), and why the others cannot."""
    names: list[str] = []
    vectors: list[NDArray[np.float32]] = []
    failures: dict[str, str] = {}
    done = 0
    for batch in evaluation_batches(
        sources.items(),
        classifier.preprocessing,
        batch_size=batch_size,
        workers=workers,
        normalize=classifier.runtime.input_type == "float32",
    ):
        are_finite: Iterator[bool] = iter(())
        if len(batch.positions):
            embedded = classifier.embed_batch(batch.inputs)
            finite = np.isfinite(_lengths(embedded))
            vectors.append(embedded[finite])
            are_finite = iter(finite.tolist())
        for name, reason in batch.outcomes():
            if reason is not None:
                failures[name] = reason
            elif next(are_finite):
                names.append(name)
            else:
                failures[name] = f"{name}: {NOT_FINITE}"
        done += len(batch.names)
        if progress is not None:
            progress(done, len(sources))
    return names, np.concatenate(vectors) if vectors else np.empty((0, 0), np.float32), failures


@dataclass(frozen=True, eq=False)
class _Index:
    """Embeddings in a file.

    Attributes:
        images: Absolute path → its position, and its stamp when it was embedded.
        vectors: (N, F).
    """

    images: Mapping[str, tuple[int, _Stamp]]
    vectors: NDArray[np.float32]

    @classmethod
    def empty(cls) -> _Index:
        """Without any embeddings."""
        return cls({}, np.empty((0, 0), np.float32))

    @classmethod
    def read(cls, path: Path, model: str) -> _Index:
        """Read a file; it is empty where there is none, or one of another model.

        Raises:
            UserError: If it is another kind of file, or damaged.
        """
        if path.suffix.lower() != ".safetensors":
            raise UserError(f"index={path}: must end in .safetensors")
        if not path.exists():
            return cls.empty()
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                about = json.loads((file.metadata() or {})[_KEY])
                if about["model"] != model:
                    _LOG.info("%s holds embeddings by another model: all images are embedded anew", path)
                    return cls.empty()
                vectors = file.get_tensor("vectors")
            rows = [(str(name), (int(size), int(changed))) for name, size, changed in about["images"]]
        except (OSError, safetensors.SafetensorError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"index={path}: is no index of embeddings; choose another name") from error
        if vectors.ndim != 2 or len(vectors) != len(rows) or vectors.dtype != np.float32:
            raise UserError(f"index={path}: is damaged; delete it to embed the images anew")
        finite = np.isfinite(_lengths(vectors)).tolist()  # older versions kept others, too
        return cls(
            {
                _absolute(name): (position, stamp)
                for position, (name, stamp) in enumerate(rows)
                if finite[position]
            },
            vectors,
        )

    def still_valid(self, stamps: Mapping[str, _Stamp | None]) -> dict[str, int]:
        """The images that have not changed, with the positions of their vectors.

        Args:
            stamps: Of each image; None for what is no file.
        """
        found = ((name, stamp, self.images.get(_absolute(name))) for name, stamp in stamps.items())
        return {name: kept[0] for name, stamp, kept in found if kept is not None and kept[1] == stamp}

    def add(
        self, path: Path, model: str, stamps: Mapping[str, _Stamp | None], vectors: NDArray[np.float32]
    ) -> None:
        """Write a file with further embeddings; without those of files that are gone or have changed.

        Args:
            path: The file.
            model: What embedded the images.
            stamps: Of each further image; None for what is no file, which is not kept.
            vectors: (n, F) theirs.
        """
        further = {
            _absolute(name): (position, stamp)
            for position, (name, stamp) in enumerate(stamps.items())
            if stamp is not None
        }
        if not further:
            return
        kept = {
            name: (position, stamp)
            for name, (position, stamp) in self.images.items()
            if name not in further and not _is_outdated(name, stamp)
        }
        vectors = vectors[[position for position, _ in further.values()]]
        if kept:
            vectors = np.concatenate([self.vectors[[position for position, _ in kept.values()]], vectors])
        images = [[name, *stamp] for name, (_, stamp) in (kept | further).items()]
        with atomic_path(path) as temporary:
            metadata = {_KEY: json.dumps({"model": model, "images": images})}
            temporary.write_bytes(safetensors.numpy.save({"vectors": vectors}, metadata=metadata))


def _absolute(name: str) -> str:
    """The same for spellings of a path, and from every folder."""
    return os.path.abspath(name)  # noqa: PTH100 - resolves no links


def _stamp(source: Source) -> _Stamp | None:
    """Size and time of change of a file; None for what is none."""
    if not isinstance(source, str | os.PathLike):
        return None
    try:
        status = Path(source).stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _is_outdated(path: str, stamp: _Stamp) -> bool:
    """Whether a file is gone or has changed; not where its disk just does not answer."""
    try:
        status = Path(path).stat()
    except OSError as error:
        return isinstance(error, FileNotFoundError | NotADirectoryError)
    return (status.st_size, status.st_mtime_ns) != stamp


def _lengths(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, F) vectors → (N,) lengths, not finite where a vector is not, or is too long for float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        lengths: NDArray[np.float32] = np.sqrt(np.einsum("nf,nf->n", vectors, vectors))
    return lengths


def _positions_of(queries: Iterable[str], names: Sequence[str]) -> list[int | None]:
    """Where each query is among the images, if both are the same file."""
    positions = {
        os.path.realpath(name): position for position, name in enumerate(names) if Path(name).is_file()
    }
    return [positions.get(os.path.realpath(query)) for query in queries]


def _normalized(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(…, F) vectors of length 1; zero stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions: NDArray[np.float32] = np.divide(
        vectors, lengths, out=np.zeros(vectors.shape, np.float32), where=lengths > 0
    )
    return directions


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Similar {kind}</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif }}
body {{ margin: 0 auto; padding: 1rem; max-width: 1400px }}
h1 {{ font-size: 1.3rem }}
section {{ display: grid; grid-template-columns: clamp(88px, 25%, 180px) 1fr; gap: 1rem; margin: 1.5rem 0 }}
section > div {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(80px, 1fr)); gap: .8rem }}
@media (min-width: 800px) {{
  section > div {{ grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)) }}
}}
figure {{ margin: 0; min-width: 0 }}
.query {{ border-right: 1px solid color-mix(in srgb, currentColor 25%, transparent); padding-right: 1rem }}
img {{ width: 100%; image-rendering: auto }}
figcaption {{ overflow: hidden; text-overflow: ellipsis; white-space: nowrap; font-size: .85rem }}
figcaption span {{ display: block; opacity: .7 }}
</style>
<h1>Similar {kind} among {count}</h1>
{sections}
</html>
"""
