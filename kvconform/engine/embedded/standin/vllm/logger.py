"""Loggers with vLLM's methods that say a thing once."""

from __future__ import annotations

import logging
from types import MethodType
from typing import Any, cast

import vllm.envs as envs

_said: set[tuple[str, int, str, tuple[Any, ...]]] = set()


class _VllmLogger(logging.Logger):
    """For type checkers: the methods are put on plain loggers."""

    def debug_once(self, msg: str, *args: Any, scope: str = "local") -> None: ...

    def info_once(self, msg: str, *args: Any, scope: str = "local") -> None: ...

    def warning_once(self, msg: str, *args: Any, scope: str = "local") -> None: ...

    def error_once(self, msg: str, *args: Any, scope: str = "local") -> None: ...


def _once(level: int) -> Any:
    def say(self: logging.Logger, msg: str, *args: Any, scope: str = "local") -> None:
        key = (self.name, level, msg, args)
        if key not in _said:
            _said.add(key)
            self.log(level, msg, *args, stacklevel=2)

    return say


_METHODS = {
    "debug_once": _once(logging.DEBUG),
    "info_once": _once(logging.INFO),
    "warning_once": _once(logging.WARNING),
    "error_once": _once(logging.ERROR),
}


def init_logger(name: str) -> _VllmLogger:
    """A logger of that name. vLLM's own ones say what VLLM_LOGGING_LEVEL asks for."""
    made = logging.getLogger(name)
    for method, function in _METHODS.items():
        setattr(made, method, MethodType(function, made))
    return cast(_VllmLogger, made)


def _set_up() -> None:
    root = logging.getLogger("vllm")
    if not root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(asctime)s [%(filename)s:%(lineno)d] %(message)s"))
        root.addHandler(handler)
        root.propagate = False
    root.setLevel(envs.VLLM_LOGGING_LEVEL)


_set_up()
logger = init_logger(__name__)
