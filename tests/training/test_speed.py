from __future__ import annotations

import time

import torch

from skipnets.models.registry import model_config
from skipnets.training.speed import seconds_per_image, training_device


def test_a_network_s_speed_is_measured_without_a_trace() -> None:
    config = model_config("resnet8_w16", width=4, num_classes=3)
    state = torch.random.get_rng_state()
    start = time.perf_counter()
    seconds = seconds_per_image(config, size=(8, 8), batch_size=4, device=torch.device("cpu"))
    assert 0 < 4 * seconds < time.perf_counter() - start
    assert torch.equal(torch.random.get_rng_state(), state)
    mixed = seconds_per_image(
        config, size=(8, 8), batch_size=4, device=torch.device("cpu"), precision="bf16-mixed"
    )
    assert mixed > 0


def test_the_device_is_the_accelerators() -> None:
    assert training_device("cpu").type == "cpu"
    assert training_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
