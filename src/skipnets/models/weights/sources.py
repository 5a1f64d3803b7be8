"""Read weights from torchvision's tags, Hugging Face repositories, local files and folders.

Nothing is downloaded unless the source names a download. Pickles are read with `weights_only=True`, or with
every class made inert (`skipnets.models.weights.pickled_module`), so opening a file never runs code in it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import safetensors
import torch
import torchvision
from torch import Tensor

from skipnets.errors import UserError, check_path, naming, near_matches, needs_extra, one_line
from skipnets.models.weights.checkpoint import Checkpoint, PublishedInput, PublishedLabels
from skipnets.models.weights.expansion import check_expansion
from skipnets.models.weights.keras import SUFFIXES as KERAS_SUFFIXES
from skipnets.models.weights.keras import read_keras
from skipnets.models.weights.layouts import unwrap
from skipnets.models.weights.lightning import is_lightning
from skipnets.models.weights.pickled_module import Inert, is_archive, module_tensors, read_inert
from skipnets.models.weights.torchxrayvision import completed, is_published, published_file, published_network
from skipnets.probabilities import logit, sigmoid

PICKLED = (".pth", ".pt", ".th", ".ckpt", ".bin", ".tar")
SUFFIXES = (".safetensors", ".npz", *KERAS_SUFFIXES, *PICKLED)
FORMS = (
    "a torchvision tag (imagenet, IMAGENET1K_V1, IMAGENET1K_V2), hf-hub:OWNER/NAME, xrv:NAME, "
    "a .safetensors, .pth, .pt, .th, .ckpt, .h5, .keras or .npz file, or a folder with a model.safetensors"
)

_IMAGENET = PublishedInput(
    size=(224, 224),
    resize_size=256,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    interpolation="bilinear",
)
# Fields of a model file's preprocessing that `PublishedInput` has no names of its own for.
_FURTHER = ("fit", "crop_fraction", "window", "bits", "shown_channels")
# Defaults by stem, for sources that state none.
DEFAULT_INPUT = {
    "imagenet": _IMAGENET,
    "stride1": _IMAGENET,
    "small": replace(_IMAGENET, size=(64, 64), resize_size=None),
    "cifar": replace(_IMAGENET, size=(32, 32), resize_size=None),
    "deep": _IMAGENET,
    "tiered": _IMAGENET,
}


def read_source(source: str | os.PathLike[str], *, model_name: str) -> Checkpoint:
    """Read any source that `weights=` takes.

    Args:
        source: A torchvision tag, `hf-hub:OWNER/NAME[@REVISION]`, `xrv:NAME` of torchxrayvision, or the path
            of a file or folder.
        model_name: The registry name of the model that the weights are for.

    Raises:
        UserError: If there is no such source, it cannot be fetched or read, or it holds no tensors.
    """
    if _is_tag(source):
        return _from_torchvision(source, model_name)
    if isinstance(source, str) and source.startswith("hf-hub:"):
        return _from_hub(source, model_name)
    if is_published(source):
        return replace(_from_file(published_file(str(source))), source=str(source))
    check_path("weights", source, " or a text")
    path = Path(source)
    if path.is_dir():
        if not (path / "model.safetensors").is_file():
            raise UserError(f"weights={path}: must be a folder with a model.safetensors")
        config = path / "config.json"
        return _from_folder(
            str(path), path / "model.safetensors", config if config.is_file() else None, model_name
        )
    _check_is_file(path, source)
    return _from_file(path)


def _check_is_file(path: Path, source: str | os.PathLike[str]) -> None:
    """Refuse a source that is neither a name nor a path that is there.

    Raises:
        UserError: If it is none.
    """
    if not path.is_file():
        if path.suffix.lower() in SUFFIXES and "://" not in str(source):
            raise UserError(f"weights={source}: there is no such file")
        raise UserError(f"weights={source}: must be {FORMS}")


def is_for_images(source: object) -> bool:
    """Whether a source is known by its name to be of a network for images."""
    return _is_tag(source) or is_published(source)


def _is_tag(source: object) -> TypeGuard[str]:
    """Whether a source is one of torchvision's."""
    return isinstance(source, str) and (source == "imagenet" or source.startswith("IMAGENET1K_"))


def network_of(source: str | None) -> tuple[str | None, Mapping[str, Any]]:
    """The network that a source is of, as far as it says, without a download.

    Returns:
        Its registry name, or None, and the fields that `create_model(weights=…)` takes from it where they are
        not given.

    Raises:
        UserError: If there are no published weights of this name, or a file cannot be read.
    """
    if source is not None and is_published(source):
        return published_network(source), {"in_chans": 1}
    if source is None or _is_tag(source) or source.startswith("hf-hub:") or Path(source).is_dir():
        return None, {}
    _check_is_file(Path(source), source)
    checkpoint = _from_file(Path(source))
    return checkpoint.network, checkpoint.fields


