"""Tools for understanding a network: summaries, diagrams, attribution maps, feature reuse and search.

Names are loaded on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from skipnets.lazy import lazy_exports

if TYPE_CHECKING:
    from skipnets.insight.attribution import Explanation, explain
    from skipnets.insight.diagram import draw_diagram
    from skipnets.insight.feature_reuse import DenseReuse, ResidualReuse, reuse, save_reuse
    from skipnets.insight.memory import TrainingMemory, largest_batch, training_memory
    from skipnets.insight.model_comparison import ModelComparison, compare_models
    from skipnets.insight.neighbors import Search, search
    from skipnets.insight.overlays import contact_sheet, overlay
    from skipnets.insight.summary import Summary, summarize

__all__ = [
    "DenseReuse",
    "Explanation",
    "ModelComparison",
    "ResidualReuse",
    "Search",
    "Summary",
    "TrainingMemory",
    "compare_models",
    "contact_sheet",
    "draw_diagram",
    "explain",
    "largest_batch",
    "overlay",
    "reuse",
    "save_reuse",
    "search",
    "summarize",
    "training_memory",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "DenseReuse": "feature_reuse",
        "Explanation": "attribution",
        "ModelComparison": "model_comparison",
        "ResidualReuse": "feature_reuse",
        "Search": "neighbors",
        "Summary": "summary",
        "TrainingMemory": "memory",
        "compare_models": "model_comparison",
        "contact_sheet": "overlays",
        "draw_diagram": "diagram",
        "explain": "attribution",
        "largest_batch": "memory",
        "overlay": "overlays",
        "reuse": "feature_reuse",
        "save_reuse": "feature_reuse",
        "search": "neighbors",
        "summarize": "summary",
        "training_memory": "memory",
    },
    extra="explain",
)
