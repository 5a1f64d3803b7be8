"""`skipnets models`."""

from __future__ import annotations

from rich.table import Table

from skipnets.cli.output import print_json, print_table
from skipnets.errors import UserError, near_matches
from skipnets.models.family import network_graph
from skipnets.models.registry import REGISTRY, config_to_dict, list_models


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
            {name: {**config_to_dict(REGISTRY[name]), "parameters": _parameters(name)} for name in names}
        )
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "parameters", "blocks", "made of", "stem", "classes"):
        numeric = heading in ("parameters", "classes")
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=True)
    for name in names:
        config = REGISTRY[name]
        blocks = "-".join(map(str, config.block_config))
        parameters, classes = f"{_parameters(name):,}", str(config.num_classes)
        table.add_row(name, parameters, blocks, config.description, config.stem, classes)
    print_table(table)


def _parameters(name: str) -> int:
    return network_graph(REGISTRY[name]).parameter_count()
