"""Weights of Keras's DenseNets and ResNets: `.keras` files, and `.h5` files of whole models or weights alone.

Keras's networks (`keras.applications`) compute the same as ours after these changes, all of them exact:
- Kernels are (height, width, in, out), and become (out, in, height, width).
- Their norms add 1.001e-5 to the variance, ours 1e-5: the difference is added to the running variance.
- Convolutions of the ResNets have a bias, which the norm behind them subtracts again with the mean: it is
  subtracted from the running mean.
- The ResNets halve maps in the first 1×1 convolution of a block: `stride_in="1x1"`.

In training, where norms take a batch's own statistics, they add 1e-5 to the variance instead of 1.001e-5.
"""

from __future__ import annotations

import io
import json
import math
import posixpath
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skipnets.errors import UserError, listed, needs_extra, one_line
from skipnets.models.operations import norm_eps
from skipnets.models.weights.checkpoint import Checkpoint, PublishedInput
from skipnets.models.weights.expansion import check_expansion

__all__ = ["SUFFIXES", "read_keras"]

SUFFIXES = (".h5", ".hdf5", ".keras")

_EPS = 1.001e-5  # of all norms in keras.applications' DenseNets and ResNets
_HEAD = "predictions"
# By the activation of the head.
_TASKS = {"sigmoid": "multi-label", "softmax": "single-label"}
# Whether a ResNet, blocks of each stage → our name.
_NETWORKS: Mapping[tuple[bool, tuple[int, ...]], str] = {
    (False, (6, 12, 24, 16)): "densenet121",
    (False, (6, 12, 32, 32)): "densenet169",
    (False, (6, 12, 48, 32)): "densenet201",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}
_PUBLISHED = re.compile(r"(densenet|resnet)\d+_weights_tf_dim_ordering_tf_kernels(_notop)?\.h5")
_ROLES = {"kernel": "weight", "gamma": "weight", "bias": "bias", "beta": "bias"}
_STATISTICS = {"moving_mean": "running_mean", "moving_variance": "running_var"}
# What a layer's variables are in files that number them.
_NORM_VARIABLES = ("gamma", "beta", "moving_mean", "moving_variance")

# By layer and role.
Datasets = dict[str, dict[str, Any]]
Layers = dict[str, dict[str, NDArray[Any]]]


def read_keras(path: Path) -> Checkpoint:
    """Read weights that Keras saved.

    Returns:
        Tensors in PyTorch's form by names such as `conv2_block1_1_conv.weight`.

    Raises:
        UserError: If the file is damaged, or its network computes what none of this package does.
    """
    with needs_extra("keras"):
        import h5py  # noqa: F401 - so that a missing one is not taken for a damaged file
    try:
        return _checkpoint(path, *_read(path))
    except UserError:
        raise
    except Exception as error:  # h5py, zipfile and json raise a dozen kinds on damaged files
        raise UserError(f"{path} is not a complete file of Keras ({one_line(error)})") from error


def _checkpoint(path: Path, layers: Layers, config: list[Mapping[str, Any]], ordered: bool) -> Checkpoint:
    """The checkpoint of a file with these layers; for the arguments see `_read`."""
    for layer in config:
        if layer["class_name"] == "Normalization":  # of the images, which `_notes` says
            layers.pop(str(layer["config"].get("name")), None)
    if not layers:
        raise UserError(f"{path} holds no layers with weights")
    if any(name.endswith(("_preact_bn", "post_bn")) for name in layers):
        raise UserError(
            f"{path} is of a ResNet V2 of Keras, whose strides and shortcuts no network of this package has"
        )
    dense = [name for name, arrays in layers.items() if arrays.get("kernel", np.empty(0)).ndim == 2]
    head = dense[0] if len(dense) == 1 else _HEAD
    if len(dense) == 1:
        layers[_HEAD] = layers.pop(head)
    blocks = _blocks(layers)
    is_resnet = any(name.endswith("_3_conv") for name in layers)
    is_known = "conv1_conv" in layers and bool(blocks)
    _check_activations(path, config, is_known=is_known)
    epsilons = _epsilons(config)
    tensors = _tensors(path, layers, epsilons, default=_EPS if is_known else norm_eps("batch"))
    notes = tuple(_notes(config, epsilons, is_known=is_known))
    published = None
    fields: dict[str, Any] = {}
    if is_known:
        fields["in_chans"] = tensors["conv1_conv.weight"].shape[1]
        if is_resnet:
            fields["stride_in"] = _stride(config)
            notes += (_turned(tensors, path),)
        if _PUBLISHED.fullmatch(path.name):
            published = _input(is_resnet)
    if len(dense) == 1:
        fields["num_classes"] = len(tensors[f"{_HEAD}.weight"])
    if any(layer["class_name"] == "GlobalMaxPooling2D" for layer in config):
        fields["global_pool"] = "max"
    return Checkpoint(
        source=str(path),
        tensors=tensors,
        ordered=ordered,
        input=published,
        task=_TASKS.get(str(_activation(config, head))),
        network=_NETWORKS.get((is_resnet, blocks)),
        fields=fields,
        notes=notes,
    )


