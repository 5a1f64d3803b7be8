"""Load weights into a model: read, match by name or by structure, adapt, load all or none."""

from __future__ import annotations

import dataclasses
import fnmatch
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from skipnets.errors import UserError, listed, near_matches
from skipnets.models.backbone import Backbone
from skipnets.models.weights.adapt import adapt_stem, reset_head
from skipnets.models.weights.checkpoint import Checkpoint
from skipnets.models.weights.layouts import (
    LAYOUTS,
    channels_first,
    without_prefix,
    without_redundant_biases,
)
from skipnets.models.weights.lightning import without_state
from skipnets.models.weights.report import LoadReport
from skipnets.models.weights.sources import read_source
from skipnets.models.weights.structure import match
from skipnets.models.weights.target import AmbiguousMatchError, NoMatchError, Target

logger = logging.getLogger("skipnets")

_BY_STRUCTURE = "matched by structure"
# Nothing in the weights shows which of the two it is.
_MONAI_STEM = (
    'such biases are MONAI\'s, whose ResNets have stem="stride1" unless they were made with conv1_t_stride=2'
)


def load_weights(
    model: Backbone[Any], source: str | os.PathLike[str] | Checkpoint, *, ignore: Sequence[str] = ()
) -> LoadReport:
    """Load weights into a model, all of them or none.

    Known names (torchvision's, also as before 0.3, and timm's, in any wrapper) are matched by name, others
    by structure; see `skipnets.models.weights.structure`. A head that is missing in the source or for
    another number of classes is newly initialized, and a first convolution for other channels adapted; the
    report and a logged warning say so. Floating-point types are cast to the model's.

    Args:
        model: A model of this package.
        source: A torchvision tag (`"imagenet"`, `"IMAGENET1K_V2"`; downloaded and checked), a Hugging Face
            repository (`"hf-hub:timm/densenet121.ra_in1k"`), weights of torchxrayvision
            (`"xrv:densenet121-res224-all"`), a .safetensors, .pth, .pt, .th, .ckpt, .h5, .keras or .npz file,
            a folder that holds a model.safetensors and perhaps timm's config.json, or what `read_source`
            returned.
        ignore: Names in the source, or patterns such as "projection.*", of tensors that are not the
            network's; the report and a logged warning list them.

    Returns:
        Which tensors were matched, and the preprocessing that the source states.

    Raises:
        UserError: If the source cannot be read, a pattern matches no tensor, or a tensor in the source or in
            the model has no unambiguous match. The model is then unchanged.

    Examples:
        >>> report = load_weights(skipnets.create_model("resnet20"), "resnet20-12fca82f.th")
        >>> print(report)
        resnet20 from resnet20-12fca82f.th: 97 tensors, matched by structure
          95 tensors by their own names, after 'module.'
          fc.weight ← module.linear.weight
          fc.bias   ← module.linear.bias
    """
    name = model.config.name
    checkpoint = source if isinstance(source, Checkpoint) else read_source(source, model_name=name)
    found, ignored = without_ignored(checkpoint, ignore)
    state: tuple[str, ...] = ()
    if checkpoint.has_state:
        found, state = without_state(found, checkpoint.source)
    target = whole = Target.of(model)
    full_names = without_prefix(found, roots={key.partition(".")[0] for key in whole.tensors})
    tensors = {short: found[full] for short, full in full_names.items()}
    if tensors.keys().isdisjoint(whole.head_names) and not any(each.ndim == 2 for each in tensors.values()):
        target = whole.without_head()  # no linear layer: the weights of a backbone
    try:
        _require_fields(model, checkpoint)
        tensors, redundant = without_redundant_biases(tensors, whole.tensors)
        if redundant and model.config.stem == "imagenet":
            redundant += (_MONAI_STEM,)
        layout, mapping, tensors, notes = _match(target, tensors, ordered=checkpoint.ordered)
        values = {wanted: tensors[found] for wanted, found in mapping.items()}
        _require_floats(values)
        stem_change = adapt_stem(target, values)
        head_change = reset_head(whole, values)
    except NoMatchError as reason:
        raise UserError(f"weights: {checkpoint.source} does not match {name}: {reason}") from None
    # Everything has been checked by now, so this cannot fail half-way.
    model.load_state_dict({**whole.tensors, **values}, strict=True)

    if left_out := [full_names[short] for short in tensors.keys() - set(mapping.values())]:
        notes += (f"left out, as the model has 0 classes: {listed(sorted(left_out))}",)
    keeps_head = head_change is None and model.num_classes > 0
    report = LoadReport(
        source=checkpoint.source,
        model=name,
        layout=layout,
        mapping={
            wanted: full_names[found]
            for wanted, found in mapping.items()
            if head_change is None or wanted not in whole.head_names
        },
        ignored=ignored,
        changes=tuple(change for change in (stem_change, head_change) if change),
        notes=checkpoint.notes + state + redundant + notes,
        prefix=next((full.removesuffix(short) for short, full in full_names.items()), ""),
        input=checkpoint.input and checkpoint.input.for_channels(model.config.in_chans),
        labels=checkpoint.labels if keeps_head else None,
        task=checkpoint.task if keeps_head else None,
    )
    # A line each, as a log has them. Known layouts rename by a table, and remarks are warnings.
    by_structure = layout == _BY_STRUCTURE
    quiet = dataclasses.replace(report, changes=(), notes=(), ignored=())
    for line in str(quiet).splitlines()[: None if by_structure else 1]:
        logger.info("%s", line)
    for remark in (*report.changes, *report.notes):
        logger.warning("%s: %s", report.source, remark)
    if ignored:
        logger.warning("%s: ignored: %s", report.source, ", ".join(ignored))
    return report


