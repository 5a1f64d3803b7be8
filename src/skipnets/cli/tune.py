"""`skipnets tune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

from cyclopts import Parameter

from skipnets.cli.output import print_paths, print_tables
from skipnets.cli.train import config_options, typed_imports
from skipnets.errors import UserError
from skipnets.training.config import TrainConfig, read_config

if TYPE_CHECKING:
    FixedOptions = dict[str, Any]
else:
    # What all trials have in common; the time of a training is the option --trial-time here.
    FixedOptions = TypedDict(
        "FixedOptions", config_options(without=["data", "time", "folds", "supplied"]), total=False
    )


def tune(
    data: str | None = None,
    /,
    *,
    options: Annotated[FixedOptions | None, Parameter(name="*")] = None,
    time: str = "1h",
    trial_time: str | None = None,
    trials: int | None = None,
    processes: int = 1,
    pruner: Literal["median", "halving"] = "median",
    config: Path | None = None,
    resume: Path | None = None,
) -> None:
    """Find good settings by many short trainings, which are judged on the validation split alone.

    Learning rate, weight decay, batch size, augmentation and network are varied, but for what is given. The
    best settings are written to run.yaml, all trials to trials.csv and, as a page, to trials.html.

    For example:

        skipnets tune photos --time 1h --out runs/tuned
        skipnets tune photos --time 1h --model resnet18 --out runs/tuned
        skipnets tune --resume runs/tuned --time 30m
        skipnets train --config runs/tuned/run.yaml --time 30m --out runs/best

    Args:
        options: What all trials have in common; each is described below.
        data: As for `skipnets train`.
        time: For all trials together, such as 90s, 5m or 1h30m; a bare number is seconds.
        trial_time: For each trial. Default: a 25th of the time, at least 20 seconds.
        trials: The most trials. Default: as many as the time allows.
        processes: Trials at the same time, which share the processor's cores.
        pruner: What stops hopeless trials: median, those worse than half of the others at the same point, or
            halving, successive halving.
        config: A YAML file of these options; options on the command line override it.
        resume: Folder of a tuning to go on with.
    """
    given = dict(options or {})
    if data is not None:
        given["data"] = data
    if resume is not None:
        if given or config is not None or trial_time is not None:
            raise UserError("resume: must be given with --time, --trials, --processes and --pruner alone")
        from skipnets.training import resume_tuning
        from skipnets.training.interruption import prompt_end

        with prompt_end():
            tuning = resume_tuning(resume, time=time, trials=trials, processes=processes, pruner=pruner)
    else:
        settings = TrainConfig(**given) if config is None else read_config(config, **given)
        from skipnets.data.sources import check_data
        from skipnets.training.early_checks import check_options, check_tuning_folder

        check_options(settings)  # before PyTorch is imported, which takes seconds
        if settings.components is None:  # which may bring images, an error of its own
            check_data(settings.data)
        check_tuning_folder(settings.out)
        from skipnets.training import tune as tune_settings
        from skipnets.training.interruption import prompt_end

        with prompt_end():
            tuning = tune_settings(
                settings,
                time=time,
                trial_time=trial_time,
                trials=trials,
                processes=processes,
                pruner=pruner,
                trust=typed_imports(given),
            )
    from skipnets.report import write_tuning_report

    page = write_tuning_report(tuning)
    print_tables(tuning.tables())
    print_paths(page)
