"""The version of this package, as it was installed."""

from __future__ import annotations

import importlib.metadata

__version__ = importlib.metadata.version("skipnets")
