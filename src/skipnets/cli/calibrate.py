"""`skipnets calibrate`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from skipnets.axes import INPUTS
from skipnets.classifier import load
from skipnets.cli.output import print_failures, print_json, print_tables, progress
from skipnets.data.options import DataOptions
from skipnets.errors import UserError
from skipnets.tables import properties_table


def calibrate(
    model: Path,
    data: str | None = None,
    /,
    *,
    options: Annotated[DataOptions | None, Parameter(name="*")] = None,
    split: str | None = None,
    json: bool = False,
    tta: str = "none",
    joint: bool = False,
    sets: Literal["lac", "aps", "raps"] = "lac",
    batch_size: int = 64,
    download: bool = False,
    device: str = "auto",
    threads: int | None = None,
    workers: int | None = None,
) -> int:
    """Calibrate a model on validation data: its probabilities, sets or intervals, and outliers.

    A temperature that divides the logits is fitted and stored in the file. It changes no predicted class, but
    the probabilities of every later command. So are scores of these images, for sets of classes or labels, or
    intervals of numbers, with a given coverage (skipnets predict --coverage 0.9) and for images unlike them
    (--reject 0.05). Exports made before keep what they have.

    For example:

        skipnets calibrate runs/cats
        skipnets calibrate model.safetensors photos-it-has-not-seen

    Args:
        options: Each is described below.
        model: A model file or a run folder.
        data: A folder of images, a manifest or a named dataset, not the training or test images. Default: the
            model's training data, with the run's splits.
        split: train, val, test or all. Default: val, or all if the data have no splits.
        json: Print the temperature, the metrics and the written file as JSON.
        tta: Test-time augmentation, which averages the probabilities of several views of each image: none,
            flip (mirrored), crops (five, shifted by a sixteenth) or flip-crops.
        joint: Let the intervals of several numbers hold all of an image's at once with the coverage. Default:
            each holds its own, which takes narrower ones.
        sets: How sets of classes are made: lac (the smallest on average), aps (adaptive: large where the
            network is unsure) or raps (adaptive, with few improbable classes).
        batch_size: Images per forward pass.
        download: Allow downloading a named dataset.
        device: auto, cpu, cuda, cuda:1 or mps.
        threads: CPU threads that compute. Default: the runtime's own choice.
        workers: Threads that read images. Default: one per core.
    """
    from skipnets.evaluation import calibrate as calibrate_classifier

    classifier = load(model, runtime="torch", device=device, threads=threads, tta=tta)
    dims = classifier.preprocessing.dims
    if classifier.path is None or classifier.export is not None:
        raise UserError(
            f"{model} is an export: calibrate the model file that it was made from, and export again"
        )
    with progress("calibrating") as report:
        calibration = calibrate_classifier(
            classifier,
            data,
            split=split,
            batch_size=batch_size,
            workers=workers,
            download=download,
            options=options,
            joint=joint,
            sets=sets,
            progress=report,
        )
    classifier.save(classifier.path)
    if json:
        print_json({**calibration.to_dict(), "written": [str(classifier.path)]})
    else:
        aurocs = ", ".join(f"{name} {value:.3f}" for name, value in calibration.outlier_auroc.items())
        rows = {
            **(
                {"stored in": str(classifier.path)}
                if calibration.nll_before is None
                else {"temperature": f"{calibration.temperature:.4f}, stored in {classifier.path}"}
            ),
            "fitted on": f"{calibration.images:,} {INPUTS[dims]} ({calibration.data}, {calibration.split})",
            **(
                {}
                if calibration.tta == "none"
                else {"holds for": f"predictions with --tta {calibration.tta}"}
            ),
        }
        if calibration.nll_before is not None:  # a regression has no probabilities
            rows |= {
                "at temperature": f"1 → {calibration.temperature:.4f}",
                "negative log-likelihood": f"{calibration.nll_before:.4f} → {calibration.nll_after:.4f}",
                "expected calibration error (ECE)": (
                    f"{calibration.ece_before:.2%} → {calibration.ece_after:.2%}"
                ),
            }
        if calibration.highest_coverage is not None:
            highest = math.floor(1e4 * calibration.highest_coverage) / 1e4  # no more than there is
            kind = "sets" if calibration.nll_before is not None else "intervals"
            at_once = " of all numbers at once" if calibration.joint else ""
            adaptive = "" if calibration.sets in (None, "lac") else f"{calibration.sets}, "
            rows[f"prediction {kind}"] = f"{adaptive}for a coverage of up to {highest:.2%}{at_once}"
        if calibration.outlier_score is not None:
            score = f"{calibration.outlier_score} (AUROC against altered {INPUTS[dims]}: {aurocs})"
            rows["score for outliers"] = score
        kept = "temperature" if calibration.nll_before is not None else "calibration, or have none"
        earlier = f"exports made before keep their {kept}: export again"
        notes = [properties_table({"note": warning}) for warning in (*calibration.warnings, earlier)]
        print_tables([properties_table(rows), *notes])
    if calibration.failures:
        print_failures(calibration.failures, of=calibration.images + len(calibration.failures), dims=dims)
    return 1 if calibration.failures else 0
