"""Training on an NVIDIA GPU: precisions, the settings that make it fast, and what a step must not do."""

from __future__ import annotations

import pytest
import torch

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


def test_a_step_does_not_wait_for_the_gpu():
    model = create_model("densenet121", block_config=(2, 2), growth_rate=16).cuda()
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
    images = torch.randn(4, 3, 64, 64, device="cuda").contiguous(memory_format=torch.channels_last)

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(images).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        step()
    assert not any(line.startswith("plain") for line in model.block_execution_report().values())
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_whole_step_can_be_captured_in_a_cuda_graph():
    model = create_model("densenet121", block_config=(2, 2), growth_rate=16, num_classes=10).cuda()
    model = model.to(memory_format=torch.channels_last).train()
    images = torch.randn(4, 3, 64, 64, device="cuda").contiguous(memory_format=torch.channels_last)
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
