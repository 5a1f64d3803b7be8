"""`skipnets calibrate`."""

from __future__ import annotations

from pathlib import Path

from skipnets.classifier import load
from skipnets.cli.output import print_failures, print_json, print_tables, progress
from skipnets.errors import UserError
from skipnets.tables import properties_table


def calibrate(
    model: Path,
    data: str | None = None,
    /,
    *,
    split: str | None = None,
    json: bool = False,
    batch_size: int = 64,
    download: bool = False,
    device: str = "auto",
    threads: int | None = None,
    workers: int = 2,
) -> int:
    """Calibrate a classifier's probabilities: fit a temperature on validation data, store it in the file.

    The temperature divides the logits. It changes no answer, but every probability that any later command
    gives. Exports made before keep the old one.

    For example:

        skipnets calibrate runs/cats
        skipnets calibrate model.safetensors photos-it-has-not-seen

    Args:
        model: A model file or a run folder.
        data: A folder of images, a manifest or a named set, not the training or the test images. Default:
            what the model was trained on, with the splits that were drawn then.
        split: train, val, test or all. Default: val, or all of data that are not split.
        json: Print JSON: the temperature, the metrics, and which file was written.
        batch_size: Images that go through the network at once.
        download: Allow a named set to be fetched.
        device: auto, cpu, cuda, cuda:1 or mps.
        threads: CPU threads that compute. Default: the runtime's own choice.
        workers: Threads that read images.
    """
    from skipnets.evaluation import calibrate as calibrate_classifier

    classifier = load(model, runtime="torch", device=device, threads=threads)
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
            progress=report,
        )
    classifier.save(classifier.path)
    if json:
        print_json({**calibration.to_dict(), "written": [str(classifier.path)]})
    else:
        rows = {
            "temperature": f"{calibration.temperature:.4f}, now in {classifier.path}",
            "fitted on": f"{calibration.images:,} images ({calibration.data}, {calibration.split})",
            "negative log-likelihood": f"{calibration.nll_before:.4f} → {calibration.nll_after:.4f}",
            "calibration error (ECE)": f"{calibration.ece_before:.2%} → {calibration.ece_after:.2%}",
        }
        notes = [properties_table({"note": warning}) for warning in calibration.warnings]
        print_tables([properties_table(rows), *notes])
    if calibration.failures:
        print_failures(calibration.failures, of=calibration.images + len(calibration.failures))
    return 1 if calibration.failures else 0
