"""`skipnets models`."""

from __future__ import annotations

from skipnets.cli.output import print_json, print_tables
from skipnets.errors import UserError, near_matches
from skipnets.models.family import network_graph
from skipnets.models.registry import REGISTRY, config_to_dict, list_models
from skipnets.tables import make_table


def models(pattern: str = "*", /, *, json: bool = False) -> None:
    """List the models that can be trained.

    For example:

        skipnets models "densenet*"

    Args:
        pattern: Pattern of names, with *, ? and […]. Quote it, or the shell may expand it.
        json: Print the models' full configurations as JSON.
    """
    names = list_models(pattern)
    if not names:
        raise UserError(f"pattern={pattern}: must match a model's name{near_matches(pattern, REGISTRY)}")
    if json:
        print_json(
            {name: {**config_to_dict(REGISTRY[name]), "parameters": _parameters(name)} for name in names}
        )
        return
    headings = ("name", "parameters", "blocks", "layers", "stem", "classes")
    table = make_table(
        {name: "right" if name in ("parameters", "classes") else "left" for name in headings},
        (
            (
                name,
                f"{_parameters(name):,}",
                "-".join(map(str, REGISTRY[name].block_config)),
                REGISTRY[name].description,
                REGISTRY[name].stem,
                str(REGISTRY[name].num_classes),
            )
            for name in names
        ),
    )
    print_tables([table])


def _parameters(name: str) -> int:
    return network_graph(REGISTRY[name]).parameter_count()
