"""What is wrong with a run's options, data or folder as far as that shows without PyTorch, within a moment.

Importing PyTorch takes seconds, after which nobody wants to hear of a mistyped name. Training checks the same
again, and what needs the images.
"""

from __future__ import annotations

from skipnets.data.sources import check_data
from skipnets.errors import UserError
from skipnets.models.registry import model_config
from skipnets.training.config import TrainConfig
from skipnets.training.run import claim, is_helper
from skipnets.trust import is_import

__all__ = ["check_early", "check_options"]


def check_early(config: TrainConfig) -> None:
    """Check what a new run is asked for.

    Args:
        config: Of a run whose network and images are the configuration's.

    Raises:
        UserError: Wrong options, no such data or network, or a folder that is not free.
    """
    check_options(config)
    if not config.supplied:  # a run to which a program gave that, which a message tells later
        if config.components is None:  # which may bring images
            check_data(config.data)
        if config.model is not None and not is_import(config.model):
            model_config(config.model, **config.model_options)
    if not is_helper():  # in whose folder the first process may have begun
        claim(config.out)


def check_options(config: TrainConfig) -> None:
    """Check that options do not contradict one another.

    Raises:
        UserError: If two do.
    """
    if config.time is not None and config.epochs is not None and not config.epoch_plan:
        raise UserError(f"time={config.time!r}: must be given without epochs={config.epochs}")
    if config.weights_ignore and config.weights is None:
        raise UserError(f"weights_ignore={', '.join(config.weights_ignore)}: needs weights")
    if config.find_lr and config.lr is not None:
        raise UserError(f"find_lr: must be given without lr={config.lr:g}")
    if config.whiten_stem and config.weights is not None:
        raise UserError(
            f"whiten_stem: must be given without weights={config.weights}, which has its own stem"
        )
    if clash := sorted({"num_classes", "in_chans"} & set(config.model_options)):
        raise UserError(
            f"model_options: {clash[0]} follows from the data; remove it (channels sets in_chans)"
        )
