"""Benchmark a classifier in each runtime against torchvision's network, in one run.

Candidates are timed in turn, so that other load on the machine affects all of them alike. Each turn begins
with an untimed call, during which threads of the previous candidate go idle. Outputs are compared before
anything is timed.

Shapes: N batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skipnets.axes import INPUTS
from skipnets.deploy.timing import Candidate, Timing, alternate
from skipnets.errors import UserError, check_at_least_1
from skipnets.files import atomic_path
from skipnets.machine import library_versions, processor, usable_cores
from skipnets.models.accounting import macs
from skipnets.models.custom import CustomConfig
from skipnets.models.family import network_graph
from skipnets.models.registry import config_from_dict
from skipnets.runtimes.exported import export_format
from skipnets.tables import Display, make_table

if TYPE_CHECKING:
    from rich.table import Table

    from skipnets.classifier import Classifier

__all__ = ["Speed", "SpeedTable", "compare_speeds"]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One row of a speed table.

    Attributes:
        candidate: Name of the candidate.
        baseline: Whether it is a baseline, available without this project.
        precision: "fp32" or "int8".
        batch_size: Images per call.
        seconds: Median time of a call.
        quartiles: Lower and upper quartile of the times.
        calls: Time of every call, one per round.
        ratio: Ratio of its time to that of the fastest 32-bit baseline at this batch size (`Timing.ratio`);
            None if there is none.
        limit_share: Share of the median time that the MACs alone would take at the rate of a large float32
            matrix product with the same threads; it may exceed 1 for int8, whose instructions do more. None
            where the MACs are not known.
    """

    candidate: str
    baseline: bool
    precision: str
    batch_size: int
    seconds: float
    quartiles: tuple[float, float]
    calls: tuple[float, ...]
    ratio: float | None
    limit_share: float | None


