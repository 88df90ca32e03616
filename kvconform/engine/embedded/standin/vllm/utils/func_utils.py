"""Looking at functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def supports_kw(
    callable: Callable[..., Any],
    kw_name: str,
    *,
    requires_kw_only: bool = False,
    allow_var_kwargs: bool = True,
) -> bool:
    """Whether a callable can be given ``kw_name`` as a keyword."""
    parameters = inspect.signature(callable).parameters
    found = parameters.get(kw_name)
    if found is not None:
        by_keyword = (found.KEYWORD_ONLY,) if requires_kw_only else (found.KEYWORD_ONLY, found.POSITIONAL_OR_KEYWORD)
        if found.kind in by_keyword:
            return True
    if not allow_var_kwargs or not parameters:
        return False
    last = list(parameters.values())[-1]
    return last.kind is last.VAR_KEYWORD and last.name != kw_name
