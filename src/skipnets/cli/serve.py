"""`skipnets serve`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from skipnets.classifier import load


def serve(
    model: Path,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    examples: str | None = None,
    token: Annotated[str | None, Parameter(env_var="SKIPNETS_TOKEN")] = None,
    batch_size: int = 32,
    batch_delay: float = 0.005,
    max_megabytes: float = 32.0,
    max_files: int = 32,
    max_megapixels: float = 50.0,
    queue: int = 256,
    timeout: float = 30.0,
    runtime: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    workers: int | None = None,
) -> None:
    """Answer over HTTP what images show, with a page for people.

    For example:

        skipnets serve runs/cats/model.onnx
        skipnets serve runs/cats --runtime torch --examples photos --port 8080

    Then open http://127.0.0.1:8000, or:

        curl -F files=@a.jpg -F files=@b.jpg http://127.0.0.1:8000/v1/predict

    Args:
        model: A model file, an export or a run folder.
        host: The address to listen at. 0.0.0.0 lets other machines in.
        port: 0 takes a free one.
        examples: Images that the page offers: a folder, a manifest or a named set.
        token: What clients must send (Authorization: Bearer TOKEN). Better in the environment: every user of
            the machine can read a command line.
        batch_size: The most images that go through the network together.
        batch_delay: Seconds that an image waits, at most, for others to join it.
        max_megabytes: The most that a request may hold.
        max_files: The most images in a request.
        max_megapixels: The most in an image, judged before it is decoded.
        queue: The most images under way; requests beyond that are told to come again.
        timeout: Seconds that a request may take, its upload included.
        runtime: What runs the network; auto takes the fastest that can. torch can show where it looks.
        device: auto, cpu, cuda, cuda:1 or mps.
        threads: CPU threads that compute. Default: the runtime's own choice.
        workers: Threads that read images. Default: one a processor, at most 8.
    """
    from skipnets.serve import Limits, create_app, find_examples, run_server

    app = create_app(
        partial(load, model, runtime=runtime, device=device, threads=threads),
        limits=Limits(
            body_bytes=round(max_megabytes * 2**20),
            files=max_files,
            pixels=round(max_megapixels * 1e6),
            queue=queue,
            seconds=timeout,
        ),
        token=token,
        examples=find_examples(examples) if examples is not None else (),
        batch_size=batch_size,
        batch_delay=batch_delay,
        workers=workers,
    )
    run_server(app, host=host, port=port)
