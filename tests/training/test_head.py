from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from skipnets.data.sources import open_dataset
from skipnets.errors import UserError
from skipnets.models.factory import create_model
from skipnets.training import TrainConfig
from skipnets.training.head import fit_head, fit_head_to, fit_labels, fit_numbers
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


def test_a_head_is_not_fitted_to_random_features(tiny: MakeConfig) -> None:
    config = tiny(fit_head=True)
    with pytest.raises(UserError, match=r"^fit_head: needs weights; the features of random ones change"):
        prepare(config, open_dataset(config.data))


def some_features() -> torch.Tensor:
    torch.manual_seed(0)
    features = torch.randn(80, 5)
    return (features - features.mean(0)) / features.std(0)


def test_each_label_has_the_logistic_regression_of_the_images_of_which_it_is_known() -> None:
    features = some_features()
    labels = (features[:, :3] + torch.randn(80, 3) > 0.4).float()
    labels = torch.cat([labels, torch.ones(80, 1)], 1)  # the last one is of every image
    labels[::7, 0] = labels[:30, 1] = float("nan")
    weight, bias = fit_labels(features, labels, 4)
    assert (weight[3].abs().max(), bias[3]) == (0, 0)
    for index in range(3):
        of = torch.isfinite(labels[:, index])
        x, y = features[of].numpy(), labels[of, index].numpy()
        expected = LogisticRegression(C=1 / (2 * 1e-3 * len(y)), tol=1e-8, max_iter=1000).fit(x, y)
        found = torch.sigmoid(features @ weight[index] + bias[index])
        probabilities = torch.from_numpy(expected.predict_proba(features.numpy())[:, 1]).float()
        torch.testing.assert_close(found, probabilities, atol=2e-3, rtol=0)


def test_each_target_has_the_ridge_regression_of_the_images_of_which_it_is_known() -> None:
    features = some_features()
    targets = features[:, :2] @ torch.randn(2, 2) + 0.3 * torch.randn(80, 2) + 1
    targets[5:40, 1] = float("nan")
    targets = torch.cat([targets, torch.full((80, 1), float("nan"))], 1)  # the last one is of no image
    weight, bias = fit_numbers(features, targets, 3)
    assert (weight[2].abs().max(), bias[2]) == (0, 0)
    for index in range(2):
        of = torch.isfinite(targets[:, index])
        expected = Ridge(alpha=1e-3 * int(of.sum())).fit(features[of].double(), targets[of, index].double())
        torch.testing.assert_close(weight[index], torch.from_numpy(expected.coef_).float())
        assert float(bias[index]) == pytest.approx(expected.intercept_, rel=1e-5)
