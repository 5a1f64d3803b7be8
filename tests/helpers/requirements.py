"""What pyproject.toml asks for, and how far that has been tested.

`python -m tests.helpers.requirements tested` prints the installed version of every direct dependency, which
is constraints.txt; `… lowest` prints the lowest versions that the core declares.
"""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def declared(*, core_only: bool = False) -> list[Requirement]:
    """The direct dependencies, of all extras or of the core alone, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *([] if core_only else project["optional-dependencies"].values())]
    found = {Requirement(line) for lines in lists for line in lines}
    return sorted((each for each in found if each.name != "skipnets"), key=lambda each: each.name)


def lowest() -> list[str]:
    """`name==version` of the lowest version of each of the core's dependencies."""
    return [
        f"{each.name}=={bound.version}"
        for each in declared(core_only=True)
        for bound in each.specifier
        if bound.operator == ">="
    ]


def tested() -> list[str]:
    """`name==version` of what is installed of all direct dependencies."""
    lines = []
    for name in sorted({canonicalize_name(each.name) for each in declared()}):
        try:
            lines.append(f"{name}=={version(name)}")
        except PackageNotFoundError:
            sys.exit(f"{name} is not installed: make constraints installs everything first")
    return lines


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in {"lowest": lowest, "tested": tested}[sys.argv[1]]())
