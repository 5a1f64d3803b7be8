"""Keras's files: outputs equal to its arithmetic, written out here, and to Keras itself where it is there."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from tests.helpers.modules import modules_imported_anew
from torch import Tensor, nn

from skipnets import Classifier
from skipnets.conversion import classifier_from_weights
from skipnets.data.dataset import ImageDataset
from skipnets.errors import MissingExtraError, UserError
from skipnets.models import create_model
from skipnets.models.weights import load_weights, network_of
from skipnets.training import TrainConfig
from skipnets.training.prepare import prepare

h5py = pytest.importorskip("h5py")

Layers = dict[str, dict[str, NDArray[Any]]]
EPS = 1.001e-5
DENSENET = {"model_name": "densenet121", "block_config": (2, 1), "growth_rate": 4, "stem_channels": 8}
RESNET = {"model_name": "resnet50", "block_config": (2, 1), "width": 4}


# Keras's networks, as keras.applications defines them, with few channels.


class Network:
    """Layers that are made as they are first asked for, in the order of Keras's code."""

    def __init__(self, eps: float = EPS) -> None:
        self.layers: Layers = {}
        self.eps = eps
        self.random = np.random.default_rng(0)

    def _values(self, name: str, make: dict[str, Callable[[], NDArray[Any]]]) -> list[Tensor]:
        if name not in self.layers:
            self.layers[name] = {role: new().astype(np.float32) for role, new in make.items()}
        return [torch.from_numpy(array).double() for array in self.layers[name].values()]

    def conv(self, name: str, x: Tensor, out: int, size: int, *, stride: int = 1, bias: bool) -> Tensor:
        shape = (size, size, x.shape[1], out)
        make = {"kernel": lambda: self.random.normal(0, 0.3, shape)}
        if bias:
            make["bias"] = lambda: self.random.normal(0, 0.3, out)
        kernel, *rest = self._values(name, make)
        return F.conv2d(x, kernel.permute(3, 2, 0, 1), *rest, stride=stride, padding=size // 2)

    def norm(self, name: str, x: Tensor) -> Tensor:
        channels = x.shape[1]
        gamma, beta, mean, variance = (
            each[:, None, None]
            for each in self._values(
                name,
                {
                    "gamma": lambda: self.random.uniform(0.5, 1.5, channels),
                    "beta": lambda: self.random.normal(0, 0.3, channels),
                    "moving_mean": lambda: self.random.normal(0, 0.3, channels),
                    # Small ones, so that the epsilon counts.
                    "moving_variance": lambda: self.random.uniform(1e-5, 1e-3, channels),
                },
            )
        )
        return (x - mean) / torch.sqrt(variance + self.eps) * gamma + beta

    def dense(self, x: Tensor) -> Tensor:
        features = x.shape[1]
        kernel, bias = self._values(
            "predictions",
            {
                "kernel": lambda: self.random.normal(0, 0.3, (features, 5)),
                "bias": lambda: self.random.normal(0, 0.3, 5),
            },
        )
        return x @ kernel + bias


def densenet(net: Network, x: Tensor) -> Tensor:
    x = F.relu(net.norm("conv1_bn", net.conv("conv1_conv", x, 8, 7, stride=2, bias=False)))
    x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)
    for stage, layers in ((2, 2), (3, 1)):
        for index in range(1, layers + 1):
            name = f"conv{stage}_block{index}"
            y = net.conv(f"{name}_1_conv", F.relu(net.norm(f"{name}_0_bn", x)), 16, 1, bias=False)
            y = net.conv(f"{name}_2_conv", F.relu(net.norm(f"{name}_1_bn", y)), 4, 3, bias=False)
            x = torch.cat([x, y], 1)
        if stage == 2:
            x = net.conv("pool2_conv", F.relu(net.norm("pool2_bn", x)), x.shape[1] // 2, 1, bias=False)
            x = F.avg_pool2d(x, 2)
    return net.dense(F.relu(net.norm("bn", x)).mean((2, 3)))


def resnet(net: Network, x: Tensor) -> Tensor:
    x = F.relu(net.norm("conv1_bn", net.conv("conv1_conv", x, 4, 7, stride=2, bias=True)))
    x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)
    for stage, blocks, width in ((2, 2, 4), (3, 1, 8)):
        for index in range(1, blocks + 1):
            name, stride = f"conv{stage}_block{index}", 2 if stage == 3 else 1
            shortcut = x
            if index == 1:
                shortcut = net.conv(f"{name}_0_conv", x, 4 * width, 1, stride=stride, bias=True)
                shortcut = net.norm(f"{name}_0_bn", shortcut)
            y = net.conv(f"{name}_1_conv", x, width, 1, stride=stride, bias=True)
            y = net.conv(f"{name}_2_conv", F.relu(net.norm(f"{name}_1_bn", y)), width, 3, bias=True)
            y = net.conv(f"{name}_3_conv", F.relu(net.norm(f"{name}_2_bn", y)), 4 * width, 1, bias=True)
            x = F.relu(shortcut + net.norm(f"{name}_3_bn", y))
    return net.dense(x.mean((2, 3)))


