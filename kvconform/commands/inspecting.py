"""``kvconform inspect``: a first look at a connector class, from its source alone."""

from __future__ import annotations

import json
import shlex
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.text import Text

from kvconform.commands.output import LEVEL_STYLES, make_console, terminal_text
from kvconform.rules import load_catalogue

if TYPE_CHECKING:
    from kvconform.inspection.findings import Inspection


@click.command()
@click.argument("spec", metavar="SPEC")
@click.option("--json", "as_json", is_flag=True, help="Everything as one JSON object.")
def inspect(spec: str, as_json: bool) -> int:
    """A first look at the connector SPEC without running anything.

    SPEC is package.module:Class, path/to/file.py:Class or vllm:RegisteredName. Its source is read, and neither it nor
    vLLM or torch is imported. Exit code 1 if a rule on signatures is broken, otherwise 0, which clears nothing.
    """
    from kvconform.inspection.findings import inspect_source

    found = inspect_source(spec, Path.cwd())
    if as_json:
        click.echo(json.dumps(_to_dict(spec, found), indent=2, ensure_ascii=False))
    else:
        _print(spec, found)
    return int(bool(found.findings))


def _to_dict(spec: str, found: Inspection) -> dict[str, object]:
    catalogue = load_catalogue()
    return {
        "target": spec,
        "class": {"name": found.class_name, "file": _shown(found.file), "line": found.line},
        "findings": [
            {
                "rule": finding.rule,
                "level": catalogue.rule(finding.rule).level,
                "sentence": catalogue.rule(finding.rule).sentence,
                "file": _shown(finding.file),
                "line": finding.line,
                "expected": finding.expected,
                "observed": finding.observed,
                "explain": f"kvconform explain {finding.rule}",
            }
            for finding in found.findings
        ],
        "hints": [{"sentence": hint.sentence, "file": _shown(hint.file), "line": hint.line} for hint in found.hints],
        "not_judged": list(found.not_judged),
        "looked_at": dict(found.looked_at),
        "verdict_by": _verdict_by(spec),
    }


def _print(spec: str, found: Inspection) -> None:
    catalogue, console = load_catalogue(), make_console()
    console.print(Text(terminal_text(spec), style="bold"))
    console.print(Text(terminal_text(f"class {found.class_name}, {_shown(found.file)}:{found.line}")))
    for finding in found.findings:
        rule = catalogue.rule(finding.rule)
        console.print()
        level = (rule.level, LEVEL_STYLES[rule.level])
        text = _wrapped(f") broken: {rule.sentence}", console, taken=len(rule.id) + len(rule.level) + 2)
        console.print(Text.assemble((rule.id, "bold"), " (", level, text), soft_wrap=True)
        for title, text in (
            ("Where", f"{_shown(finding.file)}:{finding.line}"),
            ("Expected", finding.expected),
            ("Observed", finding.observed),
            ("More", f"kvconform explain {rule.id}"),
        ):
            console.print(Text(_wrapped(f"{title}: {text}", console, indent="  ")), soft_wrap=True)
    notes = [f"Hint: {hint.sentence} ({_shown(hint.file)}:{hint.line})" for hint in found.hints]
    notes += [f"Cannot be judged statically: {reason}." for reason in found.not_judged]
    if notes:
        console.print()
    for note in notes:
        console.print(Text(_wrapped(note, console)), soft_wrap=True)
    console.print()
    seen = ", ".join(f"{count} {kind if count > 1 else kind.removesuffix('s')}" for kind, count in found.looked_at)
    noun = "finding" if len(found.findings) == 1 else "findings"
    console.print(Text(f"{len(found.findings)} {noun}. Looked at: {seen or 'nothing'}."))
    console.print(Text("A look at the source can find faults, but it clears nothing. What does:"))
    console.print(Text(f"  {terminal_text(_verdict_by(spec))}"), soft_wrap=True)


def _wrapped(text: str, console: Console, indent: str = "", taken: int = 0) -> str:
    """Lines of the console's width, without breaking a path; ``taken`` columns of the first line are in use."""
    lines = textwrap.wrap(
        terminal_text(text),
        console.width,
        initial_indent=indent or " " * taken,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines)[taken:]


def _verdict_by(spec: str) -> str:
    return f"pytest --kvconform={shlex.quote(spec)}"


def _shown(file: Path) -> str:
    """Relative to the current folder where it is below it."""
    here = Path.cwd()
    return str(file.relative_to(here)) if file.is_relative_to(here) else str(file)
