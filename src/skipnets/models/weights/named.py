"""Load weights into a module that is no part of this package: by the names of its tensors, all or none."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from torch import nn

from skipnets.errors import UserError, listed
from skipnets.models.custom_model import CustomModel
from skipnets.models.weights.layouts import without_prefix
from skipnets.models.weights.lightning import without_state
from skipnets.models.weights.loading import without_ignored
from skipnets.models.weights.sources import is_for_images, read_source

__all__ = ["load_named_weights"]

logger = logging.getLogger("skipnets")


def load_named_weights(
    model: CustomModel, source: str | os.PathLike[str], *, ignore: Sequence[str] = ()
) -> None:
    """Load weights of the module, or of one with another head.

    A prefix that all names have, such as `module.`, is removed, and the state of metrics and losses in a
    checkpoint of PyTorch Lightning left out. Linear layers of as many outputs as the model has classes stay
    as they are where the source has none, or one of other outputs, which is logged.

    Args:
        model: Whose lazy layers have been initialized.
        source: A file or folder, or a repository of the Hugging Face Hub, as of `load_weights`.
        ignore: Names or patterns of tensors that are not the module's; they are listed.

    Raises:
        UserError: If the source cannot be read, or names or shapes are others. The module is then unchanged.
    """
    name = model.config.name
    if is_for_images(source):
        raise UserError(
            f"weights={source}: must be a file for {name}, which is none of the published networks"
        )
    checkpoint = read_source(source, model_name=name)
    found, ignored = without_ignored(checkpoint, ignore)
    state: tuple[str, ...] = ()
    if checkpoint.has_state:
        found, state = without_state(found, checkpoint.source)
    network = model.stored()
    own = network.state_dict()
    full_names = without_prefix(found, roots={key.partition(".")[0] for key in own})
    tensors = {short: found[full] for short, full in full_names.items()}
    head = {
        f"{path}.{part}".lstrip(".")
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == model.num_classes
        for part in ("weight", "bias")
    }
    new = [key for key in own if key in head and (key not in tensors or tensors[key].shape != own[key].shape)]
    problems = {
        "missing": [key for key in own if key not in tensors and key not in new and not _counts_batches(key)],
        "unexpected": [full_names[key] for key in tensors if key not in own],
        "of another shape": [
            f"{key} {tuple(value.shape)} for {tuple(own[key].shape)}"
            for key, value in tensors.items()
            if key in own and key not in new and value.shape != own[key].shape
        ],
    }
    if any(problems.values()):
        listing = "; ".join(f"{what}: {listed(names, 3)}" for what, names in problems.items() if names)
        hint = "; weights_ignore leaves tensors out" if problems["unexpected"] else ""
        raise UserError(f"weights: {checkpoint.source} does not match {name}: {listing}{hint}")
    taken = {key: value for key, value in tensors.items() if key not in new}
    network.load_state_dict({**own, **taken})
    logger.info("%s from %s: %d tensors by their names", name, checkpoint.source, len(taken))
    for remark in (*checkpoint.notes, *state):
        logger.warning("%s: %s", checkpoint.source, remark)
    if new:
        logger.warning("%s: newly initialized, as for other classes: %s", checkpoint.source, ", ".join(new))
    if ignored:
        logger.warning("%s: ignored: %s", checkpoint.source, ", ".join(ignored))


def _counts_batches(key: str) -> bool:
    return key.endswith("num_batches_tracked")
