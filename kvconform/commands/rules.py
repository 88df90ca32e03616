"""``kvconform explain`` and ``kvconform rules``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kvconform.commands.output import LEVEL_STYLES, make_console, write
from kvconform.errors import UsageError
from kvconform.rules import (
    CAPABILITIES,
    CHAPTERS,
    LEVELS,
    NO_TEST,
    Catalogue,
    Rule,
    UnknownRuleError,
    load_catalogue,
    rule_section,
)
from kvconform.rules.engine_bugs import load_engine_bugs


@click.command()
@click.argument("rule_id", metavar="RULE")
def explain(rule_id: str) -> None:
    """Everything about one RULE, e.g. MATCH-05."""
    catalogue = load_catalogue()
    try:
        rule = catalogue.rule(rule_id)
    except UnknownRuleError as error:
        raise UsageError(str(error)) from error
    _print_rule(rule, catalogue)


@click.command()
@click.option("--chapter", "chapters", multiple=True, type=click.Choice(CHAPTERS, case_sensitive=False))
@click.option("--level", "levels", multiple=True, type=click.Choice(LEVELS, case_sensitive=False))
@click.option("--capability", "capabilities", multiple=True, type=click.Choice(CAPABILITIES, case_sensitive=False))
@click.option("--release", metavar="X.Y.Z", help="Only rules that hold for this vLLM release.")
@click.option("--json", "as_json", is_flag=True, help="Complete rules as a JSON array.")
@click.option("--engine-bugs", is_flag=True, help="Known defects of vLLM itself, which no connector is accused of.")
@click.option(
    "--book",
    "book_folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Write the rule book: a page per chapter, all rules. Pages of chapters that are no more are removed.",
)
def rules(
    chapters: tuple[str, ...],
    levels: tuple[str, ...],
    capabilities: tuple[str, ...],
    release: str | None,
    as_json: bool,
    engine_bugs: bool,
    book_folder: Path | None,
) -> None:
    """List the rules. An option given twice means either; different options must all hold."""
    catalogue = load_catalogue()
    if engine_bugs:
        if as_json or chapters or levels or capabilities or book_folder is not None:
            raise UsageError("--engine-bugs lists no rules, so it goes with no other option but --release.")
        _print_engine_bugs(release)
        return
    if book_folder is not None:
        if as_json or chapters or levels or capabilities or release is not None:
            raise UsageError("--book writes all rules, so it goes with no other option.")
        _write_book(book_folder, catalogue)
        return
    try:
        chosen: Iterable[Rule] = catalogue.rules if release is None else catalogue.applicable(release)
    except ValueError as error:
        raise UsageError(f"{error}.") from error
    found = [
        rule
        for rule in chosen
        if (not chapters or rule.chapter in chapters)
        and (not levels or rule.level in levels)
        and (not capabilities or rule.capability in capabilities)
    ]
    if as_json:
        click.echo(json.dumps([rule.to_dict() for rule in found], indent=2, ensure_ascii=False))
    else:
        _print_table(found)


def _write_book(folder: Path, catalogue: Catalogue) -> None:
    from kvconform.collection import suites_directory
    from kvconform.report.rule_book import MARK, Book
    from kvconform.report.suite_tests import rules_by_test
    from kvconform.rules.examples import load_examples

    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--book {folder}: this is a file; give the path of a folder.")
    pages = Book(catalogue, rules_by_test(suites_directory()), load_examples()).pages()
    for old in sorted(folder.glob("*.md")):
        # Only what an earlier call wrote: other files in the folder are the user's.
        if old.name not in pages and old.read_text(encoding="utf-8", errors="replace").startswith(MARK):
            old.unlink()
    for name, text in pages.items():
        write(folder / name, text)
    click.echo(f"{folder}: {len(pages)} pages.")


def _print_table(found: Sequence[Rule]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("rule", no_wrap=True)
    table.add_column("level", no_wrap=True)
    table.add_column("capability", no_wrap=True)
    table.add_column("releases", no_wrap=True)
    table.add_column("what a connector has to keep")
    for rule in found:
        table.add_row(
            rule.id,
            Text(rule.level, style=LEVEL_STYLES[rule.level]),
            rule.capability,
            _releases(rule),
            Text(rule.sentence),
        )
    console = make_console()
    if found:
        console.print(table)
    noun = "rule" if len(found) == 1 else "rules"
    console.print(f"{len(found)} {noun}. 'kvconform explain RULE' tells more about one.")


def _print_engine_bugs(release: str | None) -> None:
    console = make_console()
    try:
        found = [bug for bug in load_engine_bugs() if release is None or bug.affects(release)]
    except ValueError as error:
        raise UsageError(f"{error}.") from error
    for bug in found:
        last = f"up to {bug.until}" if bug.until else "and later"
        console.print(Text.assemble((bug.id, "bold"), f"  vLLM {bug.since} {last}"))
        console.print(Padding.indent(Text(bug.sentence), 2))
        console.print(Padding.indent(Text(f"Recognised by: {bug.situation}."), 2))
        console.print(Padding.indent(Text(f"For connectors: {bug.advice}"), 2))
        _print_section(console, "Evidence", [str(item) for item in bug.evidence])
        console.print()
    noun = "defect" if len(found) == 1 else "defects"
    console.print(
        f"{len(found)} known {noun} of vLLM itself. What a scenario shows of them is held against no connector."
    )


def _releases(rule: Rule) -> str:
    return f"{rule.since} .. {rule.until}" if rule.until else f"{rule.since} .."


def _print_rule(rule: Rule, catalogue: Catalogue) -> None:
    console = make_console()
    last = f"up to {rule.until}" if rule.until else "and later"
    head = Text.assemble((rule.id, "bold"), "  ", (rule.level, LEVEL_STYLES[rule.level]), f"  vLLM {rule.since} {last}")
    needs = "every connector" if rule.capability == "base" else f"connectors with the capability {rule.capability}"
    console.print(head)
    console.print(Text(f"{catalogue.chapter(rule.chapter).title}; {needs}", style="dim"))
    console.print()
    console.print(Text(rule.sentence, style="bold"))
    for title, text in (
        ("Otherwise", rule.consequence),
        ("How to fix", rule.fix),
        ("Notes", rule.notes),
        ("Not checked by any suite", rule.unchecked or ("" if _tests_of(rule) else NO_TEST)),
    ):
        if text:
            _print_section(console, title, [text])
    _print_section(console, "Evidence", [str(item) for item in rule.evidence])
    tests = _tests_of(rule)
    if tests:
        _print_section(console, "Checked by", tests)
    # Other references (R1 to R33) number the defect classes that the kit was built from; they mean nothing here.
    related = [catalogue.rule(other) for other in rule.related if other in catalogue]
    if related:
        _print_section(console, "See also", [f"{other.id}  {other.sentence}" for other in related])
    _print_section(console, "In the rule book", [rule_section(rule.id)])


def _tests_of(rule: Rule) -> list[str]:
    from kvconform.collection import suites_directory
    from kvconform.report.suite_tests import rules_by_test

    return [test for test, rules in rules_by_test(suites_directory()).items() if rule.id in rules]


def _print_section(console: Console, title: str, lines: Iterable[str]) -> None:
    console.print()
    console.print(Text(title, style="underline"))
    for line in lines:
        console.print(Padding.indent(Text(line), 2))