@dataclass(frozen=True, kw_only=True)
class SpeedTable(Display):
    """Times of all candidates, and the machine that they were measured on.

    Attributes:
        model: The classifier that was measured.
        size: Height and width of the images; length of signals; depth, height and width of volumes.
        macs: Multiply-accumulates of convolutions and linear layers, for one image; None of an export of a
            network that is no part of this package.
        sgemm_macs: Multiply-accumulates per second of a large float32 matrix product, in the same run.
        machine: Processor, threads, system and versions.
        rows: One per candidate and batch size.
    """

    model: str
    size: tuple[int, ...]
    macs: int | None
    sgemm_macs: float
    machine: dict[str, str]
    rows: tuple[Speed, ...]

    def to_dict(self) -> dict[str, Any]:
        """The table as plain values for JSON."""
        return asdict(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON.

        Raises:
            UserError: If it cannot be written.
        """
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=2) + "\n", "utf-8")

    def tables(self) -> list[Table]:
        """Tables that `print` and notebooks show, the fastest candidate first."""
        sides = "×".join(map(str, self.size))
        headings = ("batch", "candidate", "ms", "quartiles", "vs. fastest baseline", "of peak")
        table = make_table(
            {name: "left" if name == "candidate" else "right" for name in headings},
            (
                [
                    str(row.batch_size),
                    row.candidate,
                    _milliseconds(row.seconds),
                    "–".join(map(_milliseconds, row.quartiles)),
                    "" if row.ratio is None else f"{row.ratio:.2f}",
                    "" if row.limit_share is None else f"{row.limit_share:.0%}",
                ]
                for row in sorted(self.rows, key=lambda row: (row.batch_size, row.seconds))
            ),
            title=(
                f"{self.model}, {INPUTS[len(self.size)]} of {sides}{_millions(self.macs)}\n"
                f"{self.machine['processor']}, {self.machine['threads']} threads, "
                f"{self.sgemm_macs / 1e9:,.0f} billion MACs/s in SGEMM"
            ),
        )
        return [table]

    def _row(self, candidate: str, batch_size: int) -> Speed:
        for row in self.rows:
            if (row.candidate, row.batch_size) == (candidate, batch_size):
                return row
        raise KeyError((candidate, batch_size))

    def ratio(self, candidate: str, other: str, batch_size: int) -> float:
        """Ratio of one candidate's time to another's, by `Timing.ratio`.

        Raises:
            KeyError: If one was not measured.
        """
        return Timing(seconds=self._row(candidate, batch_size).calls).ratio(
            Timing(seconds=self._row(other, batch_size).calls)
        )


def compare_speeds(
    model: str | os.PathLike[str] | Classifier,
    *,
    batch_sizes: Sequence[int] = (1, 16),
    seconds: float = 20.0,
    threads: int | None = None,
    compiled: bool = True,
    int8: bool = True,
    calibration: str | os.PathLike[str] | None = None,
) -> SpeedTable:
    """Benchmark a classifier in every installed runtime, with torchvision's network as the baseline.

    An export is timed alone, in its own runtime. The baseline of a network that is no part of this package,
    or that torchvision does not have, is the network itself.

    Args:
        model: A model file, a run folder, an export, or a classifier.
        batch_sizes: Images per call; each value is measured.
        seconds: Minimum time to measure each batch size.
        threads: CPU threads of every candidate; None uses one per processor.
        compiled: Include torch.compile, which first takes a minute or two.
        int8: Include 8-bit graphs.
        calibration: Labeled images for quantization; None uses generated images, which suffice for timing
            but not for use.

    Raises:
        UserError: For impossible options, or if the outputs of two candidates differ.
    """
    from skipnets.classifier import as_classifier
    from skipnets.deploy.candidates import candidates_for, exported_candidate

    if not batch_sizes or min(batch_sizes) < 1:
        raise UserError(f"batch_size={list(batch_sizes)}: must be at least 1")
    if not (seconds >= 0 and math.isfinite(seconds)):
        raise UserError(f"seconds={seconds}: must be at least 0")
    check_at_least_1(threads=threads)
    threads = threads or usable_cores()
    with _threads_restored():
        # PyTorch has the weights that the other runtimes are made of; an export runs in its own.
        runtime = (
            "auto" if isinstance(model, str | os.PathLike) and export_format(model) is not None else "torch"
        )
        classifier = as_classifier(model, runtime=runtime, device="cpu", threads=threads)
        if classifier.export is not None:
            candidates = [exported_candidate(classifier)]
        else:
            candidates = candidates_for(
                classifier,
                threads=threads,
                compiled=compiled,
                int8=int8,
                calibration=calibration,
            )
        total_macs = _macs(classifier)
        rate = _sgemm_rate(threads)
        rows = [
            row
            for size in batch_sizes
            for row in _measure(
                candidates,
                classifier,
                size,
                seconds=seconds,
                limit=None if total_macs is None else total_macs * size / rate,
            )
        ]
    return SpeedTable(
        model=str(classifier.path or classifier.network),
        size=classifier.preprocessing.size,
        macs=total_macs,
        sgemm_macs=rate,
        machine=machine(threads),
        rows=tuple(rows),
    )


def _macs(classifier: Classifier) -> int | None:
    """Multiply-accumulates of an image; None where only the export of an own network is there."""
    config, size = config_from_dict(classifier.architecture), classifier.preprocessing.size
    if not isinstance(config, CustomConfig):
        graphs = (network_graph(config_from_dict(each)) for each in classifier.architectures)
        return sum(sum(macs(graph, size)) for graph in graphs)
    if classifier.export is not None:
        return None
    from skipnets.models.module_calls import module_macs

    return module_macs(classifier.model, (config.in_chans, *size))


def _milliseconds(seconds: float) -> str:
    """With one decimal, or of less than one with two digits."""
    return f"{1000 * seconds:.1f}" if seconds >= 1e-3 else f"{1000 * seconds:.2g}"


def _millions(count: int | None) -> str:
    """Multiply-accumulates for a title, with all digits that matter of a small network's."""
    if count is None:
        return ""
    return f": {count / 1e6:,.0f} million MACs" if count >= 10**7 else f": {count / 1e6:.2g} million MACs"


def machine(threads: int) -> dict[str, str]:
    """Hardware and software of this machine, to record with a measurement."""
    return {
        "processor": f"{processor()} ({os.cpu_count()} logical)",
        "threads": str(threads),
        "system": platform.platform(),
        "python": platform.python_version(),
        **library_versions(("torch", "torchvision", "onnxruntime", "openvino", "nncf", "skipnets")),
    }


def _measure(
    candidates: Sequence[Candidate],
    classifier: Classifier,
    batch_size: int,
    *,
    seconds: float,
    limit: float | None,
) -> list[Speed]:
    """Time all candidates at one batch size."""
    images = _images(classifier, batch_size)
    _require_equal(candidates, images)
    timings = alternate({each.name: partial(each.predict, images) for each in candidates}, seconds=seconds)
    baselines = [timings[each.name] for each in candidates if each.baseline and each.precision == "fp32"]
    fastest = min(baselines, key=lambda timing: timing.median, default=None)
    return [
        Speed(
            candidate=each.name,
            baseline=each.baseline,
            precision=each.precision,
            batch_size=batch_size,
            seconds=timings[each.name].median,
            quartiles=timings[each.name].quartiles,
            calls=timings[each.name].seconds,
            ratio=None if fastest is None else timings[each.name].ratio(fastest),
            limit_share=None if limit is None else limit / timings[each.name].median,
        )
        for each in candidates
    ]


def _images(classifier: Classifier, batch_size: int) -> NDArray[Any]:
    preprocessing = classifier.preprocessing
    shape = (batch_size, *preprocessing.size, preprocessing.channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    is_normalized_inside = classifier.runtime.input_type == "uint8"
    return preprocessing.planes(pixels) if is_normalized_inside else preprocessing.normalize(pixels)


def _require_equal(candidates: Sequence[Candidate], images: NDArray[Any]) -> None:
    """Check that all candidates compute the same; 8-bit graphs may differ within limits."""
    reference = candidates[0].predict(images)
    scale = float(np.abs(reference).max()) or 1.0
    for each in candidates[1:]:
        difference = float(np.abs(each.predict(images) - reference).max()) / scale
        if not difference <= (1e-3 if each.precision == "fp32" else 1.0):
            raise UserError(
                f"{each.name} does not compute what {candidates[0].name} does: "
                f"logits differ by {difference:.1e} of the largest; nothing was timed"
            )


def _sgemm_rate(threads: int) -> float:
    """Multiply-accumulates per second in a float32 matrix product of 2048 × 2048, the best of ten."""
    import torch

    with _threads_restored():
        torch.set_num_threads(threads)
        size = 2048
        left, right = torch.rand(size, size), torch.rand(size, size)
        timing = alternate({"sgemm": lambda: torch.mm(left, right)}, rounds=10)["sgemm"]
        return size**3 / min(timing.seconds)


@contextlib.contextmanager
def _threads_restored() -> Iterator[None]:
    """Give PyTorch as many threads afterwards as it had: what a caller computes then depends on them."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
