"""The files that ``--kvconform-report`` names, and writing the report to them in each file's form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvconform.report.document import Document

FORMS = (".json", ".html", ".md", ".svg")


@dataclass(frozen=True)
class ReportFiles:
    """Every file of one run's report, the JSON file first: all other forms can be made from it again."""

    paths: tuple[Path, ...]

    @classmethod
    def named(cls, given: Sequence[str], directory: Path) -> ReportFiles:
        """What the options say, relative to ``directory``; without a JSON file there is one beside the first.

        Raises:
            pytest.UsageError: a file of no known form, or a folder.
        """
        paths = tuple(dict.fromkeys(_path(name, directory) for name in given))
        machine = tuple(path for path in paths if path.suffix.lower() == ".json") or (paths[0].with_suffix(".json"),)
        return cls((*machine, *(path for path in paths if path not in machine)))

    def remove(self) -> None:
        """What an earlier run wrote must not pass for this one's if this one is killed."""
        for path in self.paths:
            if path.is_file():
                path.unlink()

    def write(self, document: Document) -> str:
        """Write all of them; why some could not be written, or nothing."""
        from kvconform.report.json_report import write_text

        problems = []
        for path in self.paths:
            try:
                write_text(path, _form(path.suffix.lower())(document))
            except OSError as error:
                problems.append(f"{path.name} cannot be written: {error}")
        return "; ".join(problems)

    def __str__(self) -> str:
        return " and ".join(map(str, self.paths))


def _path(given: str, directory: Path) -> Path:
    path = directory / given
    if path.suffix.lower() not in FORMS:
        raise pytest.UsageError(
            f"--kvconform-report={given}: expected FILE.json, FILE.html, FILE.md or FILE.svg (a badge)."
        )
    if path.is_dir():
        raise pytest.UsageError(f"--kvconform-report={given}: this is a folder; give the path of a file in it.")
    return path


def _form(suffix: str) -> Callable[[Document], str]:
    from kvconform.report import badge, html, json_report, markdown

    return {".json": json_report.dumps, ".html": html.render, ".md": markdown.render, ".svg": badge.svg}[suffix]
