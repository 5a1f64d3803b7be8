from __future__ import annotations

import pytest

from skipnets.classifier import Classifier


@pytest.fixture(scope="session")
def classifier(exported_classifier: Classifier) -> Classifier:
    """The one that `exports` were made from, opened from its file."""
    return exported_classifier
