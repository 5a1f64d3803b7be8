"""Named ResNets beyond the original ones, under timm's names. Nothing here needs torch.

The letters follow "Bag of Tricks" (He et al. 2019, arXiv 1812.01187) and timm: "c" has a deep stem, "d" also
average pooling in its shortcuts, "s" a wider deep stem, "t" the tiered one with the shortcuts of "d".
"""

from __future__ import annotations

from typing import Any

from skipnets.models.registry import ResNetConfig

__all__ = ["RESNET_VARIANTS"]

_LAYERS: dict[str, tuple[int, ...]] = {
    "10": (1, 1, 1, 1),
    "14": (1, 1, 1, 1),
    "18": (2, 2, 2, 2),
    "26": (2, 2, 2, 2),
    "34": (3, 4, 6, 3),
    "50": (3, 4, 6, 3),
    "101": (3, 4, 23, 3),
    "152": (3, 8, 36, 3),
    "200": (3, 24, 36, 3),
    "269": (3, 30, 48, 8),
}
_LETTERS: dict[str, dict[str, Any]] = {
    "": {},
    "c": {"stem": "deep"},
    "d": {"stem": "deep", "shortcut": "average"},
    "s": {"stem": "deep", "stem_channels": 128},
    "t": {"stem": "tiered", "shortcut": "average"},
}
_BASIC = ("10", "18", "34")


def _row(name: str, depth: str, letter: str, **fields: Any) -> ResNetConfig:
    block: Any = "basic" if depth in _BASIC else "bottleneck"
    return ResNetConfig(name=name, block=block, block_config=_LAYERS[depth], **_LETTERS[letter] | fields)


def _rows(
    prefix: str, *endings: str, groups: int = 1, width_per_group: int = 64, **fields: Any
) -> list[ResNetConfig]:
    """Rows such as `prefix` + "50d", or "50d_32x4d" with groups."""
    end = "" if groups == 1 else f"_{groups}x{width_per_group}d"
    return [
        _row(
            f"{prefix}{ending}{end}",
            ending.rstrip("cdst"),
            ending.lstrip("0123456789"),
            groups=groups,
            width_per_group=width_per_group,
            **fields,
        )
        for ending in endings
    ]


def _rs(depth: int, *layers: int) -> ResNetConfig:
    """A ResNet-RS (Bello et al. 2021, arXiv 2103.07579)."""
    return ResNetConfig(
        name=f"resnetrs{depth}",
        block_config=layers,
        stem="deep",
        shortcut="average",
        stem_pool="convolution",
        attention="se",
        se_ratio=0.25,
    )


_EIGHTS: dict[str, int] = {"groups": 32, "width_per_group": 8}
_FOURS: dict[str, int] = {"groups": 32, "width_per_group": 4}

RESNET_VARIANTS: tuple[ResNetConfig, ...] = (
    *_rows("resnet", "10t", "14t", "18d", "26", "26d", "26t", "34d", "50c", "50d", "50s", "50t"),
    *_rows("resnet", "101c", "101d", "101s", "152c", "152d", "152s", "200", "200d"),
    *_rows("resnext", "50d", "101", **_FOURS),
    *_rows("resnext", "101", groups=32, width_per_group=16),
    *_rows("resnext", "101", groups=32, width_per_group=32),
    *_rows("seresnet", "18", "34", "50", "50t", "101", "152", "152d", "200d", "269d", attention="se"),
    *_rows("seresnext", "26d", "26t", "50", "101", attention="se", **_FOURS),
    *_rows("seresnext", "101", "101d", attention="se", **_EIGHTS),
    *_rows("seresnext", "101", attention="se", groups=64, width_per_group=4),
    *_rows("ecaresnet", "26t", "50d", "50t", "101d", "200d", "269d", attention="eca"),
    ResNetConfig(name="ecaresnetlight", block_config=(1, 1, 11, 3), shortcut="average", attention="eca"),
    *_rows("ecaresnext", "26t", "50t", attention="eca", **_FOURS),
    *_rows("resnetblur", "18", "50", "50d", "101d", anti_aliasing="blur"),
    *_rows("resnetaa", "34d", "50", "50d", "101d", anti_aliasing="average"),
    *_rows("seresnetaa", "50d", anti_aliasing="average", attention="se"),
    *_rows("seresnextaa", "101d", anti_aliasing="average", attention="se", **_EIGHTS),
    _rs(50, 3, 4, 6, 3),
    _rs(101, 3, 4, 23, 3),
    _rs(152, 3, 8, 36, 3),
    _rs(200, 3, 24, 36, 3),
    _rs(270, 4, 29, 53, 4),
    _rs(350, 4, 36, 72, 4),
    _rs(420, 4, 44, 87, 4),
)
