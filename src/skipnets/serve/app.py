"""The routes and their OpenAPI description."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import os
import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence, Set
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field
from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect

from skipnets.classifier import Classifier, Prediction, RegressionPrediction, as_classifier
from skipnets.errors import UserError, near_matches
from skipnets.machine import usable_cores
from skipnets.serve.documentation import documentation_page
from skipnets.serve.examples import Example
from skipnets.serve.guard import Guard, refusal_body
from skipnets.serve.inference import inference_router
from skipnets.serve.limits import Limits
from skipnets.serve.service import BusyError, Service, Upload

__all__ = ["create_app"]

_FREE = frozenset({"/", "/docs", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
_COUNTED = _FREE | {"/metrics", "/openapi.json", "/v1/explain", "/v1/model", "/v1/predict"}
_TOP_K = 100
_NAME_LENGTH = 255


class Ranked(BaseModel):
    """A class and its probability."""

    label: str
    probability: float


class Number(BaseModel):
    """A target and its number."""

    target: str
    value: float
    low: float | None = Field(
        default=None, description="Where its interval begins; only where the server has a coverage."
    )
    high: float | None = Field(default=None, description="Where its interval ends.")


class Answer(BaseModel):
    """The prediction for one image."""

    file: str = Field(description="The client's name for it.")
    label: str | None = Field(
        description="The most probable class; null if the image could not be read, with several labels, or "
        "of a regression."
    )
    probability: float | None = Field(description="Probability of that class.")
    labels: list[str] = Field(
        description="That class; of a multi-label model, the labels that reach their thresholds."
    )
    ranking: list[Ranked] = Field(
        description="The most probable classes, best first; of a multi-label model, all labels."
    )
    values: list[Number] | None = Field(
        None, description="Of a regression, the number of each target; otherwise it is not there."
    )
    prediction_set: list[str] | None = Field(
        default=None,
        description="Classes that contain the true one, or of several labels the share of them that was "
        "asked for; only where the server has a coverage.",
    )
    p_value: float | None = Field(
        default=None, description="How usual the image is; only where the server rejects unusual ones."
    )
    rejected: bool | None = Field(default=None, description="Whether it is so unusual that it is rejected.")
    error: str | None = Field(description="Why the image could not be read, or computed.")


class Answers(BaseModel):
    """The predictions for a request's images, in order."""

    predictions: list[Answer]
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "predictions": [
                        {
                            "file": "a.jpg",
                            "label": "cat",
                            "probability": 0.91,
                            "labels": ["cat"],
                            "ranking": [
                                {"label": "cat", "probability": 0.91},
                                {"label": "dog", "probability": 0.08},
                            ],
                            "error": None,
                        },
                        {
                            "file": "notes.txt",
                            "label": None,
                            "probability": None,
                            "labels": [],
                            "ranking": [],
                            "error": "image: not an image in a known format (BMP, GIF, JPEG, …)",
                        },
                    ]
                }
            ]
        }
    )


class Unreadable(Answers):
    """None of the images could be read."""

    detail: str


class Bounds(BaseModel):
    """Limits of a request."""

    body_bytes: int
    files: int
    pixels: int = Field(description="Most pixels in one image.")
    seconds: float
    top_k: int


class RuntimeNames(BaseModel):
    """The runtime that runs the network."""

    name: str
    device: str


class ModelAnswer(BaseModel):
    """The model that is served."""

    name: str
    classes: list[str]
    task: str = Field(
        description="single-label, multi-label for any number of labels an image, or regression for numbers, "
        "whose targets are the classes."
    )
    thresholds: list[float] | None = Field(
        description="Of a multi-label model, the probability from which on each label counts as present."
    )
    scales: list[dict[str, Any]] | None = Field(
        description="Of a regression, mean and standard deviation of each target on the training images."
    )
    preprocessing: dict[str, Any] = Field(description="How an image becomes the network's input.")
    architecture: dict[str, Any] = Field(description="Of an ensemble of different networks the first's.")
    architectures: list[dict[str, Any]] = Field(
        default_factory=list, description="Of an ensemble, that of each network; otherwise empty."
    )
    provenance: dict[str, Any] = Field(description="Where the weights come from.")
    temperature: float
    runtime: RuntimeNames
    explains: bool = Field(description="Whether /v1/explain is available.")
    unexplained: str | None = Field(description="Why it is not, and what turns it on.")
    examples: list[str] = Field(description="Names of the images under /v1/examples/{index}.")
    limits: Bounds
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "densenet121",
                    "classes": ["cat", "dog"],
                    "task": "single-label",
                    "thresholds": None,
                    "scales": None,
                    "preprocessing": {"size": [224, 224], "fit": "pad", "channels": 3},
                    "architecture": {"family": "densenet", "name": "densenet121"},
                    "architectures": [],
                    "provenance": {"created": "2026-01-31", "data": "pets", "scores": {"accuracy": 0.97}},
                    "temperature": 1.1,
                    "runtime": {"name": "onnxruntime", "device": "cpu"},
                    "explains": False,
                    "unexplained": "runtime onnxruntime gives no gradients; --runtime torch does",
                    "examples": [],
                    "limits": {
                        "body_bytes": 33554432,
                        "files": 32,
                        "pixels": 25000000,
                        "seconds": 30,
                        "top_k": _TOP_K,
                    },
                }
            ]
        }
    )


