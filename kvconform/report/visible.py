"""What a connector prints or raises may hide in a terminal or on a page: a text as it is."""

from __future__ import annotations

import re
import unicodedata

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def visible(text: str) -> str:
    """A text in which nothing hides: control characters, and marks that reorder a line, as Python writes them.

    Terminal colours are taken out: they only colour.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible_character, _COLOUR.sub("", text)))


def _visible_character(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    return character.encode("unicode_escape").decode("ascii")
