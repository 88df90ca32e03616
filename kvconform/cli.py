"""The console command ``kvconform``. Imports neither torch nor vllm.

A new command is a function decorated with ``@click.command()`` in :mod:`kvconform.commands`, added below. Whatever is
wrong with the user's input ends with one sentence on stderr and exit code 4, as in pytest.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import click

from kvconform import __version__
from kvconform.commands import cases, inspecting, reports, rules, starting
from kvconform.errors import UsageError

USAGE_EXIT_CODE = 4


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


for command in (
    rules.explain,
    rules.rules,
    inspecting.inspect,
    reports.report,
    reports.verify,
    reports.diff,
    cases.replay,
    starting.init,
):
    main.add_command(command)


if __name__ == "__main__":
    main()
