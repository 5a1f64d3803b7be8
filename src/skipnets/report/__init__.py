"""Reports of a run, comparisons between runs, and audits of a dataset.

Names are loaded on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from skipnets.lazy import lazy_exports

if TYPE_CHECKING:
    from skipnets.report.auditing import Audit, audit
    from skipnets.report.comparison import Comparison, compare
    from skipnets.report.page import write_report
    from skipnets.report.tuning import write_tuning_report

__all__ = ["Audit", "Comparison", "audit", "compare", "write_report", "write_tuning_report"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Audit": "auditing",
        "Comparison": "comparison",
        "audit": "auditing",
        "compare": "comparison",
        "write_report": "page",
        "write_tuning_report": "tuning",
    },
    extra="report",
)