def _blocks(layers: Layers) -> tuple[int, ...]:
    """The number of blocks in each stage, from names such as `conv2_block3_1_conv`."""
    found = {match.groups() for name in layers if (match := re.match(r"conv(\d+)_block(\d+)_", name))}
    counts = Counter(int(stage) for stage, _ in found)
    return tuple(counts[stage] for stage in sorted(counts))


def _notes(
    config: list[Mapping[str, Any]], epsilons: Mapping[str, float], *, is_known: bool
) -> Iterator[str]:
    """Remarks on what weights do not show."""
    if not is_known:
        yield "not one of Keras's own networks: compare its padding, strides and norm epsilon"
    if others := {value for value in epsilons.values() if abs(value - norm_eps("batch")) > 1e-6}:
        added = ", ".join(f"{value:g}" for value in sorted(others))
        yield (
            f"its norms add {added} to the variance: the outputs are equal, in training "
            f"{norm_eps('batch'):g} is added"
        )
    for layer in config:
        activation = layer["config"].get("activation")
        if layer["class_name"] == "Dense" and activation not in ("softmax", "linear", None):
            outputs = "outputs become probabilities by softmax"
            if activation == "sigmoid":
                outputs = "each output is a label of its own (task=multi-label)"
            yield (
                f"its layer {layer['config'].get('name')} has the activation {activation}, which is not part "
                f"of the network here: {outputs}"
            )
    if prepares := {layer["class_name"] for layer in config} & {"Rescaling", "Normalization", "Resizing"}:
        yield f"its {' and '.join(sorted(prepares))} of the images is not part of the network here"


def _turned(tensors: dict[str, Tensor], path: Path) -> str:
    """Turn the first convolution of Keras's own ResNet weights to RGB; returns what was done."""
    stem = tensors["conv1_conv.weight"]
    if _PUBLISHED.fullmatch(path.name):
        tensors["conv1_conv.weight"] = stem.flip(1)
        return "first convolution turned from BGR, which Keras's preprocessing feeds it, to RGB"
    return (
        "first convolution as it is: keras.applications.resnet.preprocess_input feeds it BGR images from 0 "
        "to 255 minus (103.939, 116.779, 123.68)"
    )


def _input(is_resnet: bool) -> PublishedInput:
    """The preprocessing of Keras's own weights: its modes "caffe" and "torch"."""
    if is_resnet:
        mean, std = tuple(value / 255 for value in (123.68, 116.779, 103.939)), (1 / 255,) * 3
    else:
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return PublishedInput(size=(224, 224), resize_size=None, mean=mean, std=std, interpolation="bilinear")


def _read(path: Path) -> tuple[Layers, list[Mapping[str, Any]], bool]:
    """The variables of each layer, configurations if the file has them, and whether layers are in order."""
    import h5py

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = [archive.getinfo(name) for name in ("config.json", "model.weights.h5")]
            check_expansion(path, sum(member.file_size for member in members))
            config = json.loads(archive.read(members[0]))
            weights = io.BytesIO(archive.read(members[1]))
        with h5py.File(weights, "r") as file:
            _check_links(path, file)
            return _arrays(path, _numbered(path, file)), list(_layer_configs(config)), False
    with h5py.File(path, "r") as file:
        _check_links(path, file)
        config = list(_layer_configs(json.loads(file.attrs.get("model_config", "{}"))))
        root = file.get("model_weights", file)
        if _names(root, "layer_names"):
            return _arrays(path, _named(root)), config, True
        return _arrays(path, _numbered(path, file)), config, False


def _check_links(path: Path, file: Any) -> None:
    """Refuse links to other files, before anything follows them."""
    import h5py

    def external(name: str, link: Any) -> str | None:
        return name if isinstance(link, h5py.ExternalLink) else None

    if (name := file.visititems_links(external)) is not None:
        raise UserError(f"{path} has a link to another file ({name})")


def _arrays(path: Path, datasets: Datasets) -> Layers:
    """The values of datasets, once it is known what they take and that they are in the file itself."""
    every = [dataset for variables in datasets.values() for dataset in variables.values()]
    for dataset in every:
        if dataset.is_virtual or dataset.external:
            raise UserError(f"{path} has values in another file ({dataset.name})")
        if dataset.dtype.hasobject:
            raise UserError(f"{path} has values that are no numbers ({dataset.name})")
    # A chunk is read as a whole, and may be larger than its dataset.
    sizes = ((math.prod(dataset.chunks or ()) * dataset.dtype.itemsize, dataset.nbytes) for dataset in every)
    check_expansion(path, sum(map(max, sizes)))
    return {
        layer: {role: np.asarray(dataset) for role, dataset in variables.items()}
        for layer, variables in datasets.items()
    }


def _named(root: Any) -> Datasets:
    """A file with the names of layers and variables: Keras 2's, and `model.save("….h5")` of Keras 3."""
    layers: Datasets = defaultdict(dict)
    for group in _names(root, "layer_names"):
        for name in _names(root[group], "weight_names"):
            layer, _, role = name.rpartition("/")
            layers[_layer_name(layer)][role.partition(":")[0]] = root[group][name]
    return dict(layers)


