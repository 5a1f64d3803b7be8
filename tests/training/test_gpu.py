"""Training on an NVIDIA GPU: precisions, the settings that make it fast, and what a step must not do."""

from __future__ import annotations

import copy
import subprocess
import sys
import time

import pytest
import torch
from tests.helpers.launches import launched_passes

from skipnets.errors import UserError
from skipnets.models import create_model
from skipnets.training import train

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize("precision", ["auto", "32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_precision_trains(tiny, precision, optimizer):
    run = train(
        tiny(accelerator="gpu", precision=precision, optimizer=optimizer, clip=1.0, accumulate=2, epochs=6)
    )
    assert run.config.precision == ("bf16-mixed" if precision == "auto" else precision)
    losses = [row.train_loss for row in run.rows]
    assert losses[-1] < losses[0]


def fused_model():
    """A small DenseNet in training, as a run sets it up, and a batch for it, on the GPU."""
    model = create_model("densenet121", block_config=(2, 2), growth_rate=16, num_classes=10).cuda()
    model.set_block_execution("auto")
    images = torch.randn(4, 3, 64, 64, device="cuda").contiguous(memory_format=torch.channels_last)
    return model.to(memory_format=torch.channels_last).train(), images


def gradients_of(model, images, *, compiled=None):
    model.zero_grad()
    with torch.autocast("cuda", torch.bfloat16):
        loss = (model if compiled is None else compiled)(images).square().mean()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_the_same_step_twice_gives_the_same_bits():
    model, images = fused_model()
    first, second = (gradients_of(model, images) for _ in range(2))
    assert set(model.block_execution_report().values()) == {"linear: fused kernels"}
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_step_runs_the_fused_kernels(monkeypatch, backend):
    torch.compiler.reset()
    model, images = fused_model()
    other = copy.deepcopy(model)
    launched = launched_passes(monkeypatch)
    expected = gradients_of(model, images)
    eager = set(launched)
    launched.clear()
    found = gradients_of(other, images, compiled=torch.compile(other, backend=backend, fullgraph=True))
    torch.compiler.reset()
    assert eager == set(launched) >= {"forward", "backward", "stem forward", "transition forward"}
    for own, wanted in zip(found, expected, strict=True):
        assert (own - wanted).norm() <= 5e-2 * wanted.norm() + 1e-4
    for own, wanted in zip(other.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-2, atol=1e-3)


def test_scaled_gradients_through_the_fused_kernels():
    model, images = fused_model()
    plain = copy.deepcopy(model)
    plain.set_block_execution("plain")
    updates = []
    for trained in (model, plain):
        before = [parameter.detach().clone() for parameter in trained.parameters()]
        optimizer = torch.optim.SGD(trained.parameters(), lr=1.0)
        scaler = torch.amp.GradScaler("cuda", init_scale=256.0)
        with torch.autocast("cuda", torch.float16):
            loss = trained(images).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        assert not any(found.item() for found in scaler._found_inf_per_device(optimizer).values())
        changed = [now.detach() - old for now, old in zip(trained.parameters(), before, strict=True)]
        updates.append(torch.cat([change.flatten() for change in changed]))
    assert (updates[0] - updates[1]).norm() <= 5e-2 * updates[1].norm()


def test_too_large_a_batch_is_one_line(tiny):
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2e-4)
    try:
        with pytest.raises(UserError, match=r"^batch_size=32: does not fit into the GPU's memory; take "):
            train(
                tiny(accelerator="gpu", batch_size=32, size=256, epochs=1, model="resnet20", model_options={})
            )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("workers", [0, 1, 8])
def test_a_run_ends_when_it_is_done(digits_folder, tmp_path, workers):
    """From its last line to the end of the process, and from the failure of its first step."""
    words = ["train", digits_folder, "--model", "resnet20", "--batch-size", 16, "--workers", workers]
    words += ["--epochs", 2, "--out", tmp_path / "run", "--augmentation", "none"]
    command = [sys.executable, "-m", "skipnets", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        last = start = time.monotonic()
        lines = []
        for line in process.stderr:
            lines.append(line)
            last = time.monotonic()
        assert process.wait(60) == 0, "".join(lines)
    assert time.monotonic() - last < 5, lines[-1]
    assert last - start < 60
    assert (tmp_path / "run/evaluation.json").exists()


def test_a_step_does_not_wait_for_the_gpu():
    model, images = fused_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(images).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        step()
    assert set(model.block_execution_report().values()) == {"linear: fused kernels"}
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_whole_step_can_be_captured_in_a_cuda_graph():
    model, images = fused_model()
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def step():
        for parameter in model.parameters():
            parameter.grad = None
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(images).square().mean()
        loss.backward()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
        step()
    torch.cuda.current_stream().wait_stream(stream)
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    model.load_state_dict(initial)
    graph.replay()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)
