"""The weights in timm's table are among those that the installed timm knows, and are for our networks."""

from __future__ import annotations

import timm
from timm.models import get_pretrained_cfg

from skipnets.models import list_models, model_config
from skipnets.models.weights.timm_accuracy import TIMM_ACCURACY


def test_every_tag_is_published_for_a_network_of_ours() -> None:
    published = set(timm.list_pretrained())
    for name, (top1, tag) in TIMM_ACCURACY.items():
        assert name in list_models()
        assert f"{name}.{tag}" in published
        assert 60 < top1 < 90


def test_no_other_images_than_those_of_imagenet_1k_trained_them() -> None:
    for name, (_, tag) in TIMM_ACCURACY.items():
        assert not any(other in tag for other in ("12k", "21k", "22k", "ig1b", "yfcc", "swag", "seer"))
        config = get_pretrained_cfg(f"{name}.{tag}")
        assert config is not None
        sizes = {config.input_size[-1], (config.test_input_size or config.input_size)[-1]}
        assert model_config(name).default_size <= max(sizes)
