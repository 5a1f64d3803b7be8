"""The networks that tests go through."""

from __future__ import annotations

from typing import Any

import pytest

from skipnets.models.registry import DENSENETS, RESNETS, list_models
from skipnets.models.regnet_graph import REGNETS
from skipnets.models.resnet_variants import RESNET_VARIANTS
from skipnets.models.resnetv2_graph import RESNETV2S

__all__ = ["CLASSIC", "DISTINCT_NETWORKS", "EVERY_NETWORK", "SMALL_RDNET"]

# The same code as a smaller one: seconds to build, as that of 1,202 layers.
_LARGER = {
    *("densenetblur121d", "densenet264d", "resnet1202", "rdnet_small", "rdnet_base", "rdnet_large"),
    *(row.name for row in (*RESNET_VARIANTS, *REGNETS, *RESNETV2S)),
} - {
    "resnet14t",
    "resnet50s",
    "seresnet18",
    "ecaresnet26t",
    "resnetblur18",
    "resnetaa34d",
    "resnetrs50",
    "regnetx_002",
    "regnety_002",
    "resnetv2_18d",
    "resnetv2_50x1_bit",
}
EVERY_NETWORK = [
    pytest.param(name, marks=pytest.mark.slow) if name in _LARGER else name for name in list_models()
]
# DenseNets and ResNets as their papers and torchvision have them.
CLASSIC = [
    pytest.param(row.name, marks=pytest.mark.slow) if row.name in _LARGER else row.name
    for row in (*DENSENETS, *RESNETS)
]
# For tests that compute with them, some in float64: the later ones in their smallest form, without a gigabyte
# of weights, or hundreds of layers that magnify the rounding of random weights to whatever one allows.
DISTINCT_NETWORKS = [
    name
    for name in list_models()
    if name not in _LARGER or name in {row.name for row in (*DENSENETS, *RESNETS)}
]
# An RDNet with every kind of block, fast.
SMALL_RDNET: dict[str, Any] = {
    "block_config": (2, 1, 2),
    "growth_rates": (8, 16, 24),
    "halves": (False, True, False),
    "squeeze_excitation": (False, False, True),
    "stem_channels": 16,
}
