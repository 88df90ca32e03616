"""The console command ``kvconform``. Imports neither torch nor vllm.

A new command is a function decorated with ``@main.command()``. Whatever is wrong with the user's input ends
with one sentence on stderr and exit code 4, as in pytest.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kvconform import __version__
from kvconform.errors import UsageError
from kvconform.rules import CAPABILITIES, CHAPTERS, LEVELS, Catalogue, Rule, UnknownRuleError, load_catalogue

USAGE_EXIT_CODE = 4

#: Columns where the output goes to a file or a pipe, which has no width of its own.
_WIDTH_WITHOUT_TERMINAL = 160

_LEVEL_STYLES = {"MUST": "bold red", "SHOULD": "yellow", "MAY": "cyan"}


class _Commands(click.Group):
    """A group whose usage errors end with exit code 4 instead of click's 2."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        run = partial(super().main, args, prog_name, complete_var, **extra)
        if not standalone_mode:
            return run(standalone_mode=False)
        try:
            code: Any = run(standalone_mode=False)
        except click.UsageError as error:
            error.show()
            sys.exit(USAGE_EXIT_CODE)
        except UsageError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(USAGE_EXIT_CODE)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except click.Abort:
            click.echo("Aborted.", err=True)
            sys.exit(1)
        sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="kvconform")
def main() -> None:
    """Conformance kit for vLLM KV connectors.

    The tests themselves run in pytest: pytest --kvconform=my.module:MyConnector
    """


@main.command()
@click.argument("rule_id", metavar="RULE")
def explain(rule_id: str) -> None:
    """Everything about one RULE, e.g. MATCH-05."""
    catalogue = load_catalogue()
    try:
        rule = catalogue.rule(rule_id)
    except UnknownRuleError as error:
        raise UsageError(str(error)) from error
    _print_rule(rule, catalogue)


@main.command()
@click.option("--chapter", "chapters", multiple=True, type=click.Choice(CHAPTERS, case_sensitive=False))
@click.option("--level", "levels", multiple=True, type=click.Choice(LEVELS, case_sensitive=False))
@click.option("--capability", "capabilities", multiple=True, type=click.Choice(CAPABILITIES, case_sensitive=False))
@click.option("--release", metavar="X.Y.Z", help="Only rules that hold for this vLLM release.")
@click.option("--json", "as_json", is_flag=True, help="Complete rules as a JSON array.")
def rules(
    chapters: tuple[str, ...],
    levels: tuple[str, ...],
    capabilities: tuple[str, ...],
    release: str | None,
    as_json: bool,
) -> None:
    """List the rules. An option given twice means either; different options must all hold."""
    catalogue = load_catalogue()
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


def _console() -> Console:
    """A console on the current stdout; colours only where rich sees a terminal."""
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL
    return Console(file=sys.stdout, width=columns, highlight=False)


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
            Text(rule.level, style=_LEVEL_STYLES[rule.level]),
            rule.capability,
            _releases(rule),
            Text(rule.sentence),
        )
    console = _console()
    if found:
        console.print(table)
    noun = "rule" if len(found) == 1 else "rules"
    console.print(f"{len(found)} {noun}. 'kvconform explain RULE' tells more about one.")


def _releases(rule: Rule) -> str:
    return f"{rule.since} .. {rule.until}" if rule.until else f"{rule.since} .."


def _print_rule(rule: Rule, catalogue: Catalogue) -> None:
    console = _console()
    last = f"up to {rule.until}" if rule.until else "and later"
    head = Text.assemble(
        (rule.id, "bold"), "  ", (rule.level, _LEVEL_STYLES[rule.level]), f"  vLLM {rule.since} {last}"
    )
    needs = "every connector" if rule.capability == "base" else f"connectors with the capability {rule.capability}"
    console.print(head)
    console.print(Text(f"{catalogue.chapter(rule.chapter).title}; {needs}", style="dim"))
    console.print()
    console.print(Text(rule.sentence, style="bold"))
    for title, text in (
        ("Otherwise", rule.consequence),
        ("How to fix", rule.fix),
        ("Notes", rule.notes),
        ("Not checked by any suite yet", rule.unchecked or ""),
    ):
        if text:
            _print_section(console, title, [text])
    _print_section(console, "Evidence", [str(item) for item in rule.evidence])
    # Other references (R1 to R33) number the defect classes that the kit was built from; they mean nothing here.
    related = [catalogue.rule(other) for other in rule.related if other in catalogue]
    if related:
        _print_section(console, "See also", [f"{other.id}  {other.sentence}" for other in related])


def _print_section(console: Console, title: str, lines: Iterable[str]) -> None:
    console.print()
    console.print(Text(title, style="underline"))
    for line in lines:
        console.print(Padding.indent(Text(line), 2))


if __name__ == "__main__":
    main()
