"""``kvconform replay``: a saved failure, played again."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from kvconform.commands.output import terminal_text
from kvconform.errors import UsageError
from kvconform.rules import load_catalogue

#: pytest's exit code for an error of its own; here for one of the kit.
KIT_ERROR_EXIT_CODE = 3


@click.command()
@click.argument("file", metavar="CASE", type=click.Path(path_type=Path))
@click.option(
    "--connector",
    "--kvconform",
    "spec",
    metavar="SPEC",
    required=True,
    help="The connector to play it with, as for pytest --kvconform. What the file says about one is not used.",
)
@click.option(
    "--config",
    "--kvconform-config",
    "config_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Its settings, as for pytest --kvconform-config.",
)
@click.option("--device", metavar="auto|cpu|cuda", help="Where the KV caches are.")
@click.option("--timeout", type=float, metavar="SECONDS", help="How long the scenario may take.")
def replay(file: Path, spec: str, config_file: Path | None, device: str | None, timeout: float | None) -> int:
    """Play a CASE, a failing scenario that a run saved, again: is it fixed?

    Prints FIXED (exit code 0), FAILED or another finding (exit code 1). The scenario alone comes from the file.
    """
    from kvconform.cases.model import CaseError, read

    try:
        case = read(file, load_catalogue())
    except CaseError as error:
        raise UsageError(str(error)) from error

    from kvconform.cases import replay as playing
    from kvconform.faults import FaultsFailed
    from kvconform.isolation.room import KitError
    from kvconform.report.visible import visible

    target, config = playing.read_settings(spec, config_file, Path.cwd(), device=device, timeout=timeout)
    command = ["kvconform", "replay", str(file), f"--kvconform={spec}"]
    command += [f"--config={config_file}"] if config_file is not None else []
    command += [f"--device={device}"] if device is not None else []
    command += [f"--timeout={timeout:g}"] if timeout is not None else []
    try:
        found = playing.replay(case, target, config, shlex.join(command))
    except KitError as error:
        click.echo(f"KIT ERROR {file}: the kit itself failed; nothing is said about the connector.\n{error}", err=True)
        return KIT_ERROR_EXIT_CODE
    except FaultsFailed as error:
        click.echo(f"KIT ERROR {file}: nothing is said about the connector.\n{error}", err=True)
        return KIT_ERROR_EXIT_CODE
    if found.text:
        click.echo(visible(found.text) + "\n")
    for note in found.notes:
        click.echo(f"Note: {terminal_text(note)}")
    click.echo(f"{found.answer} {file}: {terminal_text(found.sentence).rstrip('.')}.")
    return 0 if found.is_fixed else 1
