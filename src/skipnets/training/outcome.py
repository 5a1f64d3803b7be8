"""What a run leaves: the model file of its best epoch, and at its end curves and an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from torchmetrics import Metric

from skipnets.axes import worded
from skipnets.classifier import Classifier, load
from skipnets.data.dataset import ImageDataset
from skipnets.data.listing import counted
from skipnets.data.preprocessing import Preprocessing
from skipnets.errors import listed
from skipnets.evaluation import evaluate
from skipnets.evaluation.saving import or_none
from skipnets.evaluation.thresholds import ThresholdRule
from skipnets.models.backbone import Backbone
from skipnets.models.custom_model import CustomModel
from skipnets.scaling import TargetScale
from skipnets.training.config import ResolvedConfig
from skipnets.training.curves import draw_curves, loss_note
from skipnets.training.final_metrics import final_metrics, own_final_metrics
from skipnets.training.multi_label import fit_thresholds
from skipnets.training.run import Row, Run
from skipnets.training.scores import headline_scores

__all__ = ["draw_run_curves", "finish", "save_best"]

# What a model file records of its epoch, of what the task has; None where it is undefined.
_SCORES = (
    "val_accuracy",
    "val_balanced_accuracy",
    "val_average_precision",
    "val_auroc",
    "val_mae",
    "val_r2",
)


def save_best(
    run: Run,
    config: ResolvedConfig,
    preprocessing: Preprocessing,
    classes: tuple[str, ...],
    scales: tuple[TargetScale, ...] | None,
    counts: dict[str, int],
    model: Backbone[Any],
    row: Row,
) -> None:
    """Write the model file, with where its weights come from."""
    provenance = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": config.data,
        **({"data_options": options} if (options := config.data_options.to_dict()) else {}),
        "images": counts,
        "weights": config.weights,
        "recipe": config.recipe,
        "epochs": row.epoch,  # so far
        "seed": config.seed,
        "scores": {
            "epoch": row.epoch,
            "val_loss": row.val_loss,
            **{name: or_none(value) for name in _SCORES if (value := getattr(row, name)) is not None},
        },
    }
    classifier = Classifier.from_model(
        model,
        classes=classes,
        preprocessing=preprocessing,
        provenance=provenance,
        task="single-label" if config.task == "auto" else config.task,
        scales=scales,
    )
    classifier.save(run.model)


def finish(
    run: Run,
    config: ResolvedConfig,
    dataset: ImageDataset,
    model: Backbone[Any],
    metrics: Mapping[str, Metric],
    say: Callable[[str], None],
) -> dict[str, float]:
    """Draw the curves, read the test split for the first and only time, record its scores.

    Args:
        run: Which has been trained.
        config: Of the run.
        dataset: With its splits.
        model: The network that was trained; it gets the best epoch's weights.
        metrics: That a program added, by name.
        say: Shows a line.

    Returns:
        What loggers get of the test split; empty without one.
    """
    if skipped := run.skipped:
        say(
            f"{worded(counted(len(skipped), 'image'), dataset.dims)} could not be decoded and "
            f"{'was' if len(skipped) == 1 else 'were'} left out: {listed(skipped)}; "
            f"see {run.skipped_file}"
        )
    draw_run_curves(run, config, run.rows, run.best_epoch)
    network = model.network if isinstance(model, CustomModel) else None
    classifier = load(
        run.model,
        device="cpu" if config.accelerator == "cpu" else "auto",
        precision="32-true" if config.precision in ("32-true", "64-true") else "auto",
        model=network,
    )
    if network is None:
        model.load_state_dict(load(run.model, runtime="torch", device="cpu").model.state_dict())
    classifier.provenance["epochs"] = len(run.rows)
    if dataset.multi_label:
        rule = ThresholdRule.parse(config.threshold or "f1")
        if caveat := fit_thresholds(classifier, dataset, rule, batch_size=config.batch_size):
            say(caveat)
    if not len(dataset.split("test")):
        say(worded("there are no test images: the model is not evaluated", dataset.dims))
        classifier.save(run.model)
        return {}
    evaluation = evaluate(classifier, dataset, split="test", batch_size=config.batch_size)
    own = own_final_metrics(evaluation, metrics, say=say)
    classifier.provenance["scores"] |= own | headline_scores(evaluation, "test")
    classifier.save(run.model)
    evaluation.save(run.folder)
    return final_metrics(evaluation, classifier.scales) | own


def draw_run_curves(run: Run, config: ResolvedConfig, rows: list[Row], best_epoch: int) -> None:
    """Draw what the epochs so far came to."""
    title = f"{config.model} on {config.data}"
    draw_curves(rows, best_epoch, run.curves, title=title, note=loss_note(config), dims=config.dims or 2)
