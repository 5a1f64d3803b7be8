"""`skipnets convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from skipnets.cli.output import check_outputs, print_json, print_tables
from skipnets.data.layout import spelled
from skipnets.description import CLASS_NOUNS
from skipnets.errors import UserError, listed
from skipnets.tables import properties_table

Several = Annotated[list[str] | None, Parameter(consume_multiple=True)]
Numbers = Annotated[list[float] | None, Parameter(consume_multiple=True)]


def convert(
    weights: str,
    /,
    *,
    output: Path,
    model: str | None = None,
    classes: Several = None,
    weights_ignore: Several = None,
    size: int | None = None,
    mean: Numbers = None,
    std: Numbers = None,
    fit: str | None = None,
    json: bool = False,
) -> int:
    """Make a model file of weights that others trained, for every other command.

    For example:

        skipnets convert xrv:densenet121-res224-all --output chest.safetensors
        skipnets convert model.keras --classes cat dog --size 224 --mean 0.5 0.5 0.5
            --std 0.25 0.25 0.25 --output pets.safetensors

    Args:
        weights: xrv:NAME of torchxrayvision, hf-hub:NAME, a torchvision tag such as imagenet, or a file of
            PyTorch, Lightning or Keras. They must have a head; skipnets train --weights trains one.
        output: The model file to write, .safetensors; nothing that exists is replaced.
        model: A name from skipnets models. Default: what the weights are of, where they say so.
        classes: Names of the classes in the order of the outputs, or a text file with one a line; of a single
            output, which says how probable the second is, both. Default: the labels of the weights, where
            they say so.
        weights_ignore: Names of tensors that are not the network's, or patterns such as "loss.*".
        size: Side of the images in pixels. Default for this and the next three: what the weights say.
        mean: Mean of each channel, in 0..1.
        std: Standard deviation of each channel, in 0..1.
        fit: pad, crop or stretch.
        json: Print the result as JSON.
    """
    if output.suffix != ".safetensors":
        raise UserError(f"output={output}: must end in .safetensors")
    check_outputs(output)
    if output.exists():
        raise UserError(f"output={output}: already exists; remove it or name another")
    from skipnets.conversion import classifier_from_weights

    if classes is not None and len(classes) == 1 and Path(classes[0]).is_file():
        classes = _lines(Path(classes[0]))
    given = {"size": size, "mean": mean, "std": std, "fit": fit}
    classifier = classifier_from_weights(
        weights,
        model=model,
        classes=classes,
        weights_ignore=weights_ignore or (),
        **{name: value for name, value in given.items() if value is not None},
    )
    classifier.save(output)
    if json:
        print_json({**classifier.metadata(), "written": [str(output)]})
        return 0
    rows = {
        "model": classifier.network,
        CLASS_NOUNS[classifier.task]: listed(classifier.classes, 20),
        "preprocessing": classifier.preprocessing.summary(),
        "written": str(output),
    }
    print_tables([properties_table(rows)])
    return 0


def _lines(path: Path) -> list[str]:
    """The class names in the lines of a text file that are not empty."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"classes={path}: must be a text file with a name in each line") from error
    return [name for line in lines if (name := spelled(line))]
