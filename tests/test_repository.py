"""The files around the code agree with one another and with the code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tests.helpers.requirements import ROOT, declared

SOURCES = ROOT / "src" / "skipnets"
WITHOUT_MIRROR = {
    # Names and types alone, which the tests of the modules that use them hold.
    *("runtimes/graph_format.py", "runtimes/runtime.py", "version.py"),
    # What the tests of launches and of each operation run; without a GPU there is nothing to call in them.
    *("ops/triton/device.py", "ops/triton/kernels.py", "ops/triton/pooling_kernels.py"),
}


def project(folder: Path) -> dict[str, object]:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_every_module_has_its_tests_beside_it() -> None:
    modules = {path.relative_to(SOURCES) for path in SOURCES.rglob("*.py") if not path.name.startswith("__")}
    missing = {
        module.as_posix()
        for module in modules
        if not (ROOT / "tests" / module.parent / f"test_{module.name}").exists()
    }
    assert missing == WITHOUT_MIRROR


def test_both_packages_and_the_citation_have_one_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    engine = project(ROOT / "engine")
    assert project(ROOT)["version"] == citation["version"] == engine["version"]
    assert project(ROOT)["license"] == citation["license"] == engine["license"]
    assert (ROOT / "LICENSE").read_bytes() == (ROOT / "engine" / "LICENSE").read_bytes()


@pytest.mark.parametrize(
    "path", sorted([*ROOT.glob("*.md"), *(ROOT / "engine").glob("*.md")]), ids=lambda path: path.name
)
def test_what_a_page_links_to_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (path.parent / target).exists()] == []


def test_commands_of_the_readme_name_files_that_are_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    scripts = re.findall(r"python (\S+\.py)", text)
    assert scripts
    assert [script for script in scripts if not (ROOT / script).is_file()] == []
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    documents = "".join(path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("*.md")))
    assert set(re.findall(r"`?make ([\w-]+)[`\s]", documents)) <= {*targets, "and"}


def test_every_yaml_file_can_be_read() -> None:
    files = [*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]
    assert len(files) > 4
    for path in files:
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict), path


def test_workflows_run_what_the_makefile_has() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert workflow["permissions"] == {"contents": "read"}, path.name
        for job in workflow["jobs"].values():
            for step in job["steps"]:
                words = step.get("run", "").split()
                assert words[:1] != ["make"] or words[1] in targets, step
                # At least a major version, so that an action cannot change its interface under us.
                assert "@" in step.get("uses", "@"), step


def test_constraints_hold_every_direct_dependency_in_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {
        canonicalize_name(each.name): next(iter(each.specifier)).version
        for each in (Requirement(line) for line in lines if not line.startswith("#"))
    }
    wanted = declared()
    assert set(pinned) == {canonicalize_name(each.name) for each in wanted}
    for each in wanted:
        assert each.specifier.contains(pinned[canonicalize_name(each.name)]), each


def test_every_dependency_of_the_core_has_a_lowest_version() -> None:
    for each in declared(core_only=True):
        assert [bound.operator for bound in each.specifier if bound.operator == ">="], each


def test_no_extra_is_missing_in_all() -> None:
    extras = project(ROOT)["optional-dependencies"]
    assert isinstance(extras, dict)
    [everything] = [Requirement(line) for line in extras["all"]]
    assert everything.extras == set(extras) - {"all", "dev", "docs"}
