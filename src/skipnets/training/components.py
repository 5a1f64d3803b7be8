"""Loss, metrics, callbacks, loggers and images of one's own, from an import that a configuration names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from skipnets.errors import UserError, listed, one_line
from skipnets.training.config import TrainConfig
from skipnets.training.supplied import Supplied, several
from skipnets.trust import MissingNetworkError, import_trusted

__all__ = ["with_components"]

# Arguments of `train` that the import may return → the field that holds them.
_FIELDS = {
    "loss": "loss",
    "metrics": "metrics",
    "callbacks": "callbacks",
    "logger": "loggers",
    "dataset": "dataset",
}


def with_components(config: TrainConfig, supplied: Supplied) -> Supplied:
    """What a program hands over, with what the configuration's `components` return.

    Args:
        config: A run's, or a new one.
        supplied: By the program; unchanged where it holds them already.

    Raises:
        UserError: If they are not trusted, fail, return something else, or what the program hands over, too.
    """
    path = config.components
    if path is None or supplied.from_components:
        return supplied
    try:
        make = import_trusted(path)
    except MissingNetworkError:
        raise UserError(
            f"components={path}: are no part of skipnets: they take trust={path!r} (--trust {path}), which "
            "imports and runs that"
        ) from None
    except UserError as error:
        raise UserError(str(error).replace("trust=", "components=", 1)) from error
    try:
        returned = make()
    except UserError:
        raise
    except Exception as error:  # a user's function, which may raise anything
        raise UserError(f"components={path}: fails ({one_line(error)})") from error
    if not isinstance(returned, Mapping) or not set(returned) <= set(_FIELDS):
        found = listed(map(str, returned)) if isinstance(returned, Mapping) else type(returned).__name__
        raise UserError(
            f"components={path}: must return a dictionary with some of {', '.join(_FIELDS)}, not {found}"
        )
    given: dict[str, Any] = {_FIELDS[name]: value for name, value in returned.items() if value is not None}
    given |= {field: several(given[field]) for field in ("callbacks", "loggers") if field in given}
    for name, field in _FIELDS.items():
        if field in given and getattr(supplied, field) not in (None, (), [], {}):
            raise UserError(f"{name}: must be given once, by components={path} or in Python")
    return dataclasses.replace(supplied, **given, from_components=frozenset(given))
