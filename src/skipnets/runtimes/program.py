"""Run a program of `torch.export`, operation by operation.

It is read as data (`skipnets.runtimes.archive`). An operation is one of a short list or, of networks that are
no part of this package, one of aten's core that only computes; its arguments are numbers and tensors. Other
operations and other kinds of arguments are refused by name.

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skipnets.errors import UserError
from skipnets.runtimes.archive import Archive
from skipnets.runtimes.graph_format import INPUT_NAMES

__all__ = ["OPERATIONS", "Program", "read_program"]

OPERATIONS = frozenset(
    {
        *("adaptive_avg_pool2d.default", "add.Tensor", "amax.default", "avg_pool2d.default"),
        *("batch_norm.default", "cat.default", "conv2d.default", "dropout.default", "flatten.using_ints"),
        *("group_norm.default", "linear.default", "max_pool2d.default", "mul.Tensor", "pad.default"),
        *("relu.default", "sub.Tensor", "to.dtype"),
        # Of layer norms, other activations, gates of channels and layer scale.
        *("conv1d.default", "gelu.default", "hardsigmoid.default", "hardswish.default"),
        *(
            "instance_norm.default",
            "layer_norm.default",
            "permute.default",
            "reshape.default",
            "sigmoid.default",
            "silu.default",
        ),
        *("movedim.int", "transpose.int", "unsqueeze.default"),
        # Of signals and volumes.
        *("adaptive_avg_pool1d.default", "avg_pool1d.default", "max_pool1d.default"),
        *("adaptive_avg_pool3d.default", "avg_pool3d.default", "conv3d.default", "max_pool3d.default"),
        # Of filter response norms and EvoNorm.
        *("div.Tensor", "maximum.default", "rsqrt.default", "sqrt.default", "square.default"),
        *("unflatten.int", "var.correction"),
        # Of an ensemble, whose probabilities are averaged.
        *("clamp.default", "log.default", "mean.dim", "softmax.int", "stack.default"),
    }
)
"""The operations of aten that exports of this package's networks consist of; none writes to its arguments or
to files.
"""

CORE_OPERATIONS = frozenset(
    {
        *("_adaptive_avg_pool2d.default", "_adaptive_avg_pool3d.default", "_log_softmax.default"),
        *("_softmax.default", "_to_copy.default", "abs.default", "acos.default", "acosh.default"),
        *("add.Scalar", "addmm.default", "alias.default", "amin.default", "any.default", "any.dim"),
        *("any.dims", "arange.start_step", "argmax.default", "argmin.default", "asin.default"),
        *("asinh.default", "atan.default", "atan2.default", "atanh.default", "bitwise_and.Scalar"),
        *("bitwise_and.Tensor", "bitwise_not.default", "bitwise_or.Scalar", "bitwise_or.Tensor"),
        *("bitwise_xor.Scalar", "bitwise_xor.Tensor", "bmm.default", "ceil.default", "clamp.Tensor"),
        *("clone.default", "col2im.default", "constant_pad_nd.default", "convolution.default"),
        *("copy.default", "cos.default", "cosh.default", "cumsum.default", "diagonal.default"),
        *("div.Scalar", "div.Scalar_mode", "div.Tensor_mode", "elu.default", "embedding.default"),
        *("eq.Scalar", "eq.Tensor", "erf.default", "exp.default", "expand.default", "expm1.default"),
        *("fill.Scalar", "flip.default", "floor.default", "fmod.Scalar", "fmod.Tensor", "full.default"),
        *("full_like.default", "gather.default", "ge.Scalar", "ge.Tensor", "grid_sampler_2d.default"),
        *("gt.Scalar", "gt.Tensor", "hardtanh.default", "index.Tensor", "index_put.default"),
        *("index_select.default", "isinf.default", "isnan.default", "le.Scalar", "le.Tensor"),
        *("leaky_relu.default", "log10.default", "log1p.default", "log2.default", "logical_and.default"),
        *("logical_not.default", "logical_or.default", "logical_xor.default", "lt.Scalar", "lt.Tensor"),
        *("max.dim", "max_pool2d_with_indices.default", "max_pool3d_with_indices.default", "mean.default"),
        *("min.dim", "minimum.default", "mm.default", "mul.Scalar", "native_group_norm.default"),
        *("native_layer_norm.default", "ne.Scalar", "ne.Tensor", "neg.default", "pow.Scalar"),
        *("pow.Tensor_Scalar", "pow.Tensor_Tensor", "prod.default", "prod.dim_int", "reciprocal.default"),
        *("reflection_pad1d.default", "reflection_pad2d.default", "reflection_pad3d.default"),
        *("remainder.Scalar", "remainder.Tensor", "repeat.default", "replication_pad2d.default"),
        *("replication_pad3d.default", "round.default", "scalar_tensor.default", "scatter.src"),
        *("scatter.value", "scatter_add.default", "scatter_reduce.two", "select.int"),
        *("select_scatter.default", "sign.default", "sin.default", "sinh.default", "slice.Tensor"),
        *("slice_scatter.default", "sort.default", "split_with_sizes.default", "squeeze.dim"),
        *("squeeze.dims", "sub.Scalar", "sum.dim_IntList", "sym_numel.default", "sym_size.int"),
        *("tan.default", "tanh.default", "topk.default", "trunc.default", "upsample_bilinear2d.vec"),
        *("upsample_nearest2d.vec", "var.dim", "view.default", "where.self"),
    }
)
"""Of networks that are no part of this package: those of aten's core that return new values, always the same,
and check the sizes of their arguments.
"""

_PREFIX = "torch.ops.aten."
# It states what the types of the input were, which the classifier checks itself.
_STATEMENT = "_assert_tensor_metadata.default"
# Of torch._export.serde.schema.ScalarType.
_TYPES = {
    1: torch.uint8,
    4: torch.int32,
    5: torch.int64,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
}
# Of its MemoryFormat and its Layout.
_MEMORY_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format}
_STRIDED = 7
# What torch.export makes of a batch norm; it reads beyond statistics that are too short.
_BATCH_NORM = f"{_PREFIX}_native_batch_norm_legit_no_training.default"
# What is computed of the number of images.
_OF_NUMBERS: dict[str, Callable[..., Any]] = {
    f"_operator.{name}": getattr(operator, name) for name in ("add", "floordiv", "mod", "mul", "sub")
}
# Arguments that would make an operation random, or write to its running statistics.
_NEVER = {("dropout.default", "train"), ("batch_norm.default", "training")}


class _Device:
    """An argument that stands for the device that the program runs on."""


@dataclass(frozen=True)
class _Value:
    """An argument that an earlier operation computes.

    Attributes:
        name: Its name.
    """

    name: str


@dataclass(frozen=True)
class _Step:
    """One operation.

    Attributes:
        operator: Of torch or, for numbers, of Python.
        arguments: By position; numbers, `_Value`, or lists of them.
        keywords: By name.
        results: The names of what it computes.
        last_used: Names of values that no later operation needs.
    """

    operator: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    results: tuple[str, ...]
    last_used: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """A network as a list of operations.

    Attributes:
        steps: In order.
        tensors: Its weights.
        input: The name of the images.
        outputs: The names of logits and features; of logits alone where a network has no features.
    """

    steps: tuple[_Step, ...]
    tensors: Mapping[str, Tensor]
    input: str
    outputs: tuple[str, ...]

    def to(self, device: torch.device) -> Program:
        """The program with its weights on a device."""
        tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return Program(self.steps, tensors, self.input, self.outputs)

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """(N, C, H, W) images → (N, classes) logits and, if there are any, (N, num_features) features."""
        values = {**self.tensors, self.input: images}

        def value(argument: Any) -> Any:
            if isinstance(argument, list):
                return [value(each) for each in argument]
            if isinstance(argument, _Device):
                return images.device
            return values[argument.name] if isinstance(argument, _Value) else argument

        for step in self.steps:
            arguments = [value(argument) for argument in step.arguments]
            keywords = {name: value(argument) for name, argument in step.keywords.items()}
            computed = step.operator(*arguments, **keywords)
            several = isinstance(computed, tuple | list)
            values.update(zip(step.results, computed if several else (computed,), strict=True))
            for name in step.last_used:
                del values[name]
        return tuple(values[name] for name in self.outputs)


def read_program(archive: Archive) -> Program:
    """The program in a .pt2 file.

    Raises:
        UserError: If it is damaged, or consists of something else than the operations of an export.
    """
    try:
        return _Parser(archive).program()
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{archive.path} is not a readable .pt2 file ({type(error).__name__} in its program)"
        ) from error


class _Parser:
    """From JSON to a `Program`.

    Args:
        archive: The file.
    """

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.module: dict[str, Any] = archive.graph["graph_module"]
        self.defined: set[str] = set()

    def program(self) -> Program:
        """The program, checked."""
        stored = self._stored_tensors()
        tensors: dict[str, Tensor] = {}
        images = None
        for specification in self.module["signature"]["input_specs"]:
            [(kind, content)] = specification.items()
            if kind in ("parameter", "buffer"):
                tensors[content["arg"]["name"]] = stored[content[f"{kind}_name"]]
            elif kind == "user_input" and images is None:
                images = content["arg"]["as_tensor"]["name"]
            else:
                self._refuse(f"an input of the kind {kind!r}")
        if images not in INPUT_NAMES:
            self._refuse(f"an input named {images!r}")
        assert isinstance(images, str)
        graph = self.module["graph"]
        outputs = tuple(output["as_tensor"]["name"] for output in graph["outputs"])
        for specification in self.module["signature"]["output_specs"]:
            if list(specification) != ["user_output"]:
                self._refuse(f"an output of the kind {next(iter(specification), None)!r}")
        if len(outputs) not in (1, 2):
            self._refuse(f"{len(outputs)} outputs")
        self.defined = {*tensors, images}
        steps = [step for node in graph["nodes"] if (step := self._step(node)) is not None]
        for output in outputs:
            self._used(output)
        return Program(_forgetful(steps, keep=outputs), tensors, images, outputs)

    def _stored_tensors(self) -> dict[str, Tensor]:
        """All tensors, by the name that they had in the model."""
        storages: dict[str, bytearray] = {}
        tensors = {}
        for name, content in self.archive.weights.items():
            if content["use_pickle"] is not False:
                self._refuse(f"the tensor {name!r} as a pickle")
            about, member = content["tensor_meta"], content["path_name"]
            if about["dtype"] not in _TYPES:
                self._refuse(f"the tensor {name!r} of an unknown type")
            kind = _TYPES[about["dtype"]]
            shape = [_whole(extent) for extent in about["sizes"]]
            strides = [_whole(extent) for extent in about["strides"]]
            offset = _whole(about["storage_offset"])
            if member not in storages:
                storages[member] = bytearray(self.archive.weight(member))
            flat = torch.frombuffer(storages[member], dtype=kind) if storages[member] else torch.empty(0)
            # A stride of 0 repeats values, so that a tensor of any size would fit on a single one.
            needed = max(_extent(shape, strides, offset), math.prod(shape))
            if min([*shape, *strides, offset, 1]) < 0 or flat.numel() < needed:
                raise UserError(f"{self.archive.path}: damaged (the tensor {name!r} is larger than its data)")
            tensor = flat.as_strided(shape, strides, offset)
            if kind.is_floating_point and not bool(torch.isfinite(tensor).all()):
                raise UserError(
                    f"{self.archive.path}: tensor {name} is not finite: "
                    "the training diverged or the file is damaged"
                )
            tensors[name] = tensor
        return tensors

    def _step(self, node: dict[str, Any]) -> _Step | None:
        """One operation; None for a statement about the input."""
        target = node["target"]
        name = target.removeprefix(_PREFIX)
        if name == _STATEMENT:
            return None
        if target in _OF_NUMBERS:
            function = _OF_NUMBERS[target]
        elif target == _BATCH_NORM:
            function = _batch_norm
        elif target.startswith(_PREFIX) and name in OPERATIONS | CORE_OPERATIONS:
            packet, _, overload = name.partition(".")
            function = getattr(getattr(torch.ops.aten, packet), overload)
        else:
            self._refuse(f"the operation {target!r}")
        arguments: list[Any] = []
        keywords: dict[str, Any] = {}
        for each in node["inputs"]:
            value = self._argument(each["arg"])
            if (name, each["name"]) in _NEVER and value is not False:
                self._refuse(f"{name} as in training")
            if each["kind"] == 1 and not keywords:
                arguments.append(value)
            else:
                keywords[each["name"]] = value
        results = tuple(name for output in node["outputs"] for name in _result_names(output))
        for result in results:
            if not isinstance(result, str) or result in self.defined:
                self._refuse(f"{result!r} twice")
            self.defined.add(result)
        return _Step(function, tuple(arguments), keywords, results, ())

    def _argument(self, argument: dict[str, Any]) -> Any:
        """A number, a type, or a reference to a tensor or to a number that depends on the images."""
        [(kind, value)] = argument.items()
        if kind == "as_none":
            return None
        if kind == "as_tensor":
            return self._used(value["name"])
        if kind == "as_tensors":
            return [self._used(each["name"]) for each in value]
        if kind == "as_sym_int":
            return self._number(value)
        if kind == "as_sym_ints":
            return [self._number(each) for each in value]
        if kind == "as_scalar_type" and value in _TYPES:
            return _TYPES[value]
        if kind == "as_memory_format" and value in _MEMORY_FORMATS:
            return _MEMORY_FORMATS[value]
        if kind == "as_layout" and value == _STRIDED:
            return torch.strided
        if kind == "as_device":
            return _Device()
        plain = {"as_bool": bool, "as_int": int, "as_float": (int, float), "as_string": str}
        if kind in plain and isinstance(value, plain[kind]):  # type: ignore[arg-type]
            return value
        many = {"as_ints": int, "as_floats": (int, float)}
        if kind in many and all(isinstance(each, many[kind]) for each in value):  # type: ignore[arg-type]
            return list(value)
        return self._refuse(f"an argument of the kind {kind!r}")

    def _number(self, argument: dict[str, Any]) -> Any:
        """A whole number, or a reference to one."""
        [(kind, value)] = argument.items()
        return self._used(value) if kind == "as_name" else self._argument(argument)

    def _used(self, name: str) -> _Value:
        if name not in self.defined:
            self._refuse(f"{name!r}, which nothing computes,")
        return _Value(name)

    def _refuse(self, what: str) -> Any:
        raise UserError(f"{self.archive.path}: holds {what}, which no export of skipnets does: not opened")


def _batch_norm(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm by statistics, and what it returns beside that; sizes that do not fit are an error."""
    weight, bias, mean, variance, momentum, eps = arguments
    normed = torch.batch_norm(x, weight, bias, mean, variance, False, momentum, eps, False)
    return normed, x.new_zeros(0), x.new_zeros(0)


