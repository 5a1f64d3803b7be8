"""`skipnets serve`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from skipnets.classifier import describe, load
from skipnets.data.options import options_of_images
from skipnets.data.preprocessing import Preprocessing
from skipnets.errors import UserError
from skipnets.runtimes.views import check_tta
from skipnets.serve.addresses import is_loopback


def serve(
    model: Path,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    examples: str | None = None,
    token: Annotated[str | None, Parameter(env_var="SKIPNETS_TOKEN")] = None,
    no_token: bool = False,
    allow_host: list[str] | None = None,
    coverage: float | None = None,
    reject: float | None = None,
    tta: str = "none",
    batch_size: int = 32,
    batch_delay: float = 0.005,
    max_megabytes: float | None = None,
    max_files: int = 32,
    max_megapixels: float | None = None,
    max_image_memory: float | None = None,
    max_connections: int = 512,
    max_connections_per_client: int = 64,
    queue: int = 256,
    timeout: float = 30.0,
    timeout_head: float = 10.0,
    runtime: str = "auto",
    device: str = "auto",
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto",
    threads: int | None = None,
    workers: int | None = None,
) -> None:
    """Serve a classifier over HTTP, with a web page.

    For example:

        skipnets serve runs/cats/model.onnx
        skipnets serve runs/cats --runtime torch --examples photos --port 8080

    Then open http://127.0.0.1:8000, or:

        curl -F files=@a.jpg -F files=@b.jpg http://127.0.0.1:8000/v1/predict

    Args:
        model: A model file, an export or a run folder.
        host: Address to listen on; 0.0.0.0 accepts other machines, and needs a token or --no-token.
        port: Port to listen on; 0 picks a free one.
        examples: Images that the page offers: a folder, a manifest or a named dataset.
        token: Token that clients must send (Authorization: Bearer TOKEN). Prefer the environment variable:
            every user of the machine can read a command line.
        no_token: Let other machines classify images without a token.
        allow_host: Further names of the server, such as the one that a reverse proxy passes on. Connections
            to a loopback address must name localhost or one of these: a web page could otherwise reach the
            server under a name of its own. "*" allows all.
        coverage: Give each image the set of classes that contains the true one with this probability, such as
            0.9; takes a model that skipnets calibrate made ready.
        reject: Say whether an image is as unusual as this share of the calibration images, such as 0.05.
        tta: Test-time augmentation, which averages the probabilities of several views of each image: none,
            flip (mirrored), crops (five, shifted by a sixteenth) or flip-crops.
        batch_size: Maximum number of images in a batch.
        batch_delay: Maximum time that an image waits for others to join its batch, in seconds.
        max_megabytes: Maximum size of a request, in MiB. Default: 32; of volumes 65 a channel.
        max_files: Maximum number of images in a request.
        max_megapixels: Maximum size of an image, checked before it is decoded. Default: 25, enough for a
            volume of 256×256×256.
        max_image_memory: Maximum memory of all images that are being decoded, in MiB; further images wait.
            Default: 256; of volumes 320 a channel.
        max_connections: Maximum number of open connections; the one that is silent for longest makes room.
        max_connections_per_client: Maximum number of open connections from one other machine; raise it if
            that is a reverse proxy.
        queue: Maximum number of images in progress; further requests get status 503 and may retry.
        timeout: Maximum time for a request, including its upload, in seconds.
        timeout_head: Maximum time until a request's first lines have arrived, in seconds.
        runtime: auto (the fastest that supports the network), native, onnxruntime, openvino or torch;
            only torch offers Grad-CAM maps.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: 32-true (float32), bf16-mixed or 16-mixed. On an NVIDIA GPU, auto takes 16-mixed where the
            first 64 images keep their labels; elsewhere it is float32.
        threads: CPU threads that compute. Default: the runtime's own choice.
        workers: Threads that read images. Default: one per core.
    """
    limits = {
        "max_megabytes": max_megabytes,
        "max_files": max_files,
        "max_megapixels": max_megapixels,
        "max_image_memory": max_image_memory,
        "max_connections": max_connections,
        "max_connections_per_client": max_connections_per_client,
        "timeout": timeout,
        "timeout_head": timeout_head,
    }
    for name, value in limits.items():
        if value is not None and not 0 < value * 2**20 < math.inf:  # of MiB, in bytes as well
            raise UserError(f"{name}={value}: must be a finite number above 0")
    if queue < max_files:
        raise UserError(f"queue={queue}: must be at least max_files={max_files}, the images of one request")
    if token is None and not no_token and not is_loopback(host):
        raise UserError(
            f"host={host}: every machine that reaches it could use the server; set SKIPNETS_TOKEN, "
            "or give --no-token to let them"
        )

    described = describe(model)
    preprocessing = Preprocessing.from_dict(described["preprocessing"])
    check_tta(tta, preprocessing.dims)
    from skipnets.serve import Example, Limits, create_app, find_examples, run_server

    usual = Limits.of_input(preprocessing.dims, preprocessing.channels)
    offered: Sequence[Example] = ()
    if examples is not None:
        offered = find_examples(
            examples,
            preprocessing=preprocessing,
            options=options_of_images(examples, described.get("task", "single-label"), described["classes"]),
        )
    app = create_app(
        partial(load, model, runtime=runtime, device=device, threads=threads, precision=precision, tta=tta),
        limits=Limits(
            body_bytes=usual.body_bytes if max_megabytes is None else round(max_megabytes * 2**20),
            files=max_files,
            pixels=usual.pixels if max_megapixels is None else round(max_megapixels * 1e6),
            queue=queue,
            seconds=timeout,
            memory=usual.memory if max_image_memory is None else round(max_image_memory * 2**20),
            connections=max_connections,
            client_connections=max_connections_per_client,
            head_seconds=timeout_head,
        ),
        token=token,
        allow_hosts=allow_host or (),
        examples=offered,
        batch_size=batch_size,
        batch_delay=batch_delay,
        workers=workers,
        coverage=coverage,
        reject=reject,
    )
    run_server(app, host=host, port=port)
