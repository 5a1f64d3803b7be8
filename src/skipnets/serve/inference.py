"""The Open Inference Protocol (KServe V2), for clients of KServe, Triton and their like.

A request has one input, `images`: encoded files (BYTES, base64 in JSON) or pixels (UINT8, or numbers that a
window is for). The outputs are
`probabilities` and `labels` (of a multi-label classifier, those found in an image, as "cat|dog"); of a
regression, `values`. Tensors are in JSON, or behind it in the binary tensor extension.

Source: https://github.com/kserve/open-inference-protocol, and Triton's extension for binary tensors,
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md

Shapes: N images, H height, W width, C channels.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from skipnets.axes import AXES
from skipnets.classifier import Classifier
from skipnets.data.decoding import ImageDecodeError
from skipnets.errors import UserError, one_line
from skipnets.predicting import make_prediction
from skipnets.serve.service import Service, Upload
from skipnets.version import __version__

__all__ = ["Inference", "inference_router", "read_inference", "write_inference"]

_HEADER_LENGTH = "inference-header-content-length"
_VERSION = "1"
# A value of JSON is up to a hundred bytes in memory; before each, one of these marks stands.
_MOST_VALUES = 1_000_000
_MARKS = (b",", b":", b"[", b"{")
# A single character beyond ASCII can make a string four times as large.
_LONGEST_TEXT = 2**20
_ID_LENGTH = 1000
Output = Literal["probabilities", "labels", "values"]
_OF_CLASSES: tuple[Output, ...] = ("probabilities", "labels")
_OF_NUMBERS: tuple[Output, ...] = ("values",)
# Numbers far from 0, such as times, would lose their last digits as float32.
_DATATYPES: dict[Output, str] = {"probabilities": "FP32", "labels": "BYTES", "values": "FP64"}

# The protocol's types of pixels, and NumPy's.
_TYPES = {"UINT8": "u1"}
_FLOATS = {"FP32": "<f4", "FP64": "<f8"}
_WINDOWED_TYPES = {"UINT8": "u1", "UINT16": "<u2", "INT16": "<i2", "FP32": "<f4"}


@dataclass(frozen=True)
class Inference:
    """A request of the protocol.

    Attributes:
        images: Encoded files, or arrays (H, W, C).
        outputs: Name → whether its tensor is sent in binary.
        id: The client's own; repeated in the response.
    """

    images: Sequence[bytes | NDArray[Any]]
    outputs: Mapping[Output, bool]
    id: str | None = None


def read_inference(
    body: bytes,
    header_length: str | None,
    channels: int,
    *,
    dims: int = 2,
    windowed: bool = False,
    most_images: int = 32,
    outputs: tuple[Output, ...] = _OF_CLASSES,
) -> Inference:
    """Read a request.

    Args:
        body: JSON, and binary tensors behind it.
        header_length: How much of the body is JSON, as the request's header says; None for all of it.
        channels: Of images that are sent as pixels.
        dims: Spatial axes of these: 1 of signals, 3 of volumes.
        windowed: Whether pixels may have more than 8 bits, for a model with a window.
        most_images: In a request.
        outputs: Those that the model has.

    Raises:
        UserError: If it is none, or asks for what the model does not have.
    """
    if header_length is None:
        text, binary = body, memoryview(b"")
    elif header_length.isdecimal() and len(header_length) <= 12 and int(header_length) <= len(body):
        text, binary = body[: int(header_length)], memoryview(body)[int(header_length) :]
    else:
        raise UserError(f"{_HEADER_LENGTH}={header_length}: must be at most the body's {len(body)} bytes")
    values = sum(text.count(mark) for mark in _MARKS)
    if values > _MOST_VALUES:
        raise UserError(
            f"the JSON holds more than {_MOST_VALUES:,} values, the limit: "
            "send pixels in the binary extension"
        )
    if len(text) > _LONGEST_TEXT and not text.isascii():
        raise UserError(f"JSON of more than {_LONGEST_TEXT:,} bytes must be in ASCII")
    try:
        request = json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise UserError("the request is not JSON") from error
    inputs = _field(request, "inputs", list)
    if len(inputs) != 1 or _field(inputs[0], "name", str) != "images":
        raise UserError("inputs: must be one, named images")
    return Inference(
        images=_images(
            inputs[0], binary, channels, _WINDOWED_TYPES if windowed else _TYPES, most_images, dims
        ),
        outputs=_outputs(request, outputs),
        id=_id(request),
    )


def write_inference(
    inference: Inference, probabilities: NDArray[np.float64], classifier: Classifier, model: str
) -> Response:
    """The response to a request.

    Args:
        inference: The request.
        probabilities: (N, classes), or numbers.
        classifier: What computed them.
        model: Its name.
    """
    labels = ["|".join(make_prediction(classifier, "", row).labels) for row in probabilities]
    shape = list(probabilities.shape)
    tensors: dict[Output, tuple[list[int], list[Any]]] = {
        "probabilities": (shape, probabilities.astype(np.float32).ravel().tolist()),
        "labels": ([len(labels)], labels),
        "values": (shape, probabilities.ravel().tolist()),
    }
    outputs: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for name, is_binary in inference.outputs.items():
        datatype, (shape, data) = _DATATYPES[name], tensors[name]
        output: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
        if is_binary:
            packed = _packed(data) if datatype == "BYTES" else np.asarray(data, _FLOATS[datatype]).tobytes()
            binary.append(packed)
            output["parameters"] = {"binary_data_size": len(packed)}
        else:
            output["data"] = data
        outputs.append(output)
    answer: dict[str, Any] = {"model_name": model, "model_version": _VERSION, "outputs": outputs}
    if inference.id is not None:
        answer["id"] = inference.id
    if not binary:
        return JSONResponse(answer)
    head = json.dumps(answer).encode()
    headers = {_HEADER_LENGTH: str(len(head))}
    return Response(head + b"".join(binary), media_type="application/octet-stream", headers=headers)


def inference_router(service: Service) -> APIRouter:
    """The protocol's routes."""
    router = APIRouter(prefix="/v2", tags=["v2"])
    reading = asyncio.Lock()  # a body as Python objects is several times as large: one at a time

    @router.get("", summary="The server")
    async def server() -> dict[str, Any]:
        return {"name": "skipnets", "version": __version__, "extensions": ["binary_tensor_data"]}

    @router.get("/health/live", summary="Whether the process is alive")
    async def live() -> dict[str, Any]:
        return {"live": True}

    @router.get("/health/ready", summary="Whether images are accepted")
    async def ready(response: Response) -> dict[str, Any]:
        response.status_code = 200 if service.state == "ready" else 503
        return {"ready": service.state == "ready"}

    @router.get("/models/{name}", summary="The model's inputs and outputs")
    @router.get("/models/{name}/versions/{version}", include_in_schema=False)
    async def model(name: str, version: str = _VERSION) -> JSONResponse:
        return _no_such_model(service, name, version) or JSONResponse(_metadata(service.classifier))

    @router.get("/models/{name}/ready", summary="Whether the model accepts images")
    @router.get("/models/{name}/versions/{version}/ready", include_in_schema=False)
    async def model_ready(name: str, version: str = _VERSION) -> JSONResponse:
        is_ready = service.state == "ready"
        status = 200 if is_ready else 503
        return _no_such_model(service, name, version) or JSONResponse(
            {"name": name, "ready": is_ready}, status
        )

    @router.post("/models/{name}/infer", summary="Classify images", response_class=Response)
    @router.post("/models/{name}/versions/{version}/infer", include_in_schema=False)
    async def infer(request: Request, name: str, version: str = _VERSION) -> Response:
        """Input `images`: encoded files (BYTES, base64 in JSON) or pixels (UINT8, N × H × W × C).

        For a model of images with more than 8 bits, pixels may also be UINT16, INT16 or FP32. Of signals they
        are N × L × C, of volumes N × D × H × W × C.

        Outputs `probabilities` (FP32) and `labels` (BYTES), of a regression `values` (FP64); tensors may be
        in the binary extension.
        """
        if (missing := _no_such_model(service, name, version)) is not None:
            return missing
        if "content-encoding" in request.headers:
            return _error("content-encoding: must not be given; images are compressed already", 415)
        classifier = service.classifier
        length = request.headers.get(_HEADER_LENGTH)
        try:
            with service.admitted() as take:
                preprocessing = classifier.preprocessing
                body = b"".join([chunk async for chunk in request.stream()])
                async with reading:
                    inference = await run_in_threadpool(
                        _read,
                        body,
                        length,
                        preprocessing.channels,
                        dims=preprocessing.dims,
                        windowed=preprocessing.window is not None,
                        most_images=service.limits.files,
                        outputs=_outputs_of(classifier),
                    )
                del body  # the images are what is needed of it
                if isinstance(inference, UserError):
                    return _error(str(inference), 400)
                take(len(inference.images))
                rows = await service.probabilities(
                    [
                        Upload("", io.BytesIO(image)) if isinstance(image, bytes) else image
                        for image in inference.images
                    ]
                )
        except ClientDisconnect:
            return _error("the client disconnected", 400)
        except UserError as error:
            text = str(error)
            return _error(text.removeprefix("image: ") if isinstance(error, ImageDecodeError) else text, 400)
        return write_inference(inference, rows, classifier, name)

    return router