NETWORKS = {"densenet": (densenet, DENSENET), "resnet": (resnet, RESNET)}
networks = pytest.mark.parametrize("network", NETWORKS)


def made(network: str, x: Tensor | None = None, eps: float = EPS) -> tuple[Layers, Tensor]:
    """A network's layers, and its outputs for some images."""
    net = Network(eps)
    x = torch.randn(2, 3, 40, 33, dtype=torch.float64) if x is None else x
    outputs = NETWORKS[network][0](net, x)
    return net.layers, outputs


# Keras's kinds of files.


def named(group: Any, layers: Layers, *, colon: str = ":0", split: bool = False) -> None:
    """What `save_weights("….h5")` of Keras 2 wrote; long lists of names are split."""
    names = [name.encode() for name in layers]
    if split:
        group.attrs["layer_names0"], group.attrs["layer_names1"] = names[:3], names[3:]
    else:
        group.attrs["layer_names"] = names
    for name, arrays in layers.items():
        layer = group.create_group(name)
        layer.attrs["weight_names"] = [f"{name}/{role}{colon}".encode() for role in arrays]
        for role, array in arrays.items():
            layer.create_dataset(f"{name}/{role}{colon}", data=array)


def numbered(file: Any, layers: Layers, *, nameless: bool = False) -> None:
    """What Keras 3 writes: layers numbered by class, their names as attributes; and an optimizer's state."""
    counts: dict[str, int] = {}
    for name, arrays in layers.items():
        kind = "batch_normalization" if "gamma" in arrays else "conv2d" if "conv" in name else "dense"
        number = counts[kind] = counts.get(kind, -1) + 1
        group = file.create_group(f"layers/{kind}{f'_{number}' if number else ''}/vars")
        if not nameless:
            group.attrs["name"] = name
        for index, array in enumerate(arrays.values()):
            group.create_dataset(str(index), data=array)
    file.create_dataset("optimizer/vars/0", data=np.ones(3))


def configuration(layers: Layers, **extra: Any) -> dict[str, Any]:
    """The part of a model's configuration that matters."""
    configs: list[dict[str, Any]] = [
        {"class_name": "BatchNormalization", "config": {"name": name, "epsilon": extra.get("eps", EPS)}}
        for name, arrays in layers.items()
        if "gamma" in arrays
    ]
    configs.append(
        {
            "class_name": "Conv2D",
            "config": {"name": "conv3_block1_1_conv", "strides": extra.get("strides", [2, 2])},
        }
    )
    configs += [{"class_name": name, "config": config} for name, config in extra.get("more", {}).items()]
    return {"class_name": "Functional", "config": {"name": "net", "layers": configs}}


