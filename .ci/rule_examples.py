"""Example failures for the rule book: what the suites say about the connectors that break a rule on purpose.

    python .ci/rule_examples.py                  every rule that has none yet, chapter by chapter
    python .ci/rule_examples.py ROLE SIG         only these chapters, or rules (SIG-02)
    python .ci/rule_examples.py --again FIN      also rules that have one

One mutant of tests/mutants/*.toml is run for each rule (several rules may share it), on the tests of its rules only.
kvconform/rules/examples.toml is written after every chapter, so an interrupted call goes on where it was.
Then run: make rulebook
"""

from __future__ import annotations

import ast
import json
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "mutants"))

from kill_matrix import run  # noqa: E402
from matrix_entries import HERE, Entry, Outcome, read_entries  # noqa: E402

from kvconform.rules import load_catalogue  # noqa: E402
from kvconform.rules.examples import Example, load_examples  # noqa: E402

FILE = ROOT / "kvconform" / "rules" / "examples.toml"
#: What a paragraph of a failure text may begin with, see kvconform.report.failure_text.
_LABELS = "Expected|Observed|Block table|A block that|Why it matters|How to fix|Source|More"
_ABSOLUTE = re.compile(r"(?<![\w}.])/(?:tmp|home|root|work|usr|var|opt|private|Users)/")
#: Numbers of the kit's own lists, which say nothing to a reader.
_INTERNAL = re.compile(r"^(?:compare )?(?:bugs? \d+.*|R\d+|contract .*)$")
MAX_TEXT = 600


@click.command()
@click.argument("only", nargs=-1)
@click.option("--again", is_flag=True, help="Also rules that have an example.")
@click.option("--jobs", default=1, show_default=True, help="pytest processes at a time.")
def main(only: Sequence[str], again: bool, jobs: int) -> None:
    """Collect and write example failures."""
    catalogue, entries = load_catalogue(), [entry for entry in read_entries() if entry.kind == "mutant"]
    unknown = set(only) - {chapter.id for chapter in catalogue.chapters} - {rule.id for rule in catalogue}
    if unknown:
        raise click.UsageError(f"there is no chapter or rule {', '.join(sorted(unknown))}.")
    for chapter in catalogue.chapters:
        known = {} if again else load_examples()
        wanted = [
            rule.id
            for rule in chapter.rules
            if rule.id not in known and (not only or chapter.id in only or rule.id in only)
        ]
        chosen = choose(entries, wanted)
        if not chosen:
            continue
        found: dict[str, Example] = {}
        for outcome in run(chosen, narrow=True, jobs=jobs):
            for example in examples_of(outcome):
                if example.rule in wanted:
                    found.setdefault(example.rule, example)
        load_examples.cache_clear()
        write({**load_examples(), **found})
        load_examples.cache_clear()
        lacking = sorted({rule for entry in chosen for rule in entry.breaks if rule in wanted} - set(found))
        print(
            f"{chapter.id}: {len(found)} examples from {len(chosen)} mutants"
            + (f"; none for {', '.join(lacking)}" if lacking else ""),
            flush=True,
        )


def choose(entries: Iterable[Entry], wanted: Sequence[str]) -> list[Entry]:
    """For each rule the mutant that breaks the fewest rules beside it; one that does for several is run once."""
    chosen: list[Entry] = []
    for rule in wanted:
        fitting = [entry for entry in entries if rule in entry.expected]
        if fitting:
            best = min(fitting, key=lambda entry: (entry not in chosen, len(entry.breaks)))
            chosen += [] if best in chosen else [best]
    return chosen


def examples_of(outcome: Outcome) -> list[Example]:
    """One example per rule that the mutant was found to break as its entry says."""
    defect = defect_of(outcome.entry)
    examples = []
    for rule in sorted(outcome.broken & outcome.entry.breaks):
        parts = next(filter(None, (parts_of(rule, text) for text in outcome.verdicts[rule].messages)), None)
        if parts is not None and defect:
            expected, observed = map(plain, parts)
            if _ABSOLUTE.search(expected + observed):
                print(f"{rule}: left out, it names a path of this machine: {observed}", file=sys.stderr)
            else:
                examples.append(Example(rule, defect, expected, observed))
    return examples


def parts_of(rule: str, text: str) -> tuple[str, str] | None:
    """What was expected and observed by the failure text; None if the text does not say."""
    if text.startswith(("TIMEOUT: ", "CRASH: ")):
        head = re.sub(r" of \S+:\w+|(?<=TIMEOUT: )\S+:\w+", " the connector", text.splitlines()[0])
        head = re.sub(r"\s+", " ", head)
        return ("the scenario ends" if text.startswith("T") else "the process lives on"), head
    block = re.search(rf"^{re.escape(rule)} \(\w+\) broken by .*?(?=^More: |\Z)", text, re.MULTILINE | re.DOTALL)
    found = {
        label: " ".join(textwrap.dedent(body).split())
        for label in ("Observed", "Expected")
        for body in re.findall(
            rf"^{label}: (.*?)(?=^(?:{_LABELS})|\Z)", block[0] if block else "", re.MULTILINE | re.DOTALL
        )[:1]
    }
    return (found["Expected"], found["Observed"]) if len(found) == 2 else None


def plain(text: str) -> str:
    """Without paths of a machine, and not longer than a reader wants."""
    text = text.replace(f"{ROOT}/", "")
    text = re.sub(r"/\S*?/kvconform-\w+", "{dir}", text)
    text = re.sub(r"/\S*?/site-packages/", "", text)
    text = re.sub(r"0x[0-9a-f]{8,}", "0x...", text)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT].rstrip()} ..."


def defect_of(entry: Entry) -> str:
    """The first paragraph of the connector's docstring, read from its source, without the kit's own numbering."""
    file, _, name = entry.connector.partition(":")
    for node in ast.walk(ast.parse((HERE / f"{file}.py").read_bytes())):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return sentence(" ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split()))
    return ""


def sentence(text: str) -> str:
    """ "vllm#1, bugs 2 (R3): does this." -> "Does this (vllm#1)."."""
    head = re.match(r"^((?:[\w./-]+#\d+|bugs? \d+|R\d+)[^:]*): ", text)
    references = _references(re.sub(r"[()]", ",", head[1])) if head else []
    text = text[head.end() :] if head else text

    def inner(match: re.Match[str]) -> str:
        kept = _references(match[1])
        return f" ({', '.join(kept)})" if kept else ""

    text = re.sub(r" \(([^()]*\b(?:R\d+|bugs? \d+|contract )[^()]*)\)", inner, text)
    if "_" not in text.partition(" ")[0]:  # the name of a hook stays as it is
        text = text[:1].upper() + text[1:]
    return f"{text.rstrip('.')} ({', '.join(references)})." if references else text


def _references(text: str) -> list[str]:
    parts = [re.sub(r"^R\d+: ", "", part.strip()) for part in re.split(r"[,;]| and (?=#|bug)", text)]
    return [part for part in parts if part and not _INTERNAL.match(part)]


def write(examples: Mapping[str, Example]) -> None:
    """The whole file, in the catalogue's order."""
    entries = [table(examples[rule.id]) for rule in load_catalogue() if rule.id in examples]
    FILE.write_text("# Written by .ci/rule_examples.py.\n\n" + "\n".join(entries), encoding="utf-8")


def table(example: Example) -> str:
    """One table of the file."""
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in vars(example).items()]
    return "\n".join(["[[example]]", *lines, ""])


if __name__ == "__main__":
    main()
