"""Models that return feature maps instead of logits, for detection and segmentation.

The interface is timm's for `features_only=True`.

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from skipnets.models.backbone import Backbone, FeatureMapInfo


class FeatureInfo:
    """Channels, reductions and module paths of a model's feature maps.

    Every method takes `idx`: one or more indices among all maps of the model; None means the returned maps.

    Args:
        feature_info: All maps of the model, finest first.
        out_indices: Indices of the returned maps.
    """

    def __init__(self, feature_info: Sequence[FeatureMapInfo], out_indices: Sequence[int]) -> None:
        self.info: list[dict[str, Any]] = [
            {**info, "index": index} for index, info in enumerate(feature_info)
        ]
        self.out_indices = tuple(out_indices)

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """Values of one key."""
        if isinstance(idx, int):
            return self.info[idx][key]
        return [self.info[index][key] for index in (self.out_indices if idx is None else idx)]

    def get_dicts(self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None) -> Any:
        """Entries of maps, with all or some of their keys."""
        if isinstance(idx, int):
            return self._part(idx, keys)
        return [self._part(index, keys) for index in (self.out_indices if idx is None else idx)]

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Channels of the maps."""
        return self.get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Reduction of the maps relative to the input."""
        return self.get("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Paths of the modules that output the maps."""
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
        model: The model; its head and the layers after the last requested map are removed.
        out_indices: Indices of the maps in `model.feature_info`; an int selects that many of the last, None
            selects all.

    Attributes:
        model: The pruned model; a DenseNet's `set_block_execution` works on it.
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
        """The model's `pretrained_cfg` without the keys of the head."""
        cfg = self.model.pretrained_cfg
        return {key: value for key, value in cfg.items() if key not in ("num_classes", "classifier")}

    @property
    def default_cfg(self) -> dict[str, Any]:
        """The same as `pretrained_cfg`, under timm's older name."""
        return self.pretrained_cfg

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """See `Backbone.set_grad_checkpointing`."""
        self.model.set_grad_checkpointing(enable)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) images → the requested maps, finest first."""
        indices = self.feature_info.out_indices
        return cast(list[Tensor], self.model.forward_intermediates(x, indices, intermediates_only=True))
