"""Feature maps are those that hooks see in the whole model; timm's interface is held in `test_timm`."""

from __future__ import annotations

import pytest
import torch

from skipnets.models import create_model


@pytest.mark.parametrize("name", ["densenet_bc40_k12", "resnet20"])
@pytest.mark.parametrize("out_indices", [None, (0, 2), (1,)])
def test_maps_are_those_of_the_whole_model(name: str, out_indices: tuple[int, ...] | None) -> None:
    torch.manual_seed(3)
    whole = create_model(name).eval()
    part = create_model(name, features_only=True, out_indices=out_indices).eval()
    missing = part.model.load_state_dict(whole.state_dict(), strict=False).missing_keys
    assert missing == []
    seen: list[torch.Tensor] = []
    for path in part.feature_info.module_name():
        whole.get_submodule(path).register_forward_hook(lambda module, given, maps: seen.append(maps.clone()))
    images = torch.randn(2, 3, 32, 32)
    whole(images)
    maps = part(images)
    assert len(maps) == len(seen) == len(part.feature_info.channels())
    for ours, expected, channels, reduction in zip(
        maps, seen, part.feature_info.channels(), part.feature_info.reduction(), strict=True
    ):
        torch.testing.assert_close(ours, expected)
        assert ours.shape == (2, channels, 32 // reduction, 32 // reduction)