class Status(BaseModel):
    """The server's state."""

    status: str


class Failure(BaseModel):
    """Why a request was refused, in one line."""

    detail: str


_Responses = dict[int | str, dict[str, Any]]


def _refusals(*statuses: int) -> _Responses:
    """OpenAPI descriptions of refusals."""
    examples = {
        400: "the form is malformed: Missing boundary in multipart.",
        401: "a token is needed: Authorization: Bearer …",
        404: "there are 8 examples",
        408: "the request did not arrive within 30 s",
        413: "the request is larger than 33,554,432 bytes, the limit; skipnets serve --max-megabytes allows "
        "more",
        415: "images come as multipart/form-data, not as application/json",
        422: "top_k: Input should be greater than or equal to 1",
        501: "no Grad-CAM: runtime onnxruntime gives no gradients; --runtime torch does",
        503: "256 images are waiting, of 256 at most",
        504: "no answer within 30 s",
    }
    return {
        status: {"model": Failure, "content": {"application/json": {"example": {"detail": examples[status]}}}}
        for status in statuses
    }


def _form(field: str, schema: dict[str, Any], **more: dict[str, Any]) -> dict[str, Any]:
    """A multipart form for OpenAPI. The routes parse it themselves, to enforce limits while it arrives."""
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {"type": "object", "required": [field], "properties": {field: schema, **more}}
                }
            },
        }
    }


_IMAGE = {"type": "string", "format": "binary"}


