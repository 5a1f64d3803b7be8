from __future__ import annotations

import time

import pytest
import torch

from skipnets.errors import UserError
from skipnets.models.registry import model_config
from skipnets.training.speed import device_count, seconds_per_image, training_device


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


def test_a_batch_that_does_not_fit_is_estimated_from_a_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.nn.functional.cross_entropy
    most = 4

    def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if len(logits) > most:
            raise torch.OutOfMemoryError
        return original(logits, labels)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", cross_entropy)
    config = model_config("resnet8_w16", width=4, num_classes=3)
    measured = {"size": (8, 8), "batch_size": 64, "device": torch.device("cpu")}
    assert seconds_per_image(config, **measured) > 0
    most = 0
    with pytest.raises(UserError, match="the GPU's memory is too small for 4 images of 8×8 in resnet8_w16"):
        seconds_per_image(config, **measured)


def test_the_device_is_the_accelerators() -> None:
    assert training_device("cpu").type == "cpu"
    assert training_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_devices_in_lightning_s_words_are_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for devices, count in ((1, 1), (2, 2), ("2", 2), ("0,2", 2), ("1,", 1), ("auto", 1), (-1, 1)):
        assert device_count(devices, "cpu") == count
    for wrong in ("many", "0", 0, "1.5", "0,,1"):
        with pytest.raises(UserError, match=rf"^devices={wrong!r}: must be a number of devices"):
            device_count(wrong, "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert device_count("auto", "auto") == device_count(-1, "gpu") == 4
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert device_count(1, "auto") == 8
