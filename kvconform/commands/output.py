"""What the commands share: a console, and texts that do not steer the terminal."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click
from rich.console import Console

from kvconform.errors import UsageError

#: Columns where the output goes to a file or a pipe, which has no width of its own.
_WIDTH_WITHOUT_TERMINAL = 160

#: How the level of a rule is shown.
LEVEL_STYLES = {"MUST": "bold red", "SHOULD": "yellow", "MAY": "cyan"}


def make_console() -> Console:
    """A console on the current stdout; colours only where rich sees a terminal."""
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL
    return Console(file=sys.stdout, width=columns, highlight=False)


def terminal_text(text: str) -> str:
    """A text out of a file, on one line and without what would steer the terminal."""
    from kvconform.report.visible import visible

    return " ".join(visible(text).split())


def write(file: Path, text: str) -> None:
    """Write a file anew, or to the standard output for ``-``.

    Raises:
        UsageError: it cannot be written.
    """
    from kvconform.report.json_report import write_text

    if str(file) == "-":
        click.echo(text, nl=False)
        return
    try:
        write_text(file, text)
    except OSError as error:
        raise UsageError(f"{file}: it cannot be written: {error.strerror or error}.") from error
