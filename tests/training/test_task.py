"""One step of training and of validation, against plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from skipnets.data.sources import open_dataset
from skipnets.runtimes.model_file import read_model_file
from skipnets.training import TrainConfig, train
from skipnets.training.prepare import prepare

MakeConfig = Callable[..., TrainConfig]


def test_frozen_stages_keep_weights_and_statistics(tiny: MakeConfig) -> None:
    config = tiny(freeze=2, epochs=1, ema=0.0, block_execution="plain")
    trained = read_model_file(train(config).model).tensors()
    fresh = prepare(config, open_dataset(config.data)).model.state_dict()
    same = {name for name, array in trained.items() if np.array_equal(array, fresh[name].numpy())}
    frozen = {
        name
        for name in fresh
        if name.startswith(("features.conv0", "features.denseblock1", "features.transition1"))
    }
    assert frozen <= same
    assert not {name for name in same - frozen if "conv" in name}
