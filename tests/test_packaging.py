"""What the source imports, against what pyproject.toml declares and which modules may import one another."""

from __future__ import annotations

import ast
import graphlib
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from skipnets.errors import EXTRAS

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# A package of its own, looked for where it would help; Triton comes with the builds of PyTorch that use it.
OPTIONAL = {"skipnets_engine", "triton"}


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _declared(requirements: list[str]) -> set[str]:
    """The distributions of an extra, with those of the extras that it includes."""
    found: set[str] = set()
    for requirement in requirements:
        if included := re.match(r"skipnets\[(.*)\]", requirement):
            for extra in included[1].split(","):
                found |= _declared(PROJECT["optional-dependencies"][extra])
        else:
            found.add(_normal(re.match(r"[\w.-]+", requirement)[0]))  # type: ignore[index]
    return found


def _imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, but not for type checkers alone."""
    for node in _nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, path
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from _nodes(child)


def test_everything_imported_is_declared() -> None:
    distributions = packages_distributions()
    declared = _declared(PROJECT["dependencies"]) | _declared(["skipnets[all]"])
    for path in SOURCE.rglob("*.py"):
        for name in _imports(path):
            library = name.partition(".")[0]
            if library not in sys.stdlib_module_names | {"skipnets"} | OPTIONAL:
                owners = {_normal(distribution) for distribution in distributions.get(library, [library])}
                assert owners & declared, f"{path} imports {library}"


def test_the_table_of_extras_is_that_of_the_project() -> None:
    distributions = packages_distributions()
    for extra, modules in EXTRAS.items():
        declared = _declared([f"skipnets[{extra}]"])
        owners = {
            module: {_normal(distribution) for distribution in distributions.get(module, [module])}
            for module in modules
        }
        assert all(owners[module] & declared for module in modules), extra
        assert declared <= set.union(*owners.values()), extra


def test_no_module_imports_itself_by_way_of_others() -> None:
    modules = {
        ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in SOURCE.rglob("*.py")
    }
    # A network's method hands over to the module that swaps its layers' classes, and the table of families
    # imports a family's module when it builds one: until then there need be no torch.
    deferred = {
        "skipnets.models.densenet": {"skipnets.models.block_execution"},
        "skipnets.models.resnet": {"skipnets.models.block_execution"},
        "skipnets.models.family": {
            "skipnets.models.custom_model",
            "skipnets.models.densenet",
            "skipnets.models.rdnet",
            "skipnets.models.regnet",
            "skipnets.models.resnetv2",
            "skipnets.models.resnet",
        },
        # An operation hands over to its Triton executor on a GPU, and on a CPU to its native one: elsewhere
        # there need be no Triton and no engine.
        "skipnets.ops.dense_block": {"skipnets.ops.triton.dense_block", "skipnets.ops.native.dense_block"},
        "skipnets.ops.residual_block": {"skipnets.ops.native.residual_block"},
        "skipnets.ops.transition": {"skipnets.ops.triton.transition"},
        "skipnets.ops.stem": {"skipnets.ops.triton.stem"},
    }
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        named = _imports(path)
        found = {name if name in modules else name.rpartition(".")[0] for name in named}
        graph[module] = (found & set(modules)) - {module} - deferred.get(module, set())
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
