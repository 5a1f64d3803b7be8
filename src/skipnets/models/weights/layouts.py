"""Known checkpoint layouts: wrappers around a state dict, names of Keras, MONAI and older torchvisions.

timm's names for these models are torchvision's (a test pins it), so they need no table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from skipnets.errors import UserError, listed

# Where training scripts put the state dict, averaged weights first: they are what gets published.
WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
)
_DEEPEST = 4


def unwrap(value: object, source: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Find the state dict in the contents of a checkpoint file, with a note if there is more than one.

    Raises:
        UserError: If there is none.
    """
    found = _find(value, ())
    if found is None:
        holds = listed(map(repr, value)) if isinstance(value, Mapping) else type(value).__name__
        raise UserError(
            f"{source} has no state dict (a dictionary of names and tensors), only {holds or 'nothing'}"
        )
    tensors, path = found
    tensors.pop("n_averaged", None)  # torch.optim.swa_utils.AveragedModel counts its updates
    assert isinstance(value, Mapping)
    others = [key for key in WRAPPERS if key not in path and _find(value.get(key), ()) is not None]
    if path and others:
        return tensors, (f"loaded from {path[0]!r}; the file also has {', '.join(map(repr, others))}",)
    return tensors, ()


def _find(value: object, path: tuple[str, ...]) -> tuple[dict[str, Tensor], tuple[str, ...]] | None:
    if not isinstance(value, Mapping) or len(path) > _DEEPEST:
        return None
    for key in WRAPPERS:
        if key in value and (found := _find(value[key], (*path, key))) is not None:
            return found
    tensors = {
        name: entry.detach()
        for name, entry in value.items()
        if isinstance(name, str) and isinstance(entry, Tensor)
    }
    return (tensors, path) if tensors else None


def without_prefix(names: Iterable[str], roots: set[str]) -> dict[str, str]:
    """Remove the prefixes that all names share (`module.`, `_orig_mod.`, `model.` …): short to full names.

    Args:
        names: The names in a checkpoint.
        roots: The first parts of the model's own names, which are kept.
    """
    short = {name: name for name in names}
    while True:
        first = {name.partition(".")[0] for name in short}
        if len(first) != 1 or first & roots or not all("." in name for name in short):
            return short
        short = {name.partition(".")[2]: full for name, full in short.items()}


def _before_0_3(name: str) -> str:
    """Rename `denselayer1.norm.1.weight`, as in torchvision's DenseNet files, to `….norm1.weight`."""
    for module in ("norm", "relu", "conv"):
        for number in ("1", "2"):
            name = name.replace(f".{module}.{number}.", f".{module}{number}.")
    return name


_KERAS_DENSENET = {
    r"conv1_conv": r"features.conv0",
    r"conv1_bn": r"features.norm0",
    r"conv(\d+)_block(\d+)_0_bn": r"features.denseblock{}.denselayer{}.norm1",
    r"conv(\d+)_block(\d+)_1_conv": r"features.denseblock{}.denselayer{}.conv1",
    r"conv(\d+)_block(\d+)_1_bn": r"features.denseblock{}.denselayer{}.norm2",
    r"conv(\d+)_block(\d+)_2_conv": r"features.denseblock{}.denselayer{}.conv2",
    r"pool(\d+)_bn": r"features.transition{}.norm",
    r"pool(\d+)_conv": r"features.transition{}.conv",
    r"bn": r"features.norm5",
    r"predictions": r"classifier",
}
_KERAS_RESNET = {
    r"conv1_conv": r"conv1",
    r"conv1_bn": r"bn1",
    r"conv(\d+)_block(\d+)_0_conv": r"layer{}.{}.downsample.0",
    r"conv(\d+)_block(\d+)_0_bn": r"layer{}.{}.downsample.1",
    r"conv(\d+)_block(\d+)_(\d)_conv": r"layer{}.{}.conv{}",
    r"conv(\d+)_block(\d+)_(\d)_bn": r"layer{}.{}.bn{}",
    r"predictions": r"fc",
}


def _keras(name: str, table: Mapping[str, str], first_block: int) -> str:
    """Rename a tensor of Keras. Its second stage of maps, `conv2`, is our first; it counts blocks from 1."""
    layer, _, role = name.rpartition(".")
    for pattern, ours in table.items():
        if found := re.fullmatch(pattern, layer):
            numbers = [int(number) for number in found.groups()]
            shifted = [
                number - shift for number, shift in zip(numbers, (1, 1 - first_block, 0), strict=False)
            ]
            return f"{ours.format(*shifted)}.{role}"
    return name


def _keras_densenet(name: str) -> str:
    return _keras(name, _KERAS_DENSENET, 1)


def _keras_resnet(name: str) -> str:
    return _keras(name, _KERAS_RESNET, 0)


def _monai(name: str) -> str:
    """Rename a tensor of MONAI's DenseNets; its ResNets have torchvision's names."""
    return re.sub(r"\b(denselayer\d+)\.layers\.", r"\1.", name).replace("class_layers.out.", "classifier.")


def without_redundant_biases(
    tensors: Mapping[str, Tensor], wanted: Iterable[str]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Leave out biases in front of a batch norm, as MONAI's ResNets have in their shortcuts.

    A norm subtracts the mean, and with it the bias b. What is left of it is in the running mean, from which b
    is subtracted: (x + b) − μ = x − (μ − b).

    Args:
        tensors: A source's.
        wanted: Names of the model's tensors.

    Returns:
        The tensors, and a note if there were such biases.
    """
    known, kept = set(wanted), dict(tensors)
    found = [name for name in tensors if name.endswith("downsample.0.bias") and name not in known]
    for name in found:
        mean = f"{name.removesuffix('0.bias')}1.running_mean"
        if mean not in known or mean not in tensors or tensors[mean].shape != tensors[name].shape:
            return dict(tensors), ()
        kept[mean] = tensors[mean] - tensors[name]
        del kept[name]
    if not found:
        return kept, ()
    return kept, (f"biases before batch norms were subtracted from the running means: {listed(found, 2)}",)


LAYOUTS: Mapping[str, Callable[[str], str]] = {
    "named as in torchvision and timm": lambda name: name,
    "named as in torchvision before 0.3": _before_0_3,
    "named as in MONAI's DenseNets": _monai,
    "named as in Keras's DenseNets": _keras_densenet,
    "named as in Keras's ResNets": _keras_resnet,
}


def channels_first(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Transpose the `kernel` tensors of Keras and Flax to PyTorch's axis order.

    Convolutions are (height, width, C, O) there and (O, C, height, width) here, linear layers (C, O) and
    (O, C). The name alone decides, since a shape such as (3, 3, 3, 3) cannot.
    """
    turned = dict(tensors)
    for name, tensor in tensors.items():
        if name.partition(":")[0].endswith("kernel") and tensor.ndim >= 2:
            turned[name] = tensor.permute(-1, -2, *range(tensor.ndim - 2))
    if all(turned[name] is tensor for name, tensor in tensors.items()):
        return turned, ()
    return turned, (
        "kernels transposed from (height, width, in, out); compare the source's padding and norm epsilon",
    )
