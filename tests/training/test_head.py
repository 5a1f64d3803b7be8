from __future__ import annotations

from collections.abc import Callable

import torch
from sklearn.linear_model import LogisticRegression

from skipnets.data.sources import open_dataset
from skipnets.models.factory import create_model
from skipnets.training import TrainConfig
from skipnets.training.head import fit_head, fit_head_to
from skipnets.training.prepare import prepare
from skipnets.training.task import ClassificationTask

MakeConfig = Callable[..., TrainConfig]


def test_the_head_is_the_logistic_regression_of_the_features() -> None:
    torch.manual_seed(0)
    model = create_model("resnet20", block_config=(1, 1), width=8, num_classes=3)
    images, labels = torch.randn(60, 3, 8, 8), torch.arange(60) % 3
    images[labels == 1, 0] += 0.5
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit_head(model, [(images[:32], labels[:32]), (images[32:], labels[32:])])
    assert model.training
    assert {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])} == {
        "fc.weight",
        "fc.bias",
    }
    with torch.no_grad():
        features = model.eval().forward_head(model.forward_features(images), pre_logits=True)
        found = model(images).softmax(1)
    scaled = ((features - features.mean(0)) / features.std(0)).numpy()
    # Its penalty is half the squared weights, against C times the sum of the losses.
    expected = LogisticRegression(C=1 / (2 * 1e-3 * 60), tol=1e-8, max_iter=1000).fit(scaled, labels)
    torch.testing.assert_close(
        found, torch.from_numpy(expected.predict_proba(scaled)).float(), atol=2e-3, rtol=0
    )


def test_a_run_fits_its_head_to_the_training_images(tiny: MakeConfig) -> None:
    config = tiny()
    dataset = open_dataset(config.data)
    prepared = prepare(config, dataset)
    task = ClassificationTask(prepared.model, prepared.config)
    train = dataset.split("train")
    fit_head_to(train, task, prepared)
    sources = [train.source(index) for index in range(len(train))]
    images = torch.from_numpy(prepared.preprocessing.batch(sources))
    with torch.no_grad():
        right = task.model.eval()(images).argmax(1) == torch.from_numpy(train.labels)
    assert right.float().mean() > 0.9
