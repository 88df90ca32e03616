"""No secrets in a report: values of telling keys, credentials in URLs, and what a connector repeats of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

MASK = "***"

#: Words of a key that make its value a secret.
_SECRET_WORDS = frozenset(
    ("password", "passwd", "passphrase", "pwd", "token", "secret", "secrets", "key", "apikey", "accesskey",
     "secretkey", "privatekey", "credential", "credentials", "cred", "creds", "auth", "authorization", "bearer",
     "cookie", "signature", "sas")
)  # fmt: skip
#: A number behind one of these is no size.
_ALWAYS_SECRET = frozenset(("password", "passwd", "passphrase", "pwd", "secret", "credential"))
#: Beside these a number is a size, as in "max_token_len": no secret.
_COUNTING_WORDS = frozenset(
    ("max", "min", "num", "number", "size", "len", "length", "per", "count", "chunk", "limit", "ttl", "timeout",
     "interval")
)  # fmt: skip
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

# Names begin where a word does: without that, a megabyte of letters takes hours.
_USERINFO = re.compile(r"(?<![A-Za-z0-9+.-])(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^/\s@'\"<>]+@")
_NAMES = r"[\w-]*(?:password|passwd|passphrase|pwd|secret|token|api_?key|access_?key|account_?key|credential|signature)"
#: "password=...", "?token=...&", '"api_key": "..."' in the middle of a text.
_ASSIGNED = re.compile(rf"(?i)(?P<name>(?<![\w-]){_NAMES})(?P<equals>=|['\"]\s*:\s*['\"])(?P<value>[^\s;&,'\"<>]+)")
_BEARER = re.compile(r"(?i)\b(?P<name>Bearer )[A-Za-z0-9._~+/=-]{8,}")
#: Shorter secrets are replaced in texts only where they stand alone, and the shortest not at all: "a" is everywhere.
_LONG, _SHORTEST = 6, 3


def looks_secret(key: str, value: object) -> bool:
    """Whether a setting's value must not be shown, judged by the words of its key.

    Truth values and None are never secrets, and a number is none beside a word for a size (``max_token_len``).
    """
    words = {word.lower() for word in _WORD.findall(key)}
    if value is None or isinstance(value, bool) or not words & _SECRET_WORDS:
        return False
    return not (isinstance(value, int | float) and words & _COUNTING_WORDS)


def mask_text(text: str) -> str:
    """A text without the credentials of URLs and without values behind telling names."""
    text = _USERINFO.sub(rf"\g<scheme>{MASK}@", text)
    text = _BEARER.sub(rf"\g<name>{MASK}", text)
    return _ASSIGNED.sub(_mask_assignment, text)


def _mask_assignment(match: re.Match[str]) -> str:
    return f"{match['name']}{match['equals']}{MASK}" if _is_secret_assignment(match) else match.group()


def _is_secret_assignment(match: re.Match[str]) -> bool:
    """In a text on KV caches "next_token=7" is a token id."""
    words = {word.lower() for word in _WORD.findall(match["name"])}
    return bool(words & _ALWAYS_SECRET) or not match["value"].strip("()[].:").isdecimal()


def mask_settings(value: Any, key: str = "") -> Any:
    """A copy of a configuration value as plain JSON data, with secrets replaced by ``***``.

    What JSON can't say (dates, infinities) becomes its text.
    """
    if looks_secret(key, value):
        return MASK
    if isinstance(value, Mapping):
        return {str(name): mask_settings(entry, str(name)) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [mask_settings(entry, key) for entry in value]
    if isinstance(value, str):
        return mask_text(value)
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def secrets_in(value: Any, key: str = "") -> frozenset[str]:
    """The texts that :func:`mask_settings` hides as a whole: a connector may repeat them in its messages."""
    if isinstance(value, Mapping):
        below = looks_secret(key, value)
        return frozenset().union(*(secrets_in(v, key if below else str(k)) for k, v in value.items()))
    if isinstance(value, list | tuple):
        return frozenset().union(*(secrets_in(entry, key) for entry in value))
    found: set[str] = set()
    if looks_secret(key, value) and str(value).strip():
        found.add(str(value))
    if isinstance(value, str):
        for match in _USERINFO.finditer(value):
            found.add(match.group().removeprefix(match["scheme"]).removesuffix("@").rpartition(":")[2])
        found.update(match["value"] for match in _ASSIGNED.finditer(value) if _is_secret_assignment(match))
    return frozenset(found)


class Masker:
    """Masks texts, knowing the secrets of the run's configuration."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        # The longest first: one may be a part of another.
        known = sorted(
            {secret for secret in secrets if len(secret) >= _SHORTEST and secret != MASK}, key=lambda s: (-len(s), s)
        )
        patterns = [re.escape(s) if len(s) >= _LONG else rf"(?<!\w){re.escape(s)}(?!\w)" for s in known]
        self._known = re.compile("|".join(patterns)) if patterns else None

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        if self._known is not None:
            text = self._known.sub(MASK, text)
        return mask_text(text)