def _read(*args: Any, **options: Any) -> Inference | UserError:
    """The request, or what is wrong with it in one line, which may repeat only some of what a client sent.

    An error that is raised would keep all of the request's objects in memory, by its traceback.
    """
    try:
        return read_inference(*args, **options)
    except UserError as error:
        return UserError(one_line(error))


def _metadata(classifier: Classifier) -> dict[str, Any]:
    classes = len(classifier.classes)
    return {
        "name": classifier.network,
        "versions": [_VERSION],
        "platform": f"skipnets_{classifier.runtime.name}",
        "inputs": [{"name": "images", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": name, "datatype": _DATATYPES[name], "shape": [-1] if name == "labels" else [-1, classes]}
            for name in _outputs_of(classifier)
        ],
        "parameters": {
            "targets" if classifier.task == "regression" else "classes": list(classifier.classes),
            **({} if classifier.thresholds is None else {"thresholds": list(classifier.thresholds)}),
        },
    }


def _outputs_of(classifier: Classifier) -> tuple[Output, ...]:
    return _OF_NUMBERS if classifier.task == "regression" else _OF_CLASSES


def _no_such_model(service: Service, name: str, version: str) -> JSONResponse | None:
    served = service.classifier.network
    if name == served and version == _VERSION:
        return None
    return _error(
        f"model {name[:100]!r}, version {version[:100]!r}: this server has {served!r}, version '1'", 404
    )


def _error(text: str, status: int) -> JSONResponse:
    return JSONResponse({"error": text}, status)


def _field(record: Any, name: str, kind: type, *default: Any) -> Any:
    """A field of a JSON object, of one type."""
    if not isinstance(record, dict):
        raise UserError(f"{name}: must be in a JSON object")
    if name not in record and default:
        return default[0]
    value = record.get(name)
    if not isinstance(value, kind):
        raise UserError(f"{name}: must be of type {kind.__name__}")
    return value


def _integer(digits: str) -> int:
    if len(digits) > 20:  # beyond 64 bits; the time for reading grows with the square of the digits
        raise ValueError(digits[:20])
    return int(digits)


def _id(request: dict[str, Any]) -> str | None:
    found: str | None = _field(request, "id", str, None)
    if found is not None and len(found) > _ID_LENGTH:
        raise UserError(f"id: must have at most {_ID_LENGTH:,} characters, as it is repeated in the answer")
    return found


def _images(
    tensor: dict[str, Any], binary: memoryview, channels: int, types: Mapping[str, str], most: int, dims: int
) -> Sequence[bytes | NDArray[Any]]:
    datatype = _field(tensor, "datatype", str)
    shape = _field(tensor, "shape", list)
    if not all(isinstance(size, int) and 0 < size < 2**31 for size in shape):
        raise UserError(f"shape={shape}: must be of numbers above 0")
    if shape and shape[0] > most:
        raise UserError(f"images: there may be {most} in a request")
    parameters = _field(tensor, "parameters", dict, {})
    data: Any = tensor.get("data")
    if "binary_data_size" in parameters:
        data = binary
        if parameters["binary_data_size"] != len(binary):
            raise UserError(
                f"binary_data_size={parameters['binary_data_size']}: {len(binary)} bytes follow the JSON"
            )
    elif not isinstance(data, list):
        raise UserError("data: must be a list, or follow the JSON in binary")
    if datatype == "BYTES":
        files = _unpacked(data, most) if isinstance(data, memoryview) else _from_base64(data)
        if shape not in ([len(files)], [len(files), 1]):
            raise UserError(f"shape={shape}: must be [{len(files)}], the number of images")
        return files
    if datatype not in types:
        raise UserError(
            f"datatype={datatype}: must be BYTES (encoded images) or {' or '.join(types)} (pixels)"
        )
    if len(shape) != dims + 2 or shape[-1] != channels:
        raise UserError(f"shape={shape}: must be [N, {AXES[dims]}, {channels}]")
    return list(_pixels(data, shape, types[datatype]))


def _pixels(data: memoryview | list[Any], shape: list[int], dtype: str) -> NDArray[Any]:
    """(N, H, W, C)."""
    try:
        flat = np.frombuffer(data, dtype) if isinstance(data, memoryview) else _numbers(data, dtype)
        return flat.reshape(shape)
    except ValueError as error:
        kind = "numbers"
        if np.dtype(dtype).kind in "iu":
            kind = f"whole numbers from {np.iinfo(dtype).min} to {np.iinfo(dtype).max}"
        raise UserError(f"data: must be {'×'.join(map(str, shape))} {kind}") from error


def _numbers(data: list[Any], dtype: str) -> NDArray[Any]:
    """(N · H · W · C,) numbers of JSON.

    Raises:
        ValueError: If something else is in it, or a number that NumPy would cut off or wrap around.
    """
    values = np.array(data, object).ravel()
    if not set(map(type, values)) <= {int, float}:
        raise ValueError("not numbers alone")
    given = values.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        numbers = given.astype(dtype)
    if numbers.dtype.kind in "iu" and not (numbers == given).all():
        raise ValueError("not numbers of this type")
    return numbers


def _from_base64(data: list[Any]) -> list[bytes]:
    try:
        return [base64.b64decode(item, validate=True) for item in data]
    except (binascii.Error, TypeError, ValueError) as error:
        raise UserError("data: must be image files in base64") from error


def _unpacked(data: memoryview, most: int) -> list[bytes]:
    """BYTES elements, each behind its length in four bytes."""
    items: list[bytes] = []
    place = 0
    while place < len(data):
        if len(items) == most:
            raise UserError(f"images: there may be {most} in a request")
        if place + 4 > len(data):
            raise UserError("data: is cut short")
        [size] = struct.unpack_from("<I", data, place)
        place += 4
        if place + size > len(data):
            raise UserError("data: is cut short")
        items.append(bytes(data[place : place + size]))
        place += size
    return items


def _packed(items: Sequence[str]) -> bytes:
    encoded = [item.encode(errors="replace") for item in items]
    return b"".join(struct.pack("<I", len(item)) + item for item in encoded)


def _outputs(request: dict[str, Any], there: tuple[Output, ...]) -> dict[Output, bool]:
    all_binary = _field(request, "parameters", dict, {}).get("binary_data_output") is True
    wanted = _field(request, "outputs", list, [])
    if not wanted:
        return dict.fromkeys(there, all_binary)
    outputs: dict[Output, bool] = {}
    for output in wanted:
        name = _field(output, "name", str)
        if name not in there:
            raise UserError(f"outputs: there is no {name!r}; the model has {' and '.join(there)}")
        binary = _field(output, "parameters", dict, {}).get("binary_data", all_binary)
        outputs[cast(Output, name)] = binary is True
    return outputs
