"""Networks that are no part of this package, as configurations: an import and its arguments, without a graph.

Nothing here needs torch, and nothing is imported before `skipnets.models.custom_model` builds the network.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from skipnets.errors import UserError
from skipnets.models.graph import Graph
from skipnets.models.registry import ModelConfig
from skipnets.trust import is_import

__all__ = ["CustomConfig", "NoGraphError", "custom_graph"]


class NoGraphError(UserError):
    """A feature needs a network's graph, and the network has none."""


@dataclass(frozen=True, kw_only=True)
class CustomConfig(ModelConfig):
    """Any module that maps (N, in_chans, H, W), or signals or volumes, to logits (N, num_classes).

    Args:
        import_path: What makes the module, as `package.module:Class`; None where only the program that
            trained it can make it.
        arguments: Keyword arguments of that, as JSON values.
        build: Makes the module instead. It is in no file.
    """

    family: ClassVar[str] = "custom"
    recorded: ClassVar[tuple[str, ...] | None] = (
        "name",
        "import_path",
        "arguments",
        "in_chans",
        "num_classes",
        "dims",
    )
    required: ClassVar[tuple[str, ...]] = ("name", "num_classes")
    dimensions: ClassVar[tuple[int, ...]] = (1, 2, 3)
    takes_any_size: ClassVar[bool] = False

    block_config: tuple[int, ...] = (1,)  # one block of unknown layers
    import_path: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    build: Callable[[], Any] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.import_path is not None and not is_import(self.import_path):
            raise UserError(f"import_path={self.import_path!r}: must be package.module:Class")
        if not isinstance(self.arguments, Mapping):
            raise UserError(f"arguments={self.arguments!r}: must be names with values")
        try:
            plain = json.loads(json.dumps(dict(self.arguments), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise UserError(f"arguments: must be values that JSON can hold ({error})") from None
        object.__setattr__(self, "arguments", plain)

    @property
    def smallest_size(self) -> int:
        """Nothing is known."""
        return 1

    @property
    def description(self) -> str:
        """Where it comes from."""
        return self.import_path or "made by the program that trained it"


def custom_graph(config: CustomConfig) -> Graph:
    """There is none.

    Raises:
        NoGraphError: Always.
    """
    raise NoGraphError(
        f"{config.name} has no graph, which this needs: it is none of the networks that skipnets models lists"
    )
