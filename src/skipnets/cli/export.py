"""`skipnets export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from skipnets.axes import INPUTS, worded
from skipnets.classifier import load
from skipnets.cli.output import check_outputs, print_json, print_tables
from skipnets.description import COMPARED
from skipnets.errors import UserError
from skipnets.tables import properties_table


def export(
    model: Path,
    /,
    *,
    format: Literal["onnx", "openvino", "pt2", "auto"] = "onnx",  # noqa: A002 - the option's name
    output: Path | None = None,
    input: Annotated[Literal["uint8", "float32"] | None, Parameter(name="--input")] = None,  # noqa: A002
    check: str | None = None,
    tolerance: float = 1e-4,
    int8: bool = False,
    calibration: str | None = None,
    max_drop: float | None = None,
    tta: str = "none",
    json: bool = False,
) -> None:
    """Export a classifier as a graph for other runtimes; the file is verified before it appears.

    For example:

        skipnets export runs/cats --format openvino
        skipnets export runs/cats --format auto --int8 --calibration photos

    Args:
        model: A model file or a run folder.
        format: onnx, openvino, pt2 (torch.export), or auto, which times ONNX and OpenVINO on this machine and
            keeps the faster.
        output: The file; for openvino, a new folder; for auto, a name without suffix; nothing that exists is
            replaced. Default: next to the model file.
        input: Input type of the graph: uint8 pixels, which it normalizes, or preprocessed float32. Default:
            uint8, but float32 for a model of images with more than 8 bits, or of bands.
        check: Images for the comparison with PyTorch: a folder, a manifest or a named dataset. Default: those
            of --calibration, else the run's validation images, else generated images.
        tolerance: Maximum difference between a probability and PyTorch's (not with --int8).
        int8: Quantize weights and activations to 8 bits.
        calibration: Labeled images of the same classes or targets, for quantization and to measure its
            accuracy.
        max_drop: Maximum drop in accuracy by --int8, in percentage points; the fewer, the more validation
            images it takes to judge (200 for half a point). With several labels an image, accuracy is the
            share of images all of whose labels are right. Of numbers, the maximum mean change in percent of a
            target's standard deviation. Default: 0.5; of numbers 5.
        tta: Test-time augmentation inside the graph: none, or flip, which averages the probabilities of each
            image and its mirror image.
        json: Print the result as JSON.
    """
    check_outputs(output)
    from skipnets.deploy.agreement import agreement_rows
    from skipnets.deploy.export import export_model

    if calibration is not None and not int8:
        raise UserError("calibration: needs --int8; to verify on these images, use --check")
    result = export_model(
        model if tta == "none" else load(model, runtime="torch", device="cpu", tta=tta),
        output,
        file_format=format,
        input_type=input,
        check=check,
        tolerance=tolerance,
        int8=int8,
        calibration=calibration,
        max_drop=max_drop,
    )
    if json:
        print_json({**result.to_dict(), "written": [str(result.path)]})
        return
    compared, terms = result.check, COMPARED[result.task]
    rows = {
        "written": str(result.path),
        "format": f"{result.file_format}, {'int8' if result.int8 else 'fp32'}, takes {result.input_type}",
        **({} if tta == "none" else {worded("views of an image", result.dims): tta}),
        "checked on": f"{compared.count} {INPUTS[result.dims]} ({compared.images})",
        "largest difference": f"{compared.largest_difference:.1e} of a {terms.unit}, against PyTorch",
        f"same {terms.answer}": f"{compared.same_labels} of {compared.count}",
    }
    if result.accuracy is not None:
        kept = " (some layers kept 32 bits)" if result.accuracy.accuracy_aware else ""
        rows[terms.accuracy] = worded(f"{result.accuracy}{kept}", result.dims)
    if result.agreement is not None:
        kept = " (some layers kept 32 bits)" if result.agreement.accuracy_aware else ""
        rows |= {name: f"{row}{kept}" for name, row in agreement_rows(asdict(result.agreement)).items()}
    for name, seconds in (result.seconds or {}).items():
        rows[worded(f"{name}, one image", result.dims)] = f"{1000 * seconds:.1f} ms"
    print_tables([properties_table(rows)])
