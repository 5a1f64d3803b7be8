"""`skipnets train`."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, get_type_hints

import docstring_parser
from cyclopts import Parameter

from skipnets.cli.output import print_tables
from skipnets.errors import UserError
from skipnets.training.config import TrainConfig, read_config
from skipnets.trust import is_import

# Field of TrainConfig → its description.
OPTION_HELP = {
    field.arg_name: field.description for field in docstring_parser.parse_from_object(TrainConfig).params
}


def config_options(*, without: Collection[str]) -> dict[str, Any]:
    """TrainConfig's fields as options; the config file or the recipe fills in what is missing."""
    # Of a union, cyclopts takes as many words as the first member has.
    kinds = get_type_hints(TrainConfig) | {"size": list[int] | None}
    return {
        field: Annotated[kind, Parameter(help=OPTION_HELP[field], consume_multiple=True, negative_bool="no-")]
        for field, kind in kinds.items()
        if field not in without
    }


if TYPE_CHECKING:
    from skipnets.training import Run

    TrainOptions = dict[str, Any]
else:
    TrainOptions = TypedDict("TrainOptions", config_options(without=["data", "supplied"]), total=False)


def train(
    data: str | None = None,
    /,
    *,
    options: Annotated[TrainOptions | None, Parameter(name="*")] = None,
    config: Path | None = None,
    resume: Path | None = None,
) -> int:
    """Train a classifier, keep its best epoch on validation data, and evaluate it on the test split.

    For example:

        skipnets train photos --time 10m --out runs/photos
        skipnets train photos --weights imagenet --out runs/pretrained
        skipnets train photos --model resnet50 --size 288 --out runs/larger
        skipnets train photos --model-options.growth-rate 24 --out runs/narrow
        skipnets train --config runs/photos/run.yaml --out runs/again --seed 1
        skipnets train photos --folds 5 --out runs/folds
        skipnets train photos --model networks:MyNet --out runs/own
        skipnets train photos --components networks:parts --out runs/own
        skipnets train --resume runs/photos
        skipnets train --resume runs/photos --epochs 200
        skipnets train --resume runs/photos --devices 2

    Args:
        options: Each is described below.
        data: A folder of images (root/<class>/… or root/{train,val,test}/<class>/…), a manifest (a table with
            columns of files, labels and perhaps splits) or a named dataset such as digits or cifar10;
            `skipnets data` shows how it is read.
        config: A YAML file of these options, such as the run.yaml of an earlier run; options on the command
            line override it.
        resume: Folder of an interrupted run to resume, or with more epochs than it had of any run to extend.
    """
    given = dict(options or {})
    if data is not None:
        given["data"] = data
    if resume is not None:
        kept = {name: given.pop(name, None) for name in ("missing", "epochs", "devices")}
        if given or config is not None:
            raise UserError(
                "resume: must be given without other options but --missing, --epochs and --devices; a run "
                "keeps its own"
            )
        from skipnets.training.run import is_helper, reopen

        if not is_helper():
            reopen(resume, complete=kept["epochs"] is not None)  # what is wrong is said before PyTorch loads
        from skipnets.training import resume as resume_run

        return _finish(lambda: resume_run(resume, **kept))

    started = time.perf_counter()  # A run's time includes the import of PyTorch.
    settings = TrainConfig(**given) if config is None else read_config(config, **given)
    from skipnets.training.early_checks import check_early

    check_early(settings)
    from skipnets.training import train as train_run

    trust = typed_imports(given)
    return _finish(lambda: train_run(settings, started=started, trust=trust))


def typed_imports(given: Mapping[str, Any]) -> list[str]:
    """What is imported and run because it was typed; what a file names takes --trust."""
    return [name for name in (given.get("model"), given.get("components")) if is_import(name)]


def _finish(start: Callable[[], Run]) -> int:
    """Train, and print the result."""
    from skipnets.training.interruption import prompt_end

    with prompt_end():
        run = start()
    print_tables(run.tables())
    return 1 if run.scores.get("failures") or run.skipped else 0
