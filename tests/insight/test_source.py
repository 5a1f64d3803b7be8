"""Everything that a command can be pointed at leads to the same architecture."""

from __future__ import annotations

import pytest
from tests.helpers.classifiers import make_classifier

from skipnets.errors import UserError
from skipnets.insight.source import architecture_of
from skipnets.models import create_model
from skipnets.models.registry import model_config


def test_all_sources_of_one_network_agree(tmp_path) -> None:
    classifier = make_classifier()
    path = classifier.save(tmp_path / "model.safetensors") or tmp_path / "model.safetensors"
    for source in (classifier, path, str(path), tmp_path):
        found = architecture_of(source)
        assert found.config == classifier.model.config
        assert found.input_size == (16, 20)
    assert architecture_of(classifier.model).config == classifier.model.config


def test_a_name_and_its_fields() -> None:
    found = architecture_of("densenet121", growth_rate=12)
    assert found.config == model_config("densenet121", growth_rate=12)
    assert found.input_size == (224, 224)
    assert architecture_of("densenet_bc40_k12").input_size == (32, 32)
    assert architecture_of(create_model("resnet20", num_classes=3)).config.num_classes == 3


@pytest.mark.parametrize(
    ("source", "fields", "message"),
    [
        ("densnet121", {}, "did you mean densenet121"),
        ("no/such/run", {}, "must be a model file, a run folder or a model's name"),
        (model_config("resnet20"), {"width": 8}, "width: can be changed only for a model's name"),
    ],
)
def test_what_leads_nowhere(source, fields, message: str) -> None:
    with pytest.raises(UserError, match=message):
        architecture_of(source, **fields)
