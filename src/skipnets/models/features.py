"""Models that return feature maps instead of logits, for detection and segmentation.

The interface is that of timm's `features_only=True`.

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from skipnets.models.backbone import Backbone, FeatureMapInfo


class FeatureInfo:
    """The maps of a model and which of them are returned: channels, reductions and paths as lists.

    Every method takes `idx`: a position among all maps of the model, or several; None stands for the maps
    that are returned.

    Args:
        feature_info: All maps of the model, finest first.
        out_indices: Positions of those that are returned.
    """

    def __init__(self, feature_info: Sequence[FeatureMapInfo], out_indices: Sequence[int]) -> None:
        self.info: list[dict[str, Any]] = [
            {**info, "index": index} for index, info in enumerate(feature_info)
        ]
        self.out_indices = tuple(out_indices)

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """The values of one key."""
        if isinstance(idx, int):
            return self.info[idx][key]
        return [self.info[index][key] for index in (self.out_indices if idx is None else idx)]

    def get_dicts(self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None) -> Any:
        """The entries of maps, whole or with some of their keys."""
        if isinstance(idx, int):
            return self._part(idx, keys)
        return [self._part(index, keys) for index in (self.out_indices if idx is None else idx)]

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Channels."""
        return self.get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """How many times smaller than the input the maps are."""
        return self.get("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Paths of the modules that make the maps."""
        return self.get("module", idx)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.info[index]

    def __len__(self) -> int:
        return len(self.info)

    def _part(self, index: int, keys: Sequence[str] | None) -> dict[str, Any]:
        info = self.info[index]
        return info if keys is None else {key: info[key] for key in keys}


class FeatureListNet(nn.Module):
    """A model without its head that returns some of its feature maps.

    Args:
        model: Its head, and the layers behind the last wanted map, are removed.
        out_indices: Positions of the wanted maps in `model.feature_info`; an int takes that many of the last,
            None takes all.

    Attributes:
        model: What is left of the model; a DenseNet's `set_block_execution` works on it.
        feature_info: Channels, reductions and paths of the maps, as timm's `FeatureInfo`.
        output_fmt: Layout of the maps, "NCHW".
    """

    output_fmt = "NCHW"

    def __init__(self, model: Backbone[Any], out_indices: int | Sequence[int] | None = None) -> None:
        super().__init__()
        self.feature_info = FeatureInfo(model.feature_info, model.feature_indices(out_indices))
        model.prune_intermediate_layers(self.feature_info.out_indices)
        self.model = model

    @property
    def in_chans(self) -> int:
        """Channels of the input."""
        return self.model.in_chans

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """As the model's, without what concerns the head."""
        cfg = self.model.pretrained_cfg
        return {key: value for key, value in cfg.items() if key not in ("num_classes", "classifier")}

    @property
    def default_cfg(self) -> dict[str, Any]:
        """The same as `pretrained_cfg`, under timm's older name."""
        return self.pretrained_cfg

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As the model's."""
        self.model.set_grad_checkpointing(enable)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) images → the wanted maps, finest first."""
        indices = self.feature_info.out_indices
        return cast(list[Tensor], self.model.forward_intermediates(x, indices, intermediates_only=True))
