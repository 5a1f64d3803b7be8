from __future__ import annotations

from skipnets.models.weights.report import LoadReport


def test_only_what_was_renamed_is_listed() -> None:
    report = LoadReport(
        source="w.pth",
        model="resnet20",
        layout="by structure",
        mapping={"conv1.weight": "module.conv1.weight", "fc.weight": "linear.w", "fc.bias": "linear.b"},
        changes=("fc: 10 classes, not 1000",),
        ignored=("loss.weight",),
        notes=("took state_dict",),
        prefix="module.",
    )
    assert str(report).splitlines() == [
        "resnet20 from w.pth: 3 tensors, by structure",
        "  fc: 10 classes, not 1000",
        "  took state_dict",
        "  ignored: loss.weight",
        "  1 tensors by their own names, after 'module.'",
        "  fc.weight ← linear.w",
        "  fc.bias   ← linear.b",
    ]


def test_nothing_is_said_about_what_did_not_happen() -> None:
    report = LoadReport(source="w.pth", model="m", layout="torchvision's", mapping={"a": "a", "b": "b"})
    assert str(report).splitlines() == [
        "m from w.pth: 2 tensors, torchvision's",
        "  2 tensors by their own names",
    ]