def write(path: Path, layers: Layers, **options: Any) -> Path:
    """Write layers to one of the kinds of files, by its name."""
    extra = options.pop("extra", {})
    if path.name == "model.keras":
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            numbered(file, layers, **options)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", json.dumps(configuration(layers, **extra)))
            archive.writestr("model.weights.h5", buffer.getvalue())
        return path
    with h5py.File(path, "w") as file:
        if path.name == "model.weights.h5":
            numbered(file, layers, **options)
        elif path.name == "model.h5":
            file.attrs["model_config"] = json.dumps(configuration(layers, **extra))
            named(file.create_group("model_weights"), layers, colon="", **options)
        else:
            named(file, layers, **options)
    return path


def outputs(model: torch.nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.double().eval()(x)


@networks
@pytest.mark.parametrize("file", ["weights.h5", "model.h5", "model.weights.h5", "model.keras"])
def test_outputs_are_keras_s(file: str, network: str, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 40, 33, dtype=torch.float64)
    layers, expected = made(network, x)
    model = create_model(weights=write(tmp_path / file, layers), **NETWORKS[network][1])
    assert model.num_classes == 5
    # The folded statistics are float32: half a unit in the last place, in variances of 1e-5.
    torch.testing.assert_close(outputs(model, x), expected, rtol=1e-4, atol=1e-4)
    assert model.weights_report is not None
    assert (
        model.weights_report.layout
        == f"named as in Keras's {'ResNets' if network == 'resnet' else 'DenseNets'}"
    )
    stem = "conv1" if network == "resnet" else "features.conv0"
    assert model.weights_report.mapping[f"{stem}.weight"] == "conv1_conv.weight"


def test_the_epsilon_and_the_stride_matter(tmp_path: Path) -> None:
    """So the test above would see them."""
    x = torch.randn(2, 3, 40, 33, dtype=torch.float64)
    layers, expected = made("resnet", x)
    path = write(tmp_path / "weights.h5", layers)
    for change in ({"extra": {"eps": 1e-5}}, {"extra": {"strides": [1, 1]}}):
        other = create_model(weights=write(tmp_path / "model.h5", layers, **change), **RESNET)
        assert (outputs(other, x) - expected).abs().max() > 1e-2
    with pytest.raises(UserError, match=r"needs stride_in='1x1', not '3x3'$"):
        load_weights(create_model(**RESNET), path)
    with pytest.raises(UserError, match=r"needs stride_in='1x1'"):
        create_model(weights=path, stride_in="3x3", **RESNET)


def test_a_network_of_another_family_does_not_match(tmp_path: Path) -> None:
    path = write(tmp_path / "weights.h5", made("resnet")[0])
    with pytest.raises(UserError, match=r"weights\.h5 does not match densenet121: needs stride_in='1x1'"):
        create_model(weights=path, **DENSENET)


def test_another_epsilon_is_in_the_statistics(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 40, 33, dtype=torch.float64)
    layers, expected = made("densenet", x, eps=1e-3)
    path = write(tmp_path / "model.keras", layers, extra={"eps": 1e-3})
    model = create_model(weights=path, **DENSENET)
    torch.testing.assert_close(outputs(model, x), expected, rtol=1e-4, atol=1e-4)
    assert model.weights_report is not None
    assert model.weights_report.notes == (
        "its norms add 0.001 to the variance: the outputs are equal, in training 1e-05 is added",
    )


@networks
def test_a_backbone_gets_a_new_head(network: str, tmp_path: Path) -> None:
    layers, _ = made(network)
    del layers["predictions"]
    model = create_model(
        weights=write(tmp_path / "weights.h5", layers), num_classes=3, **NETWORKS[network][1]
    )
    assert model.weights_report is not None
    assert model.weights_report.changes == ("head newly initialized: the source has none",)


def test_files_of_2018_and_split_lists_of_names(tmp_path: Path) -> None:
    """Their stem's layers are `conv1/conv` and `conv1/bn`, their head is `fc1000`."""
    x = torch.randn(2, 3, 40, 33, dtype=torch.float64)
    layers, expected = made("densenet", x)
    names = {"conv1_conv": "conv1/conv", "conv1_bn": "conv1/bn", "predictions": "fc1000"}
    old = {names.get(name, name): arrays for name, arrays in layers.items()}
    model = create_model(weights=write(tmp_path / "weights.h5", old, split=True), **DENSENET)
    torch.testing.assert_close(outputs(model, x), expected, rtol=1e-4, atol=1e-4)


@networks
def test_published_files_bring_their_preprocessing(network: str, tmp_path: Path) -> None:
    """An image through Keras's preprocessing and network, and as a classifier here."""
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    if network == "resnet":  # mode "caffe": BGR, less the mean of each channel
        images = pixels[..., ::-1].astype(np.float64) - (103.939, 116.779, 123.68)
    else:  # mode "torch"
        images = (pixels / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    layers, expected = made(network, torch.from_numpy(images.copy()).permute(2, 0, 1)[None])
    name = NETWORKS[network][1]["model_name"]
    path = write(tmp_path / f"{name}_weights_tf_dim_ordering_tf_kernels.h5", layers)
    classifier = Classifier.from_model(
        create_model(weights=path, **NETWORKS[network][1]).eval(), classes=list("abcde")
    )
    logits = torch.from_numpy(classifier.logits(classifier.preprocess([Image.fromarray(pixels)])))
    torch.testing.assert_close(logits.double(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_a_file_of_one_s_own_says_that_images_may_be_bgr(tmp_path: Path) -> None:
    layers, _ = made("resnet")
    report = create_model(weights=write(tmp_path / "weights.h5", layers), **RESNET).weights_report
    assert report is not None
    assert report.input is None
    assert report.notes[0].startswith("first convolution as it is: keras.applications")


def test_what_is_not_in_the_weights_is_said(tmp_path: Path) -> None:
    layers, _ = made("densenet")
    more = {"Rescaling": {"scale": 0.1}, "GlobalMaxPooling2D": {"name": "max_pool"}}
    path = write(tmp_path / "model.h5", layers, extra={"more": more})
    model = create_model(weights=path, **DENSENET)
    assert model.config.global_pool == "max"
    assert model.weights_report is not None
    assert model.weights_report.notes == ("its Rescaling of the images is not part of the network here",)


def test_another_network_is_matched_by_structure_and_says_so(tmp_path: Path) -> None:
    layers, _ = made("densenet")
    renamed = {f"layer_{index}": arrays for index, arrays in enumerate(layers.values())}
    model = create_model(weights=write(tmp_path / "weights.h5", renamed), **DENSENET)
    assert model.weights_report is not None
    assert model.weights_report.layout == "matched by structure"
    assert model.weights_report.notes[0].startswith("not one of Keras's own networks")
    with pytest.raises(UserError, match=r"ambiguous|sorted by name"):  # numbered files keep no order
        create_model(weights=write(tmp_path / "model.weights.h5", renamed), **DENSENET)


def test_layers_behind_the_network_are_ignored_by_name(tmp_path: Path) -> None:
    layers, _ = made("densenet")
    layers["dense_1"] = {"kernel": np.ones((5, 2), np.float32), "bias": np.ones(2, np.float32)}
    path = write(tmp_path / "weights.h5", layers)
    with pytest.raises(UserError, match=r"unexpected: .*dense_1"):
        create_model(weights=path, **DENSENET)
    model = create_model(weights=path, weights_ignore=["dense_1.*"], num_classes=5, in_chans=3, **DENSENET)
    assert np.array_equal(model.state_dict()["classifier.weight"], layers["predictions"]["kernel"].T)


def nothing(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=np.ones(3))
    return path


def v2(path: Path) -> Path:
    return write(path, made("resnet")[0] | {"post_bn": {"gamma": np.ones(4, np.float32)}})


def gelu(path: Path) -> Path:
    more = {"Activation": {"name": "conv1_relu", "activation": "gelu"}}
    return write(path.with_name("model.h5"), made("resnet")[0], extra={"more": more})


def nameless(path: Path) -> Path:
    return write(path.with_name("model.weights.h5"), made("resnet")[0], nameless=True)


def whole_numbers(path: Path) -> Path:
    return write(path, {"conv1_conv": {"kernel": np.ones((7, 7, 3, 8), np.int8)}})


def other_variables(path: Path) -> Path:
    return write(path, made("resnet")[0] | {"lstm": {"recurrent_kernel": np.ones((4, 4), np.float32)}})


# Files that are made to read others, or to fill the memory.


KERNEL = "conv1_conv/conv1_conv/kernel:0"


def replaced(path: Path, make: Callable[[Any, str], object], layers: Layers | None = None) -> Path:
    """A file with something else in place of the first kernel."""
    write(path, made("resnet")[0] if layers is None else layers)
    with h5py.File(path, "r+") as file:
        del file[KERNEL]
        make(file, KERNEL)
    return path


def external_link(path: Path) -> Path:
    write(path.with_name("other.h5"), made("resnet")[0])
    return replaced(path, lambda file, name: file.update({name: h5py.ExternalLink("other.h5", name)}))


def external_values(path: Path) -> Path:
    other = path.with_name("secret")
    other.write_bytes(bytes(4 * 49 * 3 * 4))
    external = [(str(other), 0, h5py.h5f.UNLIMITED)]
    return replaced(
        path, lambda file, name: file.create_dataset(name, (7, 7, 3, 4), dtype="f4", external=external)
    )


def virtual_values(path: Path) -> Path:
    write(path.with_name("other.h5"), made("resnet")[0])
    layout = h5py.VirtualLayout((7, 7, 3, 4), dtype="f4")
    layout[:] = h5py.VirtualSource("other.h5", KERNEL, (7, 7, 3, 4))
    return replaced(path, lambda file, name: file.create_virtual_dataset(name, layout))


def huge(path: Path) -> Path:
    """Chunks that were never written take no place."""
    return replaced(
        path,
        lambda file, name: file.create_dataset(name, (2**20, 2**20, 1, 1), dtype="f4", chunks=(64, 64, 1, 1)),
    )


def huge_chunk(path: Path) -> Path:
    shape = {"maxshape": (None,) * 4, "chunks": (1000, 1000, 200, 1), "compression": "gzip"}
    return replaced(path, lambda file, name: file.create_dataset(name, (7, 7, 3, 4), dtype="f4", **shape))


def one_values_many_times(path: Path) -> Path:
    """A million values under 400 names."""

    def make(file: Any, name: str) -> None:
        file[name] = np.ones((1000, 1000), np.float32)
        file["conv1_conv"].attrs["weight_names"] = [f"conv1_conv/{index}".encode() for index in range(400)]
        for index in range(400):
            file[f"conv1_conv/conv1_conv/{index}"] = file[name]

    return replaced(path, make)


def huge_member(path: Path) -> Path:
    with zipfile.ZipFile(path.with_suffix(".keras"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", bytes(2**27))
    return path.with_suffix(".keras")


def texts(path: Path) -> Path:
    return replaced(path, lambda file, name: file.create_dataset(name, data=["a", "b"]))


def strides(path: Path) -> Path:
    return write(path.with_name("model.h5"), made("resnet")[0], extra={"strides": 2})


def biases(path: Path) -> Path:
    return write(path, made("resnet")[0] | {"conv1_conv": {"bias": np.ones(3, np.float32)}})


def relu_in_convolution(path: Path) -> Path:
    more = {"Conv2D": {"name": "conv1_conv", "activation": "relu"}}
    return write(path.with_name("model.h5"), made("resnet")[0], extra={"more": more})


def garbage(path: Path) -> Path:
    path.write_bytes(b"<html>404 not found</html>")
    return path


def truncated(path: Path) -> Path:
    content = write(path, made("resnet")[0]).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def other_zip(path: Path) -> Path:
    with zipfile.ZipFile(path.with_suffix(".keras"), "w") as archive:
        archive.writestr("config.json", "{}")
    return path.with_suffix(".keras")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (nothing, r"w\.h5 holds no layers with weights"),
        (
            v2,
            r"w\.h5 is of a ResNet V2 of Keras, whose strides and shortcuts no network of this package has$",
        ),
        (external_link, r"w\.h5 has a link to another file \(conv1_conv/conv1_conv/kernel:0\)$"),
        (external_values, r"w\.h5 has values in another file \(/conv1_conv/conv1_conv/kernel:0\)$"),
        (virtual_values, r"w\.h5 has values in another file \(/conv1_conv/conv1_conv/kernel:0\)$"),
        (huge, r"w\.h5 would take 4,\d\d\d,\d\d\d MiB of memory"),
        (huge_chunk, r"w\.h5 would take 76\d MiB of memory"),
        (one_values_many_times, r"w\.h5 would take \d,\d\d\d MiB of memory"),
        (huge_member, r"w\.keras would take 12\d MiB of memory"),
        (texts, r"w\.h5 has values that are no numbers \(/conv1_conv/conv1_conv/kernel:0\)$"),
        (strides, r"model\.h5 is not a complete file of Keras"),
        (biases, r"w\.h5 is not a complete file of Keras"),
        (relu_in_convolution, r"model\.h5 has the activation relu, where Keras's own networks have linear"),
        (gelu, r"model\.h5 has the activation gelu, where Keras's own networks have relu"),
        (
            nameless,
            r"model\.weights\.h5 does not name its layers \(layers/.*/vars, .*\): save them with a newer",
        ),
        (whole_numbers, r"conv1_conv is no convolution, norm or linear layer \(kernel\)"),
        (other_variables, r"lstm is no convolution, norm or linear layer \(recurrent_kernel\)"),
        (garbage, r"w\.h5 is not a complete file of Keras"),
        (truncated, r"w\.h5 is not a complete file of Keras"),
        (other_zip, r"w\.keras is not a complete file of Keras"),
    ],
)
def test_what_is_refused(make: Callable[[Path], Path], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as caught:
        create_model(weights=make(tmp_path / "w.h5"), **RESNET)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["model.h5", "model.keras"])
def test_normalization_of_the_images_is_left_out_and_said(file: str, tmp_path: Path) -> None:
    layers, _ = made("densenet")
    statistics = {"mean": np.ones(3, np.float32), "variance": np.ones(3, np.float32), "count": np.int64(3)}
    more = {"Normalization": {"name": "normalization"}}
    path = write(tmp_path / file, {"normalization": statistics} | layers, extra={"more": more})
    report = create_model(weights=path, **DENSENET).weights_report
    assert "its Normalization of the images is not part of the network here" in report.notes


def test_another_activation_of_the_head_is_said(tmp_path: Path) -> None:
    more = {"Dense": {"name": "predictions", "activation": "sigmoid"}}
    path = write(tmp_path / "model.h5", made("densenet")[0], extra={"more": more})
    report = create_model(weights=path, **DENSENET).weights_report
    assert [note for note in report.notes if "predictions has the activation sigmoid" in note]
    assert report.task == "multi-label"
    other = create_model(weights=path, num_classes=3, **DENSENET).weights_report
    assert other.task is None  # of a new head


def layers_of(network: nn.Module) -> Layers:
    """A network's layers, as Keras holds them."""
    layers: Layers = {}
    for index, module in enumerate(network.modules()):
        if isinstance(module, nn.Conv2d):
            layers[f"layer_{index}"] = {"kernel": module.weight.detach().permute(2, 3, 1, 0).numpy()}
        elif isinstance(module, nn.BatchNorm2d):
            values = (module.weight, module.bias, module.running_mean, module.running_var)
            roles = ("gamma", "beta", "moving_mean", "moving_variance")
            layers[f"layer_{index}"] = {
                role: value.detach().numpy() for role, value in zip(roles, values, strict=True)
            }
        elif isinstance(module, nn.Linear):
            layers["dense"] = {
                "kernel": module.weight.detach().T.numpy(),
                "bias": module.bias.detach().numpy(),
            }
    return layers


GIVEN = {"model": "resnet8_w16", "size": 32, "mean": [0.5] * 3, "std": [0.25] * 3}


def with_head(path: Path, outputs: int, activation: str) -> tuple[Path, nn.Module]:
    """A file of a network with a head of this activation, and the network."""
    torch.manual_seed(0)
    network = create_model("resnet8_w16", num_classes=outputs).eval()
    nn.init.normal_(network.get_classifier().bias)
    more = {"Dense": {"name": "dense", "activation": activation}}
    return write(path / "model.h5", layers_of(network), extra={"more": more}), network


@pytest.mark.parametrize(
    ("activation", "outputs", "classes", "task"),
    [
        ("softmax", 3, ["a", "b", "c"], "single-label"),
        ("linear", 3, ["a", "b", "c"], "single-label"),
        ("sigmoid", 3, ["a", "b", "c"], "multi-label"),
        ("sigmoid", 1, ["dog"], "multi-label"),
        ("sigmoid", 1, ["cat", "dog"], "single-label"),
        ("linear", 1, ["cat", "dog"], "single-label"),  # trained with from_logits=True
    ],
)
def test_probabilities_are_what_the_head_makes(
    activation: str, outputs: int, classes: list[str], task: str, tmp_path: Path
) -> None:
    path, network = with_head(tmp_path, outputs, activation)
    classifier = classifier_from_weights(path, classes=classes, **GIVEN)
    assert (classifier.task, classifier.classes) == (task, tuple(classes))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    with torch.no_grad():
        logits = network(torch.from_numpy(classifier.preprocess([image])))[0]
    if outputs == 1:
        probability = float(logits.sigmoid())
        expected = {"cat": 1 - probability, "dog": probability}
    else:
        values = logits.sigmoid() if task == "multi-label" else logits.softmax(0)
        expected = dict(zip(classes, values.tolist(), strict=True))
    [prediction] = classifier.predict(image, top_k=3)
    assert dict(prediction.ranking) == pytest.approx({name: expected[name] for name in classes}, abs=1e-4)
    if task == "multi-label":
        assert classifier.thresholds == (0.5,) * outputs
        assert set(prediction.labels) == {name for name in classes if expected[name] >= 0.5}


def test_a_softmax_over_one_output_is_refused(tmp_path: Path) -> None:
    path, _ = with_head(tmp_path, 1, "linear")
    with pytest.raises(
        UserError, match=r"^classes: must be two for the one output of .*model\.h5, the second"
    ):
        classifier_from_weights(path, classes=["dog"], **GIVEN)
    with pytest.raises(UserError, match=r"^classes: must be 1, the outputs of .*model\.h5, not 3$"):
        classifier_from_weights(path, classes=["a", "b", "c"], **GIVEN)


def test_without_h5py_the_extra_is_named(tmp_path: Path) -> None:
    layers, _ = made("resnet")
    path = write(tmp_path / "w.h5", layers)
    with modules_imported_anew(missing="h5py"), pytest.raises(MissingExtraError, match='the extra "keras"'):
        create_model(weights=path, **RESNET)


def test_a_run_records_what_weights_do_not_tell(tmp_path: Path) -> None:
    """So that it is resumed as the same network, without the file."""
    path = write(tmp_path / "weights.h5", made("resnet")[0])
    options = {"block_config": [2, 1], "width": 4}
    given = TrainConfig(
        data="x",
        out=tmp_path / "run",
        model="resnet50",
        model_options=options,
        weights=str(path),
        block_execution="plain",
        epochs=1,
    )
    images = ImageDataset(
        classes=("a", "b"),
        names=list("abcdef"),
        labels=np.arange(6) % 2,
        splits=np.array(["train", "train", "train", "train", "val", "test"]),
        images=np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3)).astype(np.uint8),
    )
    prepared = prepare(given, images)
    assert prepared.config.model_options == {**options, "stride_in": "1x1"}
    path.unlink()
    resumed = prepare(prepared.config, images, load_weights=False)
    assert resumed.model.config == prepared.model.config
    assert resumed.model.config.stride_in == "1x1"


def test_the_network_is_known_by_its_blocks(tmp_path: Path) -> None:
    small = np.ones(1, np.float32)
    layers: Layers = {"conv1_conv": {"kernel": np.ones((7, 7, 3, 1), np.float32)}}
    for stage, blocks in ((2, 3), (3, 8), (4, 36), (5, 3)):
        for index in range(1, blocks + 1):
            layers[f"conv{stage}_block{index}_3_conv"] = {"kernel": small.reshape(1, 1, 1, 1)}
    name, fields = network_of(str(write(tmp_path / "w.h5", layers)))
    assert name == "resnet152"
    assert fields == {"in_chans": 3, "stride_in": "1x1"}
    assert network_of("xrv:densenet121-res224-all") == ("densenet121", {"in_chans": 1})
    assert network_of("imagenet") == (None, {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("theirs", "ours", "file"),
    [
        ("DenseNet121", "densenet121", "model.keras"),
        ("DenseNet121", "densenet121", "model.h5"),
        ("DenseNet121", "densenet121", "model.weights.h5"),
        ("DenseNet169", "densenet169", "model.keras"),
        ("DenseNet201", "densenet201", "model.keras"),
        ("ResNet50", "resnet50", "model.keras"),
        ("ResNet50", "resnet50", "model.h5"),
        ("ResNet50", "resnet50", "model.weights.h5"),
        ("ResNet101", "resnet101", "model.keras"),
        ("ResNet152", "resnet152", "model.keras"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_outputs_are_those_of_keras(
    theirs: str, ours: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    network = getattr(keras.applications, theirs)(
        weights=None, classes=7, input_shape=(64, 64, 3), classifier_activation=None
    )
    random = np.random.default_rng(0)
    for variable in network.weights:
        role = variable.path.rpartition("/")[2]
        if role == "moving_variance":
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
        elif role == "gamma":
            variable.assign(random.uniform(0.2, 1, variable.shape))
        elif role != "kernel":
            variable.assign(random.normal(0, 0.3, variable.shape))
    (network.save_weights if file == "model.weights.h5" else network.save)(tmp_path / file)
    images = random.standard_normal((2, 64, 64, 3)).astype(np.float32)
    expected = keras.ops.convert_to_numpy(network(images, training=False))
    model = create_model(ours, weights=tmp_path / file).eval()
    assert network_of(str(tmp_path / file))[0] == ours
    with torch.no_grad():
        found = model(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max() + 1e-6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
def test_a_network_inside_another_model_of_keras(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transfer learning in Keras leaves it: a nested backbone, pooling, and a layer of its own."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    backbone = keras.applications.DenseNet121(weights=None, include_top=False, input_shape=(64, 64, 3))
    layers = [backbone, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, name="findings")]
    network = keras.Sequential(layers)
    images = np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype(np.float32)
    expected = keras.ops.convert_to_numpy(network(images, training=False))
    network.save(tmp_path / file)
    model = create_model("densenet121", weights=tmp_path / file).eval()
    with torch.no_grad():
        found = model(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max() + 1e-6