def _names(group: Any, attribute: str) -> list[str]:
    """A list of names, which Keras splits where it is too long for one attribute."""
    parts = [attribute] if attribute in group.attrs else []
    while f"{attribute}{len(parts)}" in group.attrs:
        parts.append(f"{attribute}{len(parts)}")
    names = [name for part in parts for name in group.attrs[part]]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _layer_name(path: str) -> str:
    """A layer's name: in files of 2018 the stem's is `conv1/conv`; a nested model's name may stand before."""
    found = re.search(r"(?:^|/)conv1/(conv|bn)$", path)
    return f"conv1_{found[1]}" if found else posixpath.basename(path)


def _numbered(path: Path, file: Any) -> Datasets:
    """A file of Keras 3, with numbered variables: `layers/conv2d_3/vars/0`, the layer's name an attribute."""
    import h5py

    variables: dict[str, dict[int, Any]] = defaultdict(dict)
    nameless: list[str] = []

    def collect(name: str, item: Any) -> None:
        group, _, number = name.rpartition("/")
        if not isinstance(item, h5py.Dataset) or name.startswith("optimizer/") or not number.isdigit():
            return
        layer = item.parent.attrs.get("name")
        if layer is None:
            nameless.append(group)
        elif not str(layer).startswith("seed_generator"):
            variables[str(layer)][int(number)] = item

    file.visititems(collect)
    if nameless:
        raise UserError(
            f"{path} does not name its layers ({listed(dict.fromkeys(nameless), 2)}): save them with a newer "
            "Keras, or as .h5"
        )
    layers: Datasets = {}
    for name, datasets in variables.items():
        is_norm = len(datasets) == len(_NORM_VARIABLES)
        roles = _NORM_VARIABLES if is_norm else ("kernel", "bias")
        layers[name] = {
            roles[number] if number < len(roles) else str(number): dataset
            for number, dataset in datasets.items()
        }
    return layers


def _layer_configs(config: Any) -> Iterator[Mapping[str, Any]]:
    """The configurations of all layers, also of nested models."""
    if isinstance(config, Mapping):
        if "class_name" in config and isinstance(config.get("config"), Mapping):
            yield config
        for value in config.values():
            yield from _layer_configs(value)
    elif isinstance(config, list):
        for value in config:
            yield from _layer_configs(value)


def _epsilons(config: list[Mapping[str, Any]]) -> dict[str, float]:
    return {
        str(layer["config"].get("name")): float(layer["config"]["epsilon"])
        for layer in config
        if layer["class_name"] == "BatchNormalization" and "epsilon" in layer["config"]
    }


def _activation(config: list[Mapping[str, Any]], name: str) -> object:
    """The activation of a linear layer, where the file says so."""
    dense = (layer["config"] for layer in config if layer["class_name"] == "Dense")
    return next((layer.get("activation") for layer in dense if layer.get("name") == name), None)


def _stride(config: list[Mapping[str, Any]]) -> str:
    """Which convolution of a block has the stride: Keras's own networks', unless the file says otherwise."""
    for layer in config:
        if layer["config"].get("name") == "conv3_block1_1_conv":
            return "1x1" if tuple(layer["config"].get("strides", (2, 2))) == (2, 2) else "3x3"
    return "1x1"


def _check_activations(path: Path, config: list[Mapping[str, Any]], *, is_known: bool) -> None:
    """Refuse a network with other activations than ours, which weights do not show."""
    allowed: dict[str, tuple[str | None, ...]] = {"Activation": ("relu", "softmax", "linear")}
    if is_known:
        allowed["Conv2D"] = ("linear", None)  # a norm follows
    for layer in config:
        activation = layer["config"].get("activation")
        if layer["class_name"] in allowed and activation not in allowed[layer["class_name"]]:
            own = allowed[layer["class_name"]][0]
            raise UserError(f"{path} has the activation {activation}, where Keras's own networks have {own}")


def _tensors(
    path: Path, layers: Layers, epsilons: Mapping[str, float], *, default: float
) -> dict[str, Tensor]:
    """Variables as PyTorch has them, with biases of convolutions and the epsilon in the norms' statistics."""
    tensors: dict[str, Tensor] = {}
    for name, arrays in layers.items():
        for role, array in arrays.items():
            known = {**_ROLES, **_STATISTICS}.get(role)
            if known is None or array.dtype.kind != "f":
                raise UserError(f"{path}: {name} is no convolution, norm or linear layer ({role})")
            values = array.astype(np.float64)
            if role == "kernel":
                values = values.transpose(3, 2, 0, 1) if values.ndim == 4 else values.T
            if role == "moving_variance":
                values = values + (epsilons.get(name, default) - norm_eps("batch"))
            tensors[f"{name}.{known}"] = torch.from_numpy(np.ascontiguousarray(values))
    for name, arrays in layers.items():
        norm = f"{name.removesuffix('_conv')}_bn.running_mean"
        if name.endswith("_conv") and "bias" in arrays and norm in tensors:
            tensors[norm] -= tensors.pop(f"{name}.bias")
    return {name: tensor.float() for name, tensor in tensors.items()}