def is_cached(model_name: str) -> bool:
    """Whether `weights="imagenet"` would find the model's weights on this machine, without a download."""
    if model_name not in torchvision.models.list_models(module=torchvision.models):
        return False
    return _cached(torchvision.models.get_model_weights(model_name).DEFAULT).is_file()


def _cached(weights: Any) -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])


def _from_torchvision(tag: str, model_name: str) -> Checkpoint:
    if model_name not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(f"weights={tag}: torchvision publishes none for {model_name}; name a file")
    published = torchvision.models.get_model_weights(model_name)
    tags = [weights.name for weights in published]
    if tag not in ("imagenet", *tags):
        raise UserError(f"weights={tag}: must be one of imagenet, {', '.join(tags)} for {model_name}")
    weights = published.DEFAULT if tag == "imagenet" else published[tag]
    cached = _cached(weights)
    try:
        # check_hash compares with the start of the SHA-256 that is part of the file's name.
        # torch.hub announces downloads on standard output, which belongs to results.
        with contextlib.redirect_stdout(sys.stderr):
            tensors = weights.get_state_dict(
                progress=True, check_hash=True, map_location="cpu", weights_only=True
            )
    except OSError as error:
        raise UserError(
            f"weights={tag}: {weights.url} could not be downloaded ({one_line(error)}); "
            f"you can download it to {cached} yourself"
        ) from error
    except Exception as error:  # torch.load raises anything at all on damaged files
        what = "remove it and try again" if cached.exists() else "try again"
        raise UserError(f"weights={tag}: {cached} is damaged ({one_line(error)}): {what}") from error
    preset = weights.transforms()
    return Checkpoint(
        source=f"torchvision {weights}",
        tensors=tensors,
        ordered=True,
        input=PublishedInput(
            size=(preset.crop_size[0], preset.crop_size[-1]),
            resize_size=preset.resize_size[0],
            mean=tuple(preset.mean),
            std=tuple(preset.std),
            interpolation=preset.interpolation.value,
        ),
    )


def _from_hub(source: str, model_name: str) -> Checkpoint:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    with needs_extra("train"):
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError
    name, _, revision = source.removeprefix("hf-hub:").partition("@")
    try:
        config, weights = (
            huggingface_hub.hf_hub_download(repo_id=name, filename=filename, revision=revision or None)
            for filename in ("config.json", "model.safetensors")
        )
    except (OSError, ValueError, EntryNotFoundError) as error:
        raise UserError(
            f"weights={source}: could not be downloaded ({one_line(error)}); must name a repository "
            "OWNER/NAME with config.json and model.safetensors; a local folder with these files works too"
        ) from error
    return _from_folder(source, Path(weights), Path(config), model_name)


def _from_folder(source: str, weights: Path, config_path: Path | None, model_name: str) -> Checkpoint:
    """Read the layout of timm's repositories: config.json says how images are prepared."""
    checkpoint = replace(_from_file(weights), source=source)
    if config_path is None:
        return checkpoint
    try:
        config = json.loads(config_path.read_text(encoding="utf-8-sig"))
        # timm before 0.9 wrote the fields of pretrained_cfg at the top.
        published = _from_timm(config.get("pretrained_cfg", config))
        architecture = config.get("architecture")
    except (OSError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"weights: {config_path} is not a config.json as timm writes it ({one_line(error)})"
        ) from error
    notes = checkpoint.notes
    if architecture not in (None, model_name):
        notes += (
            f'config.json names the architecture "{architecture}", not {model_name}: '
            "parts without weights (pooling, activations) may differ",
        )
    return replace(checkpoint, input=published, notes=notes)


def _from_timm(config: Mapping[str, Any]) -> PublishedInput | None:
    if not {"input_size", "mean", "std"} <= config.keys():
        return None
    _, height, width = config["input_size"]
    return PublishedInput(
        size=(int(height), int(width)),
        resize_size=math.floor(
            min(height, width) / config.get("crop_pct", 0.875)
        ),  # timm's default and rounding
        mean=tuple(map(float, config["mean"])),
        std=tuple(map(float, config["std"])),
        interpolation=str(config.get("interpolation", "bicubic")),
    )


def _from_file(path: Path) -> Checkpoint:
    with naming("weights"):
        return _read_file(path)


def _read_file(path: Path) -> Checkpoint:
    suffix = path.suffix.lower()
    contents: object = None
    notes: tuple[str, ...] = ()
    if suffix == ".safetensors":
        return _from_safetensors(path)
    if suffix in KERAS_SUFFIXES:
        return read_keras(path)
    if suffix == ".npz":
        tensors = _read_npz(path)
    elif suffix in PICKLED:
        contents, skipped = _read_pickle(path)
        tensors, notes = unwrap(contents, str(path))
        notes = (*skipped, *notes)
    else:
        raise UserError(f"{path} is not a weights file{near_matches(suffix, SUFFIXES)}; must be {FORMS}")
    if not tensors:
        raise UserError(f"{path} holds no tensors")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_complex():
            raise UserError(f"{path}: {name} is not a plain tensor of real numbers")
    check_expansion(path, sum(tensor.nbytes for tensor in tensors.values()))
    # A state dict is never sorted by itself, as it has "weight" before "bias".
    ordered = list(tensors) != sorted(tensors)
    checkpoint = Checkpoint(
        source=str(path), tensors=tensors, ordered=ordered, notes=notes, has_state=is_lightning(contents)
    )
    return completed(path, checkpoint)


