"""`skipnets models`."""

from __future__ import annotations

from skipnets.cli.output import print_json, print_tables, progress
from skipnets.errors import UserError, check_at_least_1, near_matches
from skipnets.models.family import network_graph
from skipnets.models.registry import REGISTRY, config_to_dict, list_models
from skipnets.tables import FittingTable


def models(pattern: str = "*", /, *, compare: bool = False, batch_size: int = 16, json: bool = False) -> None:
    """List the models that can be trained.

    For example:

        skipnets models "densenet*"
        skipnets models "resnet?0" --compare

    Args:
        pattern: Pattern of names, with *, ? and […]. Quote it, or the shell may expand it.
        compare: Print multiply-accumulates, published accuracies with their sources, images a second measured
            on this machine (once, then kept in the cache folder), and the memory that training takes. To
            measure all networks takes many minutes; a pattern measures those that you may want.
        batch_size: Images of a batch, for --compare.
        json: Print the models' full configurations, or the comparison, as JSON.
    """
    check_at_least_1(batch_size=batch_size)
    names = list_models(pattern)
    if not names:
        raise UserError(f"pattern={pattern}: must match a model's name{near_matches(pattern, REGISTRY)}")
    if compare:
        from skipnets.insight.model_comparison import compare_models

        with progress("measuring") as show:
            found = compare_models(
                names,
                batch_size=batch_size,
                progress=lambda name, done, total: show(done, total, f"measuring {name}"),
            )
        if json:
            print_json(found.to_dict())
        else:
            print_tables(found.tables())
        return
    if json:
        print_json(
            {name: {**config_to_dict(REGISTRY[name]), "parameters": _parameters(name)} for name in names}
        )
        return
    headings = ("name", "parameters", "blocks", "layers", "stem", "classes")
    table = FittingTable(
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
        optional=["layers", "classes"],
    )
    print_tables([table])


def _parameters(name: str) -> int:
    return network_graph(REGISTRY[name]).parameter_count()
