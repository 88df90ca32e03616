"""A report as JSON: writing it, its digest, and reading it back without trusting it.

The digest shows that a file is what some run wrote, not who ran it: it is no signature.
Nothing that a file says is imported, evaluated or unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from kvconform.report.document import FORMAT, FORMAT_VERSION, Document

_SCHEMA_FILE = Path(__file__).parent / "report.schema.json"
DIGEST_PREFIX = "sha256:"
#: No report of a run comes near it; a file that is larger is not read.
MAX_BYTES = 512 * 1024 * 1024


class ReportError(ValueError):
    """A file is not a report. The message is one clear sentence."""


def report_schema() -> dict[str, Any]:
    """The published JSON schema (draft 2020-12) of a report."""
    schema: dict[str, Any] = json.loads(_SCHEMA_FILE.read_text(encoding="utf-8"))
    return schema


def to_data(document: Document) -> dict[str, Any]:
    """The report as plain JSON data, with its digest."""
    data: dict[str, Any] = json.loads(json.dumps(asdict(document), allow_nan=False))
    head = {"format": data.pop("format"), "format_version": data.pop("format_version")}
    return {**head, **data, "digest": digest({**head, **data})}


def dumps(document: Document) -> str:
    """The report as the text of a JSON file."""
    return json.dumps(to_data(document), indent=1, allow_nan=False) + "\n"


def digest(data: dict[str, Any]) -> str:
    """``sha256:`` and the hex digest of the canonical content.

    The canonical content is all but the key ``digest``, as JSON with sorted keys, without blanks, in ASCII, and with
    whole numbers written without a fraction: laying out a file anew does not change it.
    """
    content = {key: value for key, value in data.items() if key != "digest"}
    text = json.dumps(_canonical(content), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return DIGEST_PREFIX + hashlib.sha256(text.encode("ascii")).hexdigest()


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _canonical(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_canonical(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def write_text(path: Path, text: str) -> None:
    """Write a file at once: a reader sees the old one or the new one.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        # mkstemp's files are for their owner only; a report is an ordinary file.
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def parse(text: str) -> Any:
    """Strict JSON: no duplicate keys, no NaN.

    Raises:
        ReportError: it is not.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except ReportError:
        raise
    except RecursionError:
        raise ReportError("it is nested too deeply for a report.") from None
    except ValueError as error:
        raise ReportError(f"it is not JSON: {error}.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ReportError(f"it has the key {twice!r} twice in one object, so readers may differ about what it says.")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ReportError(f"it holds {name}, which is not JSON.")


def schema_problems(data: Any) -> list[str]:
    """What the published schema has against some data: one sentence each, in a stable order; at most ten."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        return [f'it is not a report of kvconform: expected is an object with "format": "{FORMAT}".']
    if data.get("format_version") != FORMAT_VERSION:
        given = data.get("format_version")
        return [
            f"it has format version {given!r}, and this kvconform reads {FORMAT_VERSION}: use the one that wrote it."
        ]
    errors = sorted(_validator().iter_errors(data), key=lambda error: [str(part) for part in error.absolute_path])
    sentences = [f"{_place(error.absolute_path)}: {_cut(error.message)}." for error in errors]
    more = len(sentences) - 10
    return sentences[:10] + ([f"and {more} more problems of this kind."] if more > 0 else [])


@cache
def _validator() -> Any:
    # Imported late: whoever only collects results shouldn't pay for it.
    from jsonschema import Draft202012Validator

    return Draft202012Validator(report_schema())


def _place(path: Any) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".") or "the report"


def _cut(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"


def from_data(data: dict[str, Any]) -> Document:
    """The report in data that has no :func:`schema_problems`."""
    from cattrs import Converter

    converter = Converter()
    # The settings of a connector are any JSON.
    converter.register_structure_hook(Any, lambda value, _: value)
    return converter.structure({key: value for key, value in data.items() if key != "digest"}, Document)


def read(path: Path) -> Document:
    """A report from a file, if it is one and has not been changed.

    Raises:
        ReportError: the file cannot be read, is no report, or its digest does not match.
    """
    data = read_data(path)
    problems = schema_problems(data)
    if problems:
        raise ReportError(f"{path}: {problems[0]}")
    if data["digest"] != digest(data):
        raise ReportError(f"{path}: its digest does not match its content, so it was changed after the run.")
    return from_data(data)


def read_data(path: Path) -> Any:
    """The JSON of a file, unchecked.

    Raises:
        ReportError: the file cannot be read or is not JSON.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ReportError(f"{path}: it is larger than {MAX_BYTES // 2**20} MiB, which no report is.")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ReportError(f"{path}: there is no such file; give the path of a report.") from None
    except UnicodeDecodeError:
        raise ReportError(f"{path}: it is not JSON: not UTF-8 text.") from None
    except OSError as error:
        raise ReportError(f"{path}: it cannot be read: {error.strerror or error}.") from None
    try:
        return parse(text)
    except ReportError as error:
        raise ReportError(f"{path}: {error}") from None