def _from_safetensors(path: Path) -> Checkpoint:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        own = json.loads(metadata.get("skipnets", "{}"))
        published, labels = _from_own(own.get("preprocessing")), _own_labels(own)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is not a complete safetensors file ({one_line(error)})") from error
    except (ValueError, TypeError, AttributeError, KeyError, ArithmeticError) as error:
        raise UserError(f"{path} has damaged metadata ({one_line(error)})") from error
    if not tensors:
        raise UserError(f"{path} holds no tensors")
    return Checkpoint(
        source=str(path),
        tensors=tensors,
        ordered=False,
        input=published,
        labels=labels,
        task=own.get("task", "single-label") if own else None,
    )


def _from_own(preprocessing: Mapping[str, Any] | None) -> PublishedInput | None:
    """Preprocessing from the metadata of a model file; none of signals and volumes."""
    if preprocessing is None or len(preprocessing["size"]) != 2:
        return None
    height, width = preprocessing["size"]
    further = {"fit": "pad"} | {name: preprocessing[name] for name in _FURTHER if name in preprocessing}
    cropped = further["fit"] == "crop"
    window = further.get("window")
    if window is not None and window != "voi":
        pairs = zip(window, preprocessing["mean"], strict=True)  # one a channel
        further["window"] = tuple((float(low), float(high)) for (low, high), _ in pairs)
    return PublishedInput(
        size=(int(height), int(width)),
        resize_size=round(min(height, width) / preprocessing.get("crop_fraction", 1.0)) if cropped else None,
        mean=tuple(map(float, preprocessing["mean"])),
        std=tuple(map(float, preprocessing["std"])),
        interpolation=str(preprocessing["interpolation"]),
        further=further,
    )


def _own_labels(own: Mapping[str, Any]) -> PublishedLabels | None:
    """Labels from the metadata of a multi-label model file, with thresholds as before calibration."""
    if own.get("task") != "multi-label":
        return None
    names, temperature = tuple(own["classes"]), own.get("temperature", 1.0)
    thresholds = np.array(own.get("thresholds") or [0.5] * len(names), dtype=np.float64)
    if temperature != 1:
        thresholds = sigmoid(temperature * logit(thresholds))
    return PublishedLabels(names=names, thresholds=tuple(thresholds.tolist()))


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with zipfile.ZipFile(path) as archive:
            check_expansion(path, sum(member.file_size for member in archive.infolist()))
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except UserError:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise a dozen kinds on damaged files
        raise UserError(
            f"{path} is not a complete .npz file of numeric arrays ({one_line(error)})"
        ) from error


def _read_pickle(path: Path) -> tuple[object, tuple[str, ...]]:
    """The contents of a file that `torch.save` wrote, and a note if some were not read."""
    try:
        if is_archive(path):
            with path.open("rb") as file:
                reader = torch._C.PyTorchFileReader(file)
                check_expansion(path, sum(map(reader.get_record_size, reader.get_all_records())))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickle protocols and old storages: the outcome says enough
            return torch.load(path, map_location="cpu", weights_only=True), ()
    except UserError:
        raise
    except Exception as error:  # torch.load raises anything at all on files that are not its own
        refused = re.search(r"[Uu]nsupported (?:GLOBAL|global:? GLOBAL) (\S+)|GLOBAL (\S+)", str(error))
        if refused:
            name = refused[1] or refused[2]
            if inert := _read_inert(path, name):
                return inert
            raise UserError(
                f"{path} holds more than tensors ({name}), and unpickling that could run "
                "code: save the state dict alone, or as .safetensors"
            ) from error
        # An UnpicklingError explains at length how to read the file unsafely, which nobody should do.
        why = "" if isinstance(error, pickle.UnpicklingError) else f" ({one_line(error)})"
        raise UserError(f"{path} is not a complete PyTorch checkpoint{why}") from error


def _read_inert(path: Path, refused: str) -> tuple[object, tuple[str, ...]] | None:
    """Contents of the two kinds of files that usually hold more than tensors; None for others.

    Args:
        path: The file.
        refused: The first class or function in it that is neither a tensor nor a plain container.
    """
    try:
        contents = read_inert(path)
        if isinstance(contents, Inert):
            named = refused.startswith("torchxrayvision.models.")
            return (module_tensors(contents), ()) if named else None
    except Exception:  # damaged, or made to be
        return None
    if isinstance(contents, Mapping) and is_lightning(contents):
        note = f"its hyperparameters and callbacks, such as {refused}, were not read"
        return {"state_dict": contents.get("state_dict"), "pytorch-lightning_version": ""}, (note,)
    return None
