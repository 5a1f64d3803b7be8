"""What is opened: metadata without weights, and files that are refused."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.helpers.classifiers import CLASSES, make_classifier
from tests.helpers.model_files import metadata_of, rewrite

import skipnets
from skipnets.classifier import Classifier, load
from skipnets.errors import UserError
from skipnets.opening import describe


@pytest.fixture
def classifier() -> Classifier:
    return make_classifier(block_config=(1, 1))


@pytest.fixture
def saved(classifier: Classifier, tmp_path: Path) -> Path:
    classifier.save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_describe_returns_all_metadata(classifier: Classifier, saved: Path) -> None:
    assert describe(saved.parent) == {
        "path": str(saved),
        "bytes": saved.stat().st_size,
        "format_version": 2,
        "skipnets_version": skipnets.__version__,
        "architecture": classifier.architecture,
        "parameters": sum(p.numel() for p in classifier.model.parameters()),
        "classes": list(CLASSES),
        "preprocessing": classifier.preprocessing.to_dict(),
        "temperature": 1.0,
        "provenance": classifier.provenance,
    }
    assert "created" in classifier.provenance
    json.dumps(describe(saved), allow_nan=False)


class TestRefusedFiles:
    """Whatever is wrong with a file is one line that names it."""

    def refused(self, path: Path, words: str) -> None:
        with pytest.raises(UserError, match=words) as caught:
            load(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_missing(self, tmp_path: Path) -> None:
        self.refused(tmp_path / "no.safetensors", "does not exist")

    def test_a_folder_that_is_no_run(self, tmp_path: Path) -> None:
        self.refused(tmp_path, r"folder without model\.safetensors")

    @pytest.mark.parametrize("keep", [0, 5, 8, 100, -1, -5000])
    def test_truncated(self, saved: Path, keep: int) -> None:
        saved.write_bytes(saved.read_bytes()[:keep])
        self.refused(saved, "truncated or damaged")

    def test_a_file_longer_than_its_header_says(self, saved: Path) -> None:
        saved.write_bytes(saved.read_bytes() + b"\0")
        self.refused(saved, "truncated or damaged")

    def test_another_kind(self, saved: Path, tmp_path: Path) -> None:
        saved.write_bytes(b"\x89PNG\r\n\x1a\n" * 100)
        self.refused(saved, "not a model file")
        torch.save({"a": torch.zeros(3)}, tmp_path / "weights.pth")
        self.refused(tmp_path / "weights.pth", r"PyTorch checkpoint.*create_model\(name, weights=")

    def test_a_header_that_claims_gigabytes(self, saved: Path) -> None:
        saved.write_bytes((2**40).to_bytes(8, "little") + saved.read_bytes()[8:])
        self.refused(saved, "truncated or damaged")

    def test_bare_weights(self, saved: Path) -> None:
        safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, saved)
        self.refused(saved, r"bare weights.*create_model\(name, weights=")

    def test_a_newer_format(self, saved: Path) -> None:
        rewrite(saved, metadata={**metadata_of(saved), "format_version": 3})
        self.refused(saved, "format version 3, this skipnets reads up to 2")

    def test_version_1_named_the_dropouts_otherwise(self, saved: Path) -> None:
        """There `drop_rate` was the layers' and `head_drop_rate` the head's."""
        metadata = metadata_of(saved)
        old = {key: value for key, value in metadata["architecture"].items() if key != "proj_drop_rate"}
        old |= {"drop_rate": 0.2, "head_drop_rate": 0.3}
        rewrite(saved, metadata={**metadata, "format_version": 1, "architecture": old})
        config = load(saved, runtime="torch").model.config
        assert (config.proj_drop_rate, config.drop_rate) == (0.2, 0.3)
        assert (describe(saved)["format_version"], describe(saved)["architecture"]["drop_rate"]) == (1, 0.3)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "[]",
            "7",
            "null",
            "{}",
            '{"format_version": "1"}',
            '{"format_version": true}',
            "[" * 10**5,
        ],
    )
    def test_metadata_that_are_no_metadata(self, saved: Path, text: str) -> None:
        rewrite(saved, metadata=text)
        self.refused(saved, "damaged metadata")

    @pytest.mark.parametrize(
        ("key", "value", "words"),
        [
            ("architecture", None, "architecture is missing"),
            ("architecture", {"family": "vit"}, "family='vit': must be one of"),
            ("classes", ["ant"], "classes: must be 3, the network's outputs, not 1"),
            ("classes", ["ant", "ant", "bee"], "repeated: ant"),
            ("classes", ["ant", "bee", 3], "list of at least one name"),
            ("classes", ["ant", "bee", ["c"]], "list of at least one name"),
            ("preprocessing", {"size": -1}, "size"),
            ("preprocessing", {"size": [16, 16], "channels": 1}, "must give in_chans=3 channels .*not 1"),
            ("preprocessing", {"size": [16, 16], "mean": "red"}, "damaged metadata"),
            ("preprocessing", {"size": [1, 16]}, "at least 2×2"),
            ("provenance", [], "provenance is missing or of the wrong type"),
        ],
    )
    def test_absurd_metadata(self, saved: Path, key: str, value: object, words: str) -> None:
        rewrite(saved, metadata={**metadata_of(saved), key: value})
        self.refused(saved, words)

    @pytest.mark.parametrize(
        "fields",
        [
            {"block_config": [1, 2]},
            {"block_config": [1024] * 8},
            {"growth_rate": 1024},
            {"bottleneck": None},
            {"norm": None},
            {"stem_channels": 4096},
        ],
    )
    def test_another_architecture(self, saved: Path, fields: dict[str, object]) -> None:
        metadata = metadata_of(saved)
        assert isinstance(metadata["architecture"], dict)
        rewrite(saved, metadata={**metadata, "architecture": {**metadata["architecture"], **fields}})
        self.refused(saved, "architecture")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"extra": np.zeros(1, np.float32)}, "left over: extra"),
            ({"classifier.bias": None}, r"missing: classifier\.bias"),
            (
                {"classifier.bias": np.zeros(4, np.float32)},
                r"classifier\.bias has shape \(4,\).*needs \(3,\)",
            ),
            (
                {"classifier.bias": np.zeros(3, np.float64)},
                r"classifier\.bias is float64, it should be float32",
            ),
            ({"classifier.bias": np.array([0, np.nan, 0], np.float32)}, r"classifier\.bias is not finite"),
            ({"classifier.bias": np.array([0, np.inf, 0], np.float32)}, r"classifier\.bias is not finite"),
        ],
    )
    def test_tensors_that_do_not_fit(
        self, saved: Path, change: dict[str, NDArray[np.generic] | None], words: str
    ) -> None:
        tensors = {**safetensors.numpy.load_file(saved), **change}
        rewrite(saved, tensors={name: array for name, array in tensors.items() if array is not None})
        self.refused(saved, words)

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_any_damage_to_the_header_is_refused_or_harmless(self, saved: Path, data: st.DataObject) -> None:
        whole = saved.read_bytes()
        damaged = bytearray(whole)
        end = 8 + int.from_bytes(whole[:8], "little")
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
        other = saved.with_name("damaged.safetensors")
        other.write_bytes(damaged)
        with contextlib.suppress(UserError):  # nothing else may be raised
            describe(other)
            load(other)


def test_reading_a_model_file_needs_no_torch(saved: Path) -> None:
    script = f"""
import sys
import skipnets.runtimes, skipnets.classifier
from skipnets import Classifier, Preprocessing, list_models, load
assert skipnets.classifier.describe({str(saved)!r})["classes"] == ["ant", "bee", "cat"]
list_models()
from skipnets.evaluation import write_table
write_table({str(saved.with_name("t.csv"))!r}, {{"path": ["a.png"]}})
heavy = {{"torch", "torchvision", "matplotlib", "sklearn", "pyarrow", "pydantic"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
