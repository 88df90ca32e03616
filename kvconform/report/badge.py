"""A badge for a README: the JSON that shields.io's endpoint badge reads, and a small picture of its own.

The colour is that of the worst verdict. A partial run says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from kvconform.report.document import BAD, FLAKY, KNOWN, VERDICTS, Document

LABEL = "kvconform"
#: shields.io's names, and the same colours as values.
_COLOURS = {
    "brightgreen": "#2f9e44",
    "yellowgreen": "#8a9a12",
    "yellow": "#b08800",
    "orange": "#c75c1c",
    "red": "#d03a2b",
    "lightgrey": "#7d8590",
}
#: Kinds of bad verdicts that are named; a badge is small.
_MAX_KINDS = 2
#: Widths in pixels of an 11 px sans-serif, about.
_NARROW, _WIDE, _NORMAL = 4.0, 9.5, 6.8


@dataclass(frozen=True)
class Badge:
    """What a badge says."""

    message: str
    #: One of shields.io's colour names.
    colour: str


def badge(document: Document) -> Badge:
    """The badge of a run: broken rules if there are any, otherwise what was shown."""
    counts = document.counts()
    partial = (", partial" if document.run.partial else "") + (", without vLLM" if document.embedded else "")
    bad = [f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict in BAD and counts.get(verdict)]
    if bad:
        # Only the kit's own failures accuse nobody.
        accused = set(counts) & (BAD - {"kit error"})
        return Badge(", ".join(bad[:_MAX_KINDS]) + partial, "red" if accused else "orange")
    if document.unusable:
        return Badge(f"not tested{partial}", "red")
    if any(target.not_set_up for target in document.targets):
        return Badge(f"not set up{partial}", "red")
    shown = [
        f"{counts[verdict]} {verdict}"
        for verdict in ("pass", KNOWN, FLAKY, "warn", "inconclusive")
        if counts.get(verdict)
    ]
    return Badge((", ".join(shown) or "nothing shown") + partial, _good_colour(counts, bool(partial)))


def _good_colour(counts: Mapping[str, int], partial: bool) -> str:
    if counts.get("warn") or counts.get(KNOWN) or counts.get(FLAKY):
        return "yellow"
    if not counts.get("pass"):
        return "lightgrey"
    return "yellowgreen" if partial else "brightgreen"


def endpoint(document: Document) -> str:
    """The JSON that https://shields.io/badges/endpoint-badge reads."""
    shown = badge(document)
    data = {"schemaVersion": 1, "label": LABEL, "message": shown.message, "color": shown.colour}
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def svg(document: Document) -> str:
    """The badge as a picture without links or scripts."""
    shown = badge(document)
    left, right = _width(LABEL) + 12, _width(shown.message) + 12
    title = escape(f"{LABEL}: {shown.message}", quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" aria-label="{title}">\n'
        f"<title>{title}</title>\n"
        f'<clipPath id="r"><rect width="{left + right}" height="20" rx="4"/></clipPath>\n'
        f'<g clip-path="url(#r)"><rect width="{left}" height="20" fill="#444b54"/>'
        f'<rect x="{left}" width="{right}" height="20" fill="{_COLOURS[shown.colour]}"/></g>\n'
        '<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">\n'
        f'<text x="{left / 2:g}" y="14">{LABEL}</text>\n'
        f'<text x="{left + right / 2:g}" y="14">{escape(shown.message)}</text>\n'
        "</g>\n</svg>\n"
    )


def _width(text: str) -> int:
    widths = (_NARROW if c in "iljtfI,. 1" else _WIDE if c in "mwMW" else _NORMAL for c in text)
    return round(sum(widths))
