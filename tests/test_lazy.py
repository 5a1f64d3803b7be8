"""Names of a package are imported when they are first used."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from skipnets.errors import UserError, missing_extra


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package whose modules say when they are imported."""
    root = tmp_path / "lazily"
    root.mkdir()
    (root / "__init__.py").write_text(
        "from skipnets.lazy import lazy_exports\n"
        "__getattr__, __dir__ = lazy_exports(\n"
        "    __name__, {'value': 'first', 'broken': 'second'}, submodules=('third',), extra='deploy')\n"
    )
    (root / "first.py").write_text("value = 3\n")
    (root / "second.py").write_text("import onnx\nbroken = 4\n")
    (root / "third.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield "lazily"
    for name in [name for name in sys.modules if name.partition(".")[0] == "lazily"]:
        del sys.modules[name]


def test_a_module_is_imported_with_the_first_use_of_its_name(package: str) -> None:
    lazily = importlib.import_module(package)
    assert dir(lazily) == ["broken", "third", "value"]
    assert not {name for name in sys.modules if name.startswith("lazily.")}
    assert lazily.value == 3
    assert {name for name in sys.modules if name.startswith("lazily.")} == {"lazily.first"}
    assert lazily.third is sys.modules["lazily.third"]
    with pytest.raises(AttributeError, match="module 'lazily' has no attribute 'other'"):
        _ = lazily.other


def test_a_missing_library_names_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError) as raised:
        _ = importlib.import_module(package).broken
    assert str(raised.value) == str(missing_extra("deploy"))