def without_ignored(
    checkpoint: Checkpoint, patterns: Sequence[str]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A source's tensors without those that are to be ignored, and the names of the latter.

    Raises:
        UserError: If a pattern matches none, or they match all.
    """
    ignored: set[str] = set()
    for pattern in patterns:
        matched = [name for name in checkpoint.tensors if fnmatch.fnmatchcase(name, pattern)]
        if not matched:
            raise UserError(
                f"weights_ignore={pattern}: must match a tensor of {checkpoint.source}, such as "
                f"{listed(checkpoint.tensors)}{near_matches(pattern, checkpoint.tensors)}"
            )
        ignored.update(matched)
    if len(ignored) == len(checkpoint.tensors):
        raise UserError(f"weights_ignore={', '.join(patterns)}: must leave tensors of {checkpoint.source}")
    kept = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in ignored}
    return kept, tuple(name for name in checkpoint.tensors if name in ignored)


def _require_fields(model: Backbone[Any], checkpoint: Checkpoint) -> None:
    """Check that the model computes what the source's network does, where weights do not show it."""
    for field, value in checkpoint.fields.items():
        have = getattr(model.config, field, None)
        if field not in ("num_classes", "in_chans") and have != value:
            raise NoMatchError(f"needs {field}={value!r}, not {have!r}")


def _match(
    target: Target, tensors: dict[str, Tensor], *, ordered: bool
) -> tuple[str, dict[str, str], dict[str, Tensor], tuple[str, ...]]:
    """Match by name if the names are known, else by structure.

    Returns:
        The layout in words, the model's names to those of the tensors, the tensors, and notes on them.

    Raises:
        NoMatchError: If neither matches every tensor.
    """
    renamings = {layout: {rename(name): name for name in tensors} for layout, rename in LAYOUTS.items()}
    whole = [item for item in renamings.items() if len(item[1]) == len(tensors)]  # no two names made one
    layout, mapping = max(whole, key=lambda item: len(item[1].keys() & target.tensors.keys()))
    missing = [
        name for name in target.tensors if name not in mapping and not name.endswith(".num_batches_tracked")
    ]
    unknown = [name for name in mapping if name not in target.tensors]
    if target.num_classes == 0:
        unknown = [name for name in unknown if name not in target.head_names]
    if not missing and not unknown:
        mapping = {name: mapping[name] for name in target.tensors if name in mapping}
        _require_shapes(target, {name: tensors[found] for name, found in mapping.items()})
        return layout, mapping, tensors, ()

    turned, notes = channels_first(tensors)
    try:
        return _BY_STRUCTURE, match(target, turned, ordered=ordered), turned, notes
    except NoMatchError as reason:
        if isinstance(reason, AmbiguousMatchError) or len(missing) > len(target.tensors) / 2:
            raise
        differences = (("missing", missing), ("unexpected", unknown))
        names = "; ".join(f"{what}: {listed(names)}" for what, names in differences if names)
        raise NoMatchError(names) from None


def _require_shapes(target: Target, values: Mapping[str, Tensor]) -> None:
    wrong = [
        f"{name} is {tuple(value.shape)} where the model has {tuple(target.tensors[name].shape)}"
        for name, value in values.items()
        if not target.fits(name, value.shape)
    ]
    of_other_axes = [
        value.ndim - 2
        for name, value in values.items()
        if value.ndim in (3, 4, 5) and value.ndim != target.tensors[name].ndim
    ]
    hint = f"; the weights are for dims={of_other_axes[0]}" if of_other_axes else ""
    if wrong:
        raise NoMatchError(listed(wrong) + hint)


def _require_floats(values: Mapping[str, Tensor]) -> None:
    wrong = [
        f"{name} ({value.dtype})"
        for name, value in values.items()
        if not value.is_floating_point() and not name.endswith(".num_batches_tracked")
    ]
    if wrong:
        raise NoMatchError(f"not floating-point numbers: {listed(wrong)}")