def _forgetful(steps: list[_Step], *, keep: tuple[str, ...]) -> tuple[_Step, ...]:
    """The steps, which drop values after their last use, so that memory is as small as when layers run."""
    computed = {result for step in steps for result in step.results}
    needed, backwards = set(keep), []
    for step in reversed(steps):
        used = {*step.results, *_names([*step.arguments, *step.keywords.values()])}
        done = tuple(sorted(used & computed - needed))
        needed |= used
        backwards.append(_Step(step.operator, step.arguments, step.keywords, step.results, done))
    return tuple(reversed(backwards))


def _result_names(output: dict[str, Any]) -> list[Any]:
    """The names in one output of an operation: a tensor, several, or a number."""
    [(kind, value)] = output.items()
    if kind == "as_tensors":
        return [each["name"] for each in value]
    return [value["as_name"] if kind == "as_sym_int" else value["name"]]


def _names(arguments: list[Any]) -> set[str]:
    found: set[str] = set()
    for argument in arguments:
        if isinstance(argument, list):
            found |= _names(argument)
        elif isinstance(argument, _Value):
            found.add(argument.name)
    return found


def _whole(extent: dict[str, Any]) -> int:
    """A whole number; an expression is refused with a KeyError."""
    value = extent["as_int"]
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is no whole number")
    return value


def _extent(shape: list[int], strides: list[int], offset: int) -> int:
    """How many values a strided tensor reaches over."""
    if len(shape) != len(strides) or 0 in shape:
        return 0 if 0 in shape and len(shape) == len(strides) else 1 << 62
    return offset + 1 + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))
