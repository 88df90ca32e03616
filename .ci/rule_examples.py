"""Example failures for the rule book, from case files of connectors that were broken on purpose.

    python .ci/rule_examples.py FOLDER...    # each as pytest --kvconform-cases=FOLDER leaves it

Writes kvconform/rules/examples.toml: what is there already stays unless a case of the same rule is given; of several
cases the one with the shortest text is taken. Then run: make rulebook
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from kvconform.cases.model import Case, read
from kvconform.rules import load_catalogue
from kvconform.rules.examples import Example, load_examples

FILE = Path(__file__).parents[1] / "kvconform" / "rules" / "examples.toml"


def main(folders: list[str]) -> None:
    """Collect and write."""
    found: dict[str, list[Example]] = {}
    for folder in folders:
        for path in sorted(Path(folder).glob("*.case.json")):
            for example in examples_of(read(path, load_catalogue())):
                found.setdefault(example.rule, []).append(example)
    best = {rule: min(examples, key=lambda e: len(e.observed) + len(e.expected)) for rule, examples in found.items()}
    merged = {**load_examples(), **best}
    entries = [entry(merged[rule.id]) for rule in load_catalogue() if rule.id in merged]
    FILE.write_text("# Written by .ci/rule_examples.py.\n\n" + "\n".join(entries), encoding="utf-8")
    print(f"{FILE}: {len(entries)} examples, {len(best)} of them new")


def examples_of(case: Case) -> Iterator[Example]:
    """One example per observation of a rule that the case is about."""
    defect = defect_of(case)
    for observation in case.observations:
        if defect and observation.rule in case.rules:
            yield Example(observation.rule, defect, plain(observation.expected), plain(observation.observed))


def plain(text: str) -> str:
    """Without the folder that a scenario had."""
    return re.sub(r"/\S*?/kvconform-\w+", "{dir}", text)


def defect_of(case: Case) -> str:
    """The first sentence of the connector's docstring, read from its source; nothing is imported."""
    place, _, name = case.connector.spec.rpartition(":")
    if place == "vllm":
        return f"vLLM's own {name}."
    if not place.endswith(".py") or not Path(place).is_file():
        return ""
    for node in ast.parse(Path(place).read_bytes()).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
    return ""


def entry(example: Example) -> str:
    """One table of the file."""
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in vars(example).items()]
    return "\n".join(["[[example]]", *lines, ""])


if __name__ == "__main__":
    main(sys.argv[1:])
