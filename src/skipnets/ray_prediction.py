"""Batch prediction on many machines: the shards of one job as tasks of Ray Data.

Each task is one shard of `predict_to_folder`, so that a task whose machine is lost goes on elsewhere, where
its files end. The output folder must be one that all machines share.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from skipnets.batch_prediction import BatchResult, is_replaced, predict_to_folder, shards_of, summary_of
from skipnets.classifier import Classifier, load
from skipnets.data.streams import Shard, check_addresses
from skipnets.errors import UserError, missing_extra

__all__ = ["predict_with_ray"]

_SHARDS_PER_PROCESSOR = 4
_WITHOUT_GPU = ("native", "openvino")
# A lost machine's lock may outlive it for a moment.
_SECONDS_FOR_LOCK = 60.0


def predict_with_ray(
    model: str | os.PathLike[str],
    addresses: Sequence[str],
    output: str | os.PathLike[str],
    *,
    top_k: int = 1,
    coverage: float | None = None,
    reject: float | None = None,
    batch_size: int = 32,
    runtime: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    precision: str = "auto",
    tta: str = "none",
    workers: int | None = None,
    shards: int | None = None,
    progress: Callable[[BatchResult], None] | None = None,
) -> BatchResult:
    """Classify all images at some addresses on a Ray cluster: that of RAY_ADDRESS, or this machine.

    Args:
        model: A model file, an export or a run folder, at the same path on every machine.
        addresses: As of `predict_to_folder`, at the same paths on every machine.
        output: A folder that all machines share.
        top_k: As of `predict_to_folder`.
        coverage: As of `predict_to_folder`.
        reject: As of `predict_to_folder`.
        batch_size: As of `predict_to_folder`.
        runtime: As of `skipnets.load`.
        device: As of `skipnets.load`, but for "cuda:1", as Ray says which GPU is a task's. Each task on a GPU
            takes one; "auto" means GPUs if the cluster has any and the runtime can use them.
        threads: Processors of each task; None takes one.
        precision: As of `skipnets.load`.
        tta: As of `skipnets.load`.
        workers: Threads of each task that read images; None takes as many as `threads`.
        shards: How many tasks there are; None takes what is in the folder, or four for each processor.
        progress: Called after every shard.

    Raises:
        UserError: As of `predict_to_folder`, if the images are to come from standard input, or if the device
            has a number.
    """
    try:
        import ray
    except ImportError:
        raise missing_extra("ray", "ray") from None
    if "-" in addresses:
        raise UserError("images: cannot come from standard input with engine=ray")
    if device.startswith("cuda:"):
        raise UserError(f"device={device}: must be cuda with engine=ray, which says which GPU is a task's")
    check_addresses(addresses)
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    if shards is None:
        processors = int(resources.get("CPU", 1))
        shards = shards_of(Path(output)) or _SHARDS_PER_PROCESSOR * processors
    task = functools.partial(
        _predict_shard,
        model=os.path.abspath(model),  # noqa: PTH100 - resolves no links
        addresses=[name if "://" in name else os.path.abspath(name) for name in addresses],  # noqa: PTH100
        output=os.path.abspath(output),  # noqa: PTH100
        shards=shards,
        loading={
            "runtime": runtime,
            "device": device,
            "threads": threads or 1,
            "precision": precision,
            "tta": tta,
        },
        predicting={
            "top_k": top_k,
            "coverage": coverage,
            "reject": reject,
            "batch_size": batch_size,
            "workers": workers or threads or 1,
        },
    )
    # Of GPUs that a task does not ask for, Ray hides all or shows all, on which tasks then crowd.
    automatic = device == "auto" and runtime not in _WITHOUT_GPU and resources.get("GPU", 0) >= 1
    gpus = 1 if device == "cuda" or automatic else None
    numbers = ray.data.range(shards, override_num_blocks=shards)
    rows = numbers.map(task, num_cpus=threads or 1, num_gpus=gpus)
    earlier = set(Path(output).glob("part-*.parquet"))
    done = 0
    try:
        for row in rows.iter_rows():
            done += row["rows"]
            if progress is not None:
                progress(BatchResult(rows=done))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, UserError) else error from None
    # By the files: a task that ran again, as its machine was lost after it, reports nothing of its first run.
    return summary_of(sorted(set(Path(output).glob("part-*.parquet")) - earlier))


def _predict_shard(
    row: dict[str, Any],
    *,
    model: str,
    addresses: list[str],
    output: str,
    shards: int,
    loading: dict[str, Any],
    predicting: dict[str, Any],
) -> dict[str, Any]:
    """One task: `row["id"]` is the shard's number, from 0."""
    result = predict_to_folder(
        _loaded(model, **loading),
        addresses,
        output,
        shard=Shard(int(row["id"]) + 1, shards),
        lock_seconds=_SECONDS_FOR_LOCK,
        **predicting,
    )
    return {"rows": result.rows}


def _loaded(model: str, **options: Any) -> Classifier:
    """The classifier, read once in each of Ray's worker processes, and again if its file was replaced.

    Ray gives the processes of one call to the next.
    """
    classifier = _load_once(model, **options)
    if is_replaced(classifier):
        _load_once.cache_clear()
        classifier = _load_once(model, **options)
    return classifier


@functools.lru_cache(1)  # more would hold memory that the next model needs
def _load_once(model: str, **options: Any) -> Classifier:
    return load(model, **options)
