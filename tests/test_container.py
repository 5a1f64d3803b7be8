"""The image for containers: what it is made of, who runs in it, and that its command is one of ours."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from skipnets.cli import make_app

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, with continued lines joined."""
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text())
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line)]


def of(instructions: list[tuple[str, str]], word: str) -> list[str]:
    return [rest for found, rest in instructions if found == word]


def test_it_is_made_of_wheels_and_has_no_sources(instructions: list[tuple[str, str]]) -> None:
    first, second = of(instructions, "COPY")
    assert first == "constraints.txt dist/*.whl /wheels/"
    assert second.startswith("--from=build /opt/skipnets ")
    [install] = of(instructions, "RUN")
    assert "--only-binary :all:" in install
    assert (ROOT / ".dockerignore").read_text().split() == ["*", "!constraints.txt", "!dist/*.whl"]


def test_nobody_is_root_in_it(instructions: list[tuple[str, str]]) -> None:
    last_stage = instructions[max(i for i, (word, _) in enumerate(instructions) if word == "FROM") :]
    [user] = of(last_stage, "USER")
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)
    assert of(last_stage, "HEALTHCHECK")
    assert not of(last_stage, "RUN")


@pytest.mark.parametrize("file", ["compose.yaml", "compose.cuda.yaml"])
def test_its_command_is_one_of_ours(instructions: list[tuple[str, str]], file: str) -> None:
    service = yaml.safe_load((ROOT / file).read_text())["services"]["classifier"]
    words = json.loads(of(instructions, "ENTRYPOINT")[0]) + service["command"]
    assert words.pop(0) == "skipnets"
    _, bound, ignored = make_app("serve").parse_known_args(words)[:3]
    assert not ignored
    assert bound.kwargs["host"] == "0.0.0.0"
    assert str(bound.args[0]).startswith("/models/")


def test_it_runs_with_nothing_that_it_does_not_need() -> None:
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["classifier"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(volume.endswith(":ro") for volume in service["volumes"])
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    assert ":?" in service["environment"]["SKIPNETS_TOKEN"]  # composing without a token fails
