"""Choices are measured once for a machine, kept, recorded and repeated."""

from __future__ import annotations

import json
import threading
import time
from importlib.metadata import version

import pytest
import torch

from skipnets.ops import choices
from skipnets.ops.choices import Choices


class Ways:
    """Ways of given speeds, which count how often they ran."""

    def __init__(self, monkeypatch, **seconds):
        self.now, self.seconds, self.runs = 0.0, seconds, []
        monkeypatch.setattr(choices.time, "perf_counter", lambda: self.now)

    def ways(self):
        return {name: lambda name=name: self.run(name) for name in self.seconds}

    def run(self, name):
        self.runs.append(name)
        self.now += self.seconds[name]


@pytest.fixture
def ways(monkeypatch):
    return Ways(monkeypatch, slow=3.0, fast=1.0, middle=2.0)


def test_the_fastest_is_chosen_once_and_kept_for_other_processes(ways, tmp_path):
    path = tmp_path / "folder" / "cpu.json"
    for choosing in (Choices(path), Choices(path)):
        for _ in range(2):
            assert choosing.choose("problem", ways.ways(), rounds=2) == "fast"
        assert choosing.seconds("problem") == {"slow": 3.0, "fast": 1.0, "middle": 2.0}
    assert ways.runs == ["slow", "fast", "middle"] * 3


def test_the_first_run_of_each_does_not_count(monkeypatch):
    ways = Ways(monkeypatch, slow_at_first=9.0, steady=2.0)

    def warm_up():
        ways.run("slow_at_first")
        ways.seconds["slow_at_first"] = 1.0

    chosen = Choices(None).choose("p", {"slow_at_first": warm_up, "steady": lambda: ways.run("steady")})
    assert chosen == "slow_at_first"


def test_short_ways_are_run_more_often(monkeypatch):
    ways = Ways(monkeypatch, slow=0.003, fast=0.001)
    Choices(None).choose("problem", ways.ways(), rounds=2)
    assert ways.runs.count("fast") == ways.runs.count("slow") == 13  # Until 0.05 s have passed.


@pytest.mark.parametrize("change", ["threads", "ONEDNN_MAX_CPU_ISA", "SKIPNETS_ENGINE_ISA", "version"])
def test_another_machine_measures_anew(ways, tmp_path, monkeypatch, change):
    path = tmp_path / "cpu.json"
    Choices(path).choose("problem", ways.ways())
    ways.seconds["slow"] = 0.5
    assert Choices(path).choose("problem", ways.ways()) == "fast"
    if change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    elif change == "version":
        monkeypatch.setattr(choices, "_versions", lambda: ("torch 99",))
    else:
        monkeypatch.setenv(change, "AVX2")
    assert Choices(path).choose("problem", ways.ways()) == "slow"


def test_one_way_is_not_measured(ways):
    assert Choices(None).choose("problem", {"slow": ways.ways()["slow"]}) == "slow"
    assert ways.runs == []


@pytest.mark.parametrize("value", [["fast"], {"fast": 1}, 7, "other", None])
def test_a_damaged_choice_is_measured_anew(ways, tmp_path, value):
    path = tmp_path / "cpu.json"
    Choices(path).choose("problem", ways.ways())
    path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_text()), value)))
    assert Choices(path).seconds("problem") == (value if isinstance(value, dict) else {})
    assert Choices(path).choose("problem", ways.ways()) == "fast"


@pytest.mark.parametrize("text", ["{", "", "[1]", "\0\1"])
def test_a_damaged_file_is_named_and_written_anew(ways, tmp_path, caplog, text):
    path = tmp_path / "cpu.json"
    path.write_text(text)
    assert Choices(path).choose("problem", ways.ways()) == "fast"
    (message,) = caplog.messages
    assert message.startswith(f"{path} is ignored and written anew: ")
    assert "fast" in json.loads(path.read_text()).values()


def test_a_way_of_another_version_is_measured_anew(ways, tmp_path):
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps({f"problem | {choices.machine()}": "forgotten"}))
    assert Choices(path).choose("problem", ways.ways()) == "fast"


def test_a_folder_that_cannot_be_written_costs_the_memory_alone(ways, tmp_path):
    (tmp_path / "file").touch()
    choosing = Choices(tmp_path / "file" / "cpu.json")
    for _ in range(2):
        assert choosing.choose("problem", ways.ways()) == "fast"


def test_what_another_process_has_written_since_is_kept(ways, tmp_path):
    path = tmp_path / "cpu.json"
    one, other = Choices(path), Choices(path)
    one.choose("a", ways.ways())
    other.choose("b", ways.ways())
    one.choose("c", ways.ways())
    runs = len(ways.runs)
    assert [Choices(path).choose(problem, ways.ways()) for problem in "abc"] == ["fast"] * 3
    assert len(ways.runs) == runs


def test_recorded_choices_are_repeated_whatever_is_faster(ways, tmp_path):
    first = Choices(tmp_path / "cpu.json")
    first.choose("before", ways.ways())
    with first.recording() as record:
        first.choose("a", ways.ways())
        with first.recording() as inner:
            first.choose("b", ways.ways())
    first.choose("after", ways.ways())
    assert (record, inner) == ({"a": "fast", "b": "fast"}, {"b": "fast"})
    ways.seconds["fast"] = 10.0
    again = Choices(None)
    again.repeat(record)
    with again.recording() as repeated:
        assert [again.choose(problem, ways.ways()) for problem in "ab"] == ["fast", "fast"]
        assert again.choose("c", ways.ways()) == "middle"
    assert repeated == record | {"c": "middle"}
    again.repeat({})
    assert again.choose("a", ways.ways()) == "middle"


def test_a_recorded_choice_that_is_not_available_is_told_once(ways, caplog):
    choosing = Choices(None)
    choosing.repeat({"problem": "native"})
    with choosing.recording() as used:
        assert [choosing.choose("problem", ways.ways(), rounds=2) for _ in range(2)] == ["fast", "fast"]
    assert used == {"problem": "fast"}
    assert len(ways.runs) == 9  # measured once
    (message,) = caplog.messages
    assert message.startswith("problem: the recorded choice, native, is not available here")


def test_threads_measure_one_after_another():
    choosing, running, most = Choices(None), [], []

    def way():
        running.append(1)
        most.append(len(running))
        time.sleep(0.001)
        running.pop()

    threads = [
        threading.Thread(target=choosing.choose, args=(str(number), {"a": way, "b": way}))
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


def test_a_choice_within_a_measurement(ways):
    choosing = Choices(None)

    def outer():
        choosing.choose("inner", ways.ways())

    with choosing.recording() as record:
        assert choosing.choose("outer", {"only slow": outer, "x": outer}) in ("only slow", "x")
    assert record["inner"] == "fast"


def test_the_cache_is_where_the_user_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert choices.cache_folder() == tmp_path / "skipnets"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert choices.cache_folder() == tmp_path / ".cache" / "skipnets"


def test_a_measurement_names_its_machine():
    name = choices.machine()
    assert f"{torch.get_num_threads()} threads" in name
    assert f"torch {version('torch')}" in name
    assert torch.backends.cpu.get_cpu_capability() in name
