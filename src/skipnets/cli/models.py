"""`skipnets models`."""

from __future__ import annotations

from skipnets.cli.output import print_json, print_tables
from skipnets.errors import UserError, near_matches
from skipnets.models.registry import REGISTRY, DenseNetConfig, ResNetConfig, config_to_dict, list_models
from skipnets.models.tensors import parameter_count
from skipnets.tables import make_table


def models(pattern: str = "*", /, *, json: bool = False) -> None:
    """List the models that can be trained.

    For example:

        skipnets models "densenet*"

    Args:
        pattern: Which names, with *, ? and […]. Quote it, or the shell may expand it.
        json: Print every model's whole configuration as JSON.
    """
    names = list_models(pattern)
    if not names:
        raise UserError(f'no model matches "{pattern}"{near_matches(pattern, REGISTRY)}')
    if json:
        print_json(
            {
                name: {**config_to_dict(REGISTRY[name]), "parameters": parameter_count(REGISTRY[name])}
                for name in names
            }
        )
        return
    headings = ("name", "parameters", "blocks", "made of", "stem", "classes")
    table = make_table(
        {name: "right" if name in ("parameters", "classes") else "left" for name in headings},
        (
            (
                name,
                f"{parameter_count(REGISTRY[name]):,}",
                "-".join(map(str, REGISTRY[name].block_config)),
                _made_of(REGISTRY[name]),
                REGISTRY[name].stem,
                str(REGISTRY[name].num_classes),
            )
            for name in names
        ),
    )
    print_tables([table])


def _made_of(config: DenseNetConfig | ResNetConfig) -> str:
    if isinstance(config, DenseNetConfig):
        bottleneck = "no bottleneck" if config.bottleneck is None else f"bottleneck {config.bottleneck}k"
        return f"dense layers, k={config.growth_rate}, {bottleneck}, compression {config.compression:g}"
    shape = f"{config.block} blocks, width {config.width}"
    if config.groups > 1:
        return f"{shape}, {config.groups} groups of {config.width_per_group}"
    if config.width_per_group != 64:
        return f"{shape}, {config.width_per_group // 64} times wider inside"
    return shape