def create_app(
    model: str | os.PathLike[str] | Classifier | Callable[[], Classifier],
    *,
    limits: Limits | None = None,
    token: str | None = None,
    allow_hosts: Sequence[str] = (),
    examples: Sequence[Example] = (),
    batch_size: int = 32,
    batch_delay: float = 0.005,
    workers: int | None = None,
    coverage: float | None = None,
    reject: float | None = None,
) -> FastAPI:
    """A classifier as an ASGI application; its service is `app.state.service`.

    Args:
        model: A model file, a run folder, an export, a classifier, or a function that loads one. It is loaded
            while the server already answers `/healthz`.
        limits: Beyond them requests are refused; None takes the defaults.
        token: Bearer token that clients must send; None requires none.
        allow_hosts: Names by which clients may address the server, beside localhost; "*" for any. Without
            names, only connections to a loopback address are checked.
        examples: Images that the page offers.
        batch_size: Most images in a batch.
        batch_delay: Longest time that an image waits for others while the network is idle, in seconds.
        workers: Threads that decode images; None takes one per core.
        coverage: Give each image the set of classes that contains the true one with this probability; takes
            a calibrated model.
        reject: Say whether an image is among this share of the most unusual ones, likewise.

    Raises:
        UserError: If a value is impossible.
    """
    if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token != ""):
        raise UserError("token: must be printable ASCII without blanks around it, and not empty")
    service = Service(
        model if callable(model) else partial(as_classifier, model),
        limits=limits or Limits(),
        batch_size=batch_size,
        batch_delay=batch_delay,
        workers=usable_cores() if workers is None else workers,
        coverage=coverage,
        reject=reject,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.opened():
            yield

    app = FastAPI(
        title="skipnets",
        summary="Classifies images.",
        version="1",
        lifespan=lifespan,
        # Their pages would fetch scripts from other sites.
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    page = (importlib.resources.files("skipnets.serve") / "page.html").read_text("utf-8")
    app.add_middleware(
        Guard,
        service=service,
        token=token,
        free=_FREE,
        counted=_counted,
        hosts=frozenset(name.lower() for name in allow_hosts),
        headers={
            "Cache-Control": "no-store",
            "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        },
    )
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(BusyError, _busy)
    app.add_exception_handler(HTTPException, _refused)
    _add_operations(app, service, page)
    _add_interface(app, service, examples)
    app.include_router(inference_router(service))
    return app


def _add_operations(app: FastAPI, service: Service, page: str) -> None:
    """The page, health checks and metrics."""
    headers = {"Content-Security-Policy": _policy(page)}

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        described = documentation_page(app.openapi())
        security = {"Content-Security-Policy": _policy(described)}
        return Response(described, media_type="text/html; charset=utf-8", headers=security)

    @app.get("/healthz", summary="Whether the process is alive", tags=["operation"])
    async def healthz() -> Status:
        return Status(status="ok")

    @app.get(
        "/readyz",
        summary="Whether images are accepted",
        tags=["operation"],
        responses={503: {"model": Status, "description": "Loading or draining."}},
    )
    async def readyz(response: Response) -> Status:
        if service.state != "ready":
            response.status_code = 503
        return Status(status=service.state)

    @app.get(
        "/metrics",
        summary="Metrics for Prometheus",
        tags=["operation"],
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}},
    )
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _add_interface(app: FastAPI, service: Service, examples: Sequence[Example]) -> None:
    """The interface for clients."""
    limits = service.limits
    unreadable: _Responses = {
        422: {"model": Unreadable | Failure, "description": "No image could be read, or bad input."}
    }
    png: _Responses = {
        200: {"content": {"image/png": {}}, "description": "The image with a Grad-CAM overlay."}
    }
    image: _Responses = {200: {"content": {"image/jpeg": {}, "image/png": {}}}}

    @app.get("/v1/model", summary="The model that is served", tags=["v1"], responses=_refusals(401, 503))
    async def model() -> ModelAnswer:
        classifier = service.classifier
        return ModelAnswer(
            name=classifier.network,
            classes=list(classifier.classes),
            task=classifier.task,
            thresholds=None if classifier.thresholds is None else list(classifier.thresholds),
            scales=None if classifier.scales is None else [scale.to_dict() for scale in classifier.scales],
            preprocessing=classifier.preprocessing.to_dict(),
            architecture=classifier.architecture,
            architectures=list(map(dict, classifier.architectures)) if classifier.ensemble > 1 else [],
            provenance=classifier.provenance,
            temperature=classifier.temperature,
            runtime=RuntimeNames(name=classifier.runtime.name, device=classifier.runtime.device),
            explains=service.unexplained is None,
            unexplained=service.unexplained,
            examples=[example.name for example in examples],
            limits=Bounds(
                body_bytes=limits.body_bytes,
                files=limits.files,
                pixels=limits.pixels,
                seconds=limits.seconds,
                top_k=_TOP_K,
            ),
        )

    @app.post(
        "/v1/predict",
        summary="Classify images",
        tags=["v1"],
        response_model=Answers,
        responses=unreadable | _refusals(400, 401, 408, 413, 415, 503, 504),
        openapi_extra=_form("files", {"type": "array", "items": _IMAGE, "maxItems": limits.files}),
    )
    async def predict(
        request: Request, top_k: Annotated[int, Query(ge=1, le=_TOP_K, examples=[3])] = 5
    ) -> Response:
        """Send each image as a part `files`: `curl -F files=@a.jpg -F files=@b.png …/v1/predict`.

        An image that cannot be read, or computed, has an `error`; the others have their predictions. The
        status is 422 only if none has one.
        """
        _check_names("parameter", request.query_params, {"top_k"})
        with service.admitted() as take:
            async with _read_form(request, limits.files) as form:
                uploads = _uploads(form, set())
                take(len(uploads))
                predictions = await service.predict(uploads, top_k)
        answers: dict[str, Any] = {"predictions": [_answer(prediction) for prediction in predictions]}
        if all(prediction.error is not None for prediction in predictions):
            answers["detail"] = f"no image could be read or computed: {predictions[0].error}"
        return JSONResponse(answers, 422 if "detail" in answers else 200)

    @app.post(
        "/v1/explain",
        summary="Grad-CAM map of an image",
        tags=["v1"],
        response_class=Response,
        responses=png | _refusals(400, 401, 408, 413, 415, 422, 501, 503, 504),
        openapi_extra=_form("file", _IMAGE, label={"type": "string", "examples": ["cat"]}),
    )
    async def explain(request: Request) -> Response:
        """Send one image, and the class as `label`; without it, the most probable class is explained.

        Of a regression, `label` is a target, by default the first.
        """
        if service.state == "ready" and service.unexplained is not None:
            raise HTTPException(501, f"no Grad-CAM: {service.unexplained}")
        _check_names("parameter", request.query_params, set())
        with service.admitted():
            async with _read_form(request, 1) as form:
                uploads = _uploads(form, {"label"})
                label = form.get("label")
                try:
                    shown = await service.explain(
                        uploads[0], label if isinstance(label, str) and label else None
                    )
                except UserError as error:
                    raise HTTPException(422, str(error)) from error
        return Response(shown, media_type="image/png")

    @app.get(
        "/v1/examples/{index}",
        summary="An example image",
        tags=["v1"],
        response_class=Response,
        responses=image | _refusals(401, 404),
    )
    async def example(index: int) -> Response:
        if not 0 <= index < len(examples):
            raise HTTPException(404, f"there are {len(examples)} examples")
        return Response(examples[index].content, media_type=examples[index].media_type)


@asynccontextmanager
async def _read_form(request: Request, files: int) -> AsyncIterator[FormData]:
    """The form of a request; its temporary files are deleted when the block ends."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise HTTPException(415, f"images come as multipart/form-data, not as {kind or 'a bare body'}")
    try:
        form = await request.form(max_files=files, max_fields=files, max_part_size=2**16)
    except ClientDisconnect as error:
        raise HTTPException(400, "the client disconnected") from error
    except FormParserError as error:  # which older versions of Starlette let through
        raise HTTPException(400, f"the form is malformed: {error}") from error
    try:
        yield form
    finally:
        await form.close()


def _check_names(kind: str, given: Iterable[str], known: Set[str]) -> None:
    """Refuse what would have no effect, such as a misspelled name."""
    for name in given:
        if name not in known:
            shown = " ".join(name[:_NAME_LENGTH].split())
            raise HTTPException(422, f"{shown}: there is no such {kind}{near_matches(name, known)}")


def _uploads(form: FormData, fields: Set[str]) -> list[Upload]:
    """The files of a form, which may have these other fields."""
    uploads = [
        Upload((part.filename or "")[:_NAME_LENGTH], part.file)
        for _, part in form.multi_items()
        if isinstance(part, UploadFile)
    ]
    if not uploads:
        raise HTTPException(422, "there is no image: send each as a file, as in curl -F files=@image.jpg")
    _check_names("field", (name for name, part in form.multi_items() if isinstance(part, str)), fields)
    return uploads


def _answer(prediction: Prediction) -> dict[str, Any]:
    """An `Answer` as a dict: validating the model would take longer than a small network."""
    return {
        "file": prediction.source,
        "label": prediction.label,
        "probability": prediction.probability,
        "labels": list(prediction.labels),
        "ranking": [{"label": label, "probability": share} for label, share in prediction.ranking],
        **_numbers(prediction),
        **_uncertainty(prediction),
        "error": prediction.error,
    }


def _numbers(prediction: Prediction) -> dict[str, Any]:
    """The field of an answer that a regression's has."""
    if not isinstance(prediction, RegressionPrediction):
        return {}
    limits = {name: {"low": low, "high": high} for name, low, high in prediction.intervals}
    return {
        "values": [
            {"target": name, "value": value, **limits.get(name, {})} for name, value in prediction.values
        ]
    }


def _uncertainty(prediction: Prediction) -> dict[str, Any]:
    """The fields of an answer that were asked for when the server was started."""
    fields: dict[str, Any] = {}
    if prediction.prediction_set is not None:
        fields["prediction_set"] = list(prediction.prediction_set)
    if prediction.p_value is not None:
        fields |= {"p_value": prediction.p_value, "rejected": prediction.rejected}
    return fields


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return JSONResponse({"detail": f"{first['loc'][-1]}: {first['msg']}"}, 422)


async def _busy(request: Request, error: Exception) -> Response:
    assert isinstance(error, BusyError)
    body = refusal_body(request.url.path, str(error))
    return JSONResponse(body, 503, {"Retry-After": str(error.seconds)})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(refusal_body(request.url.path, error.detail), error.status_code, error.headers)


def _counted(path: str) -> str:
    """The path under which a request is counted: one of the routes, whatever clients ask for."""
    if path.startswith("/v2/models/"):
        return "/v2/infer" if path.endswith("/infer") else "/v2/models"
    return path if path in _COUNTED else "other"


def _policy(page: str) -> str:
    """The page's Content-Security-Policy: its script, style and images, and requests to this server."""
    script, style = (_digests(page, tag) for tag in ("script", "style"))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _digests(page: str, tag: str) -> str:
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found]
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
