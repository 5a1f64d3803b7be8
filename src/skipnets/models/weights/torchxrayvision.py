"""torchxrayvision's weights for chest X-rays: their files, labels, thresholds and preprocessing.

Cohen et al.: TorchXRayVision, 2022 (arXiv 2111.00595). Each network has 18 outputs; those that it was not
trained for are left out. Which labels are present is the same as there: torchxrayvision rescales
probabilities so that each threshold becomes 0.5 (`op_norm`), here they are compared with the threshold.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from skipnets.errors import UserError, near_matches, one_line
from skipnets.models.weights.checkpoint import Checkpoint, PublishedInput, PublishedLabels

__all__ = ["PREFIX", "PUBLISHED", "completed", "is_published", "published_file", "published_network"]

PREFIX = "xrv:"

LABELS = (
    "Atelectasis",
    "Consolidation",
    "Infiltration",
    "Pneumothorax",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Effusion",
    "Pneumonia",
    "Pleural_Thickening",
    "Cardiomegaly",
    "Nodule",
    "Mass",
    "Hernia",
    "Lung Lesion",
    "Fracture",
    "Lung Opacity",
    "Enlarged Cardiomediastinum",
)
_RELEASE = "https://github.com/mlmed/torchxrayvision/releases/download/v1/"
_THRESHOLDS = "op_threshs"


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """Published weights.

    Args:
        file: Name of the file in the release.
        thresholds: One for each of `LABELS`; None for a label that the network was not trained for.
        size: Height and width of the images in pixels.
    """

    file: str
    thresholds: Sequence[float | None]
    size: int = 224


# fmt: off
PUBLISHED = {
    "densenet121-res224-all": PublishedWeights(
        file="nih-pc-chex-mimic_ch-google-openi-kaggle-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt",
        thresholds=(
            0.07422872, 0.038290843, 0.09814756, 0.0098118475, 0.023601074, 0.0022490358,
            0.010060724, 0.103246614, 0.056810737, 0.026791653, 0.050318155, 0.023985857,
            0.01939503, 0.042889766, 0.053369623, 0.035975814, 0.20204692, 0.05015312,
        ),
    ),
    "densenet121-res224-nih": PublishedWeights(
        file="nih-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt",
        thresholds=(
            0.039117552, 0.0034529066, 0.11396341, 0.0057298196, 0.00045666535, 0.0018880932,
            0.012037827, 0.038744126, 0.0037213727, 0.014730946, 0.016149804, 0.054241467,
            0.037198864, 0.0004403434, None, None, None, None,
        ),
    ),
    "densenet121-res224-pc": PublishedWeights(
        file="pc-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt",
        thresholds=(
            0.031012505, 0.013347598, 0.081435576, 0.001262615, 0.002587246, 0.0035944257,
            0.0023071, 0.055412333, 0.044385884, 0.042766232, 0.043258056, 0.037629247,
            0.005658899, 0.0091741895, None, 0.026507627, None, None,
        ),
    ),
    "densenet121-res224-chex": PublishedWeights(
        file="chex-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt",
        thresholds=(
            0.1988969, 0.05710573, None, 0.0531293, 0.1435217, None,
            None, 0.27212676, 0.07749717, None, 0.19712369, None,
            None, None, 0.09932402, 0.09273402, 0.3270967, 0.10888247,
        ),
    ),
    "densenet121-res224-rsna": PublishedWeights(
        file="kaggle-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt",
        thresholds=(
            None, None, None, None, None, None,
            None, None, 0.13486601, None, None, None,
            None, None, None, None, 0.13511065, None,
        ),
    ),
    "densenet121-res224-mimic_nb": PublishedWeights(
        file="mimic_nb-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt",
        thresholds=(
            0.08558747, 0.011884617, None, 0.0040595434, 0.010733786, None,
            None, 0.118761964, 0.022924708, None, 0.06358637, None,
            None, None, 0.022143636, 0.017476924, 0.1258702, 0.014020768,
        ),
    ),
    "densenet121-res224-mimic_ch": PublishedWeights(
        file="mimic_ch-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt",
        thresholds=(
            0.09121389, 0.010573786, None, 0.005023008, 0.003698257, None,
            None, 0.08001232, 0.037242252, None, 0.05006329, None,
            None, None, 0.019866971, 0.03823637, 0.11303808, 0.0069147074,
        ),
    ),
    "resnet50-res512-all": PublishedWeights(
        file="pc-nih-rsna-siim-vin-resnet50-test512-e400-state.pt",
        size=512,
        thresholds=(
            0.51570356, 0.50444704, 0.53787947, 0.50723547, 0.5025118, 0.5035252,
            0.5038076, 0.51862943, 0.5078151, 0.50724894, 0.5056339, 0.510706,
            0.5053923, 0.5020846, None, 0.5080557, 0.5138526, None,
        ),
    ),
}
# fmt: on


def is_published(source: object) -> bool:
    """Whether a source names published weights, such as `xrv:densenet121-res224-all`."""
    return isinstance(source, str) and source.startswith(PREFIX)


def published_file(source: str) -> Path:
    """The file of published weights, downloaded to torchxrayvision's own cache if it is not there.

    Raises:
        UserError: If there are none of this name, or they cannot be downloaded.
    """
    file = PUBLISHED[_name(source)].file
    path = Path("~/.torchxrayvision/models_data").expanduser() / file
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.redirect_stdout(sys.stderr):
                torch.hub.download_url_to_file(_RELEASE + file, str(path))
        except OSError as error:
            raise UserError(
                f"weights={source}: {_RELEASE}{file} could not be downloaded ({one_line(error)}); "
                f"you can download it to {path} yourself"
            ) from error
    return path


def published_network(source: str) -> str:
    """The registry name of the network of published weights.

    Raises:
        UserError: If there are none of this name.
    """
    return _network(_name(source))


def _name(source: str) -> str:
    name = source.removeprefix(PREFIX)
    if name not in PUBLISHED:
        names = ", ".join(PUBLISHED)
        raise UserError(
            f"weights={source}: must be {PREFIX}NAME with one of {names}{near_matches(name, PUBLISHED)}"
        )
    return name


def _network(name: str) -> str:
    return name.partition("-")[0]


def completed(path: Path, checkpoint: Checkpoint) -> Checkpoint:
    """Add labels, thresholds and preprocessing to a checkpoint of torchxrayvision; others are returned as is.

    It is known by its file's name, or by the thresholds that a state dict of torchxrayvision holds.
    """
    published = next((each for each in PUBLISHED.values() if each.file == path.name), None)
    tensors = dict(checkpoint.tensors)
    stored = tensors.pop(_THRESHOLDS, None)
    if stored is not None:
        thresholds = [None if math.isnan(value) else value for value in stored.flatten().tolist()]
    elif published is not None:
        thresholds = list(published.thresholds)
    else:
        return checkpoint
    head = next((name for name in tensors if name.endswith(("classifier.weight", "fc.weight"))), None)
    trained = [index for index, value in enumerate(thresholds) if value is not None]
    if len(thresholds) != len(LABELS) or not trained or head is None or not _has_labels(tensors[head]):
        return replace(
            checkpoint,
            tensors=tensors,
            notes=(
                *checkpoint.notes,
                f"{_THRESHOLDS} left out: only those of {len(LABELS)} labels are known",
            ),
        )
    bias = head.removesuffix("weight") + "bias"
    for name in (head, bias):
        if name in tensors and _has_labels(tensors[name]):
            tensors[name] = tensors[name][trained]
    left_out = [label for index, label in enumerate(LABELS) if index not in trained]
    notes = (f"outputs left out, as the network was not trained for them: {', '.join(left_out)}",)
    size = 224 if published is None else published.size
    if published is None and head.endswith("fc.weight"):
        size = 512  # all of its ResNets
    return replace(
        checkpoint,
        tensors=tensors,
        input=PublishedInput(
            # (2x − 1)·1024 for x from 0 to 1: from -1024 (black) to 1024 (white).
            size=(size, size),
            resize_size=size,
            mean=(0.5,),
            std=(1 / 2048,),
            interpolation="bilinear",
        ),
        labels=PublishedLabels(
            names=tuple(LABELS[index] for index in trained),
            thresholds=tuple(value for value in thresholds if value is not None),
        ),
        task="multi-label",
        network=next((_network(name) for name, each in PUBLISHED.items() if each is published), None),
        fields={"num_classes": len(trained), "in_chans": 1},
        notes=(*checkpoint.notes, *(notes if left_out else ())),
    )


def _has_labels(tensor: Tensor) -> bool:
    """Whether a weight or bias (O, …) is for one output a label."""
    return tensor.shape[:1] == (len(LABELS),)
