"""The rule book: the catalogue as Markdown pages, with the tests that check each rule, and those that none checks.

The pages depend on the catalogue, the examples and the suites' source only, so the same kit writes the same pages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from kvconform.report.document import plural
from kvconform.rules import NO_TEST, Catalogue, Chapter, Rule
from kvconform.rules.examples import Example

INDEX = "README.md"
#: First line of every page.
MARK = "<!-- Written by kvconform rules --book; changes belong into the catalogue. -->"
_SPECIAL = re.compile(r"[\\`*<>\[\]|]|(?<![^\W_])_|_(?![^\W_])")


@dataclass(frozen=True)
class Book:
    """What the pages are made of."""

    catalogue: Catalogue
    #: ``"test_transfer.py::test_name"`` -> rules, see :func:`kvconform.report.suite_tests.rules_by_test`.
    tests: Mapping[str, tuple[str, ...]]
    examples: Mapping[str, Example]

    def pages(self) -> dict[str, str]:
        """File name -> text of every page."""
        pages = {INDEX: _joined(self._index())}
        pages.update({_file(chapter): _joined(self._chapter(chapter)) for chapter in self.catalogue.chapters})
        return pages

    def tests_of(self, rule: str) -> list[str]:
        """The tests that name a rule."""
        return [test for test, rules in self.tests.items() if rule in rules]

    # -- the index -------------------------------------------------------------------------------------------------

    def _index(self) -> Iterator[str]:
        rules = self.catalogue.rules
        checked = [rule for rule in rules if self.tests_of(rule.id)]
        yield MARK
        yield ""
        yield "# The rule book"
        yield ""
        yield (
            "What vLLM's V1 engine expects of a KV connector, rule by rule: each with its level, the releases it holds "
            "for, what the engine does otherwise, where in vLLM it comes from, and the tests that check it."
        )
        yield ""
        yield (
            f"**{plural(len(rules), 'rule')} in {plural(len(self.catalogue.chapters), 'chapter')}: {len(checked)} "
            f"checked by tests of the suites, {len(rules) - len(checked)} unchecked.** What is unchecked is in no "
            "verdict; the pages say so, and why where there is a reason."
        )
        yield ""
        yield "| chapter | what it is about | rules | MUST | SHOULD | MAY | checked | unchecked |"
        yield "|---|---|--:|--:|--:|--:|--:|--:|"
        for chapter in self.catalogue.chapters:
            yield self._row(f"[{chapter.id}]({_file(chapter)})", escape(chapter.title), chapter.rules)
        yield self._row("all", "", rules)
        yield ""
        yield "`kvconform explain RULE` shows one rule in a terminal, `kvconform rules` lists and filters them."
        yield ""
        yield "**MUST**: breaking it makes a run fail. **SHOULD**: breaking it is a warning. **MAY**: what is allowed."

    def _row(self, name: str, title: str, rules: Iterable[Rule]) -> str:
        rules = tuple(rules)
        levels = [sum(rule.level == level for rule in rules) for level in ("MUST", "SHOULD", "MAY")]
        checked = sum(bool(self.tests_of(rule.id)) for rule in rules)
        cells = [name, title, len(rules), *levels, checked, len(rules) - checked]
        return "| " + " | ".join(map(str, cells)) + " |"

    # -- a chapter -------------------------------------------------------------------------------------------------

    def _chapter(self, chapter: Chapter) -> Iterator[str]:
        yield MARK
        yield ""
        yield f"# {escape(chapter.title)} ({chapter.id})"
        yield ""
        yield escape(chapter.about)
        yield ""
        yield f"[All chapters]({INDEX})"
        yield ""
        yield "| rule | level | checked | in one sentence |"
        yield "|---|---|---|---|"
        for rule in chapter.rules:
            checked = "yes" if self.tests_of(rule.id) else "no"
            yield f"| [{rule.id}](#{rule.id.lower()}) | {rule.level} | {checked} | {escape(rule.sentence)} |"
        for rule in chapter.rules:
            yield ""
            yield from self._section(rule)

    def _section(self, rule: Rule) -> Iterator[str]:
        yield f"## {rule.id}"
        yield ""
        yield f"**{escape(rule.sentence)}**"
        yield ""
        last = f"to {rule.until}" if rule.until else "and later"
        needs = "every connector" if rule.capability == "base" else f"connectors with the capability {rule.capability}"
        yield f"{rule.level}, vLLM {rule.since} {last}, {needs}."
        for title, text in (("Otherwise", rule.consequence), ("How to fix", rule.fix), ("Notes", rule.notes)):
            if text:
                yield ""
                yield f"*{title}:* {escape(text)}"
        yield from self._example(rule)
        yield ""
        yield "*Evidence:*"
        yield ""
        for evidence in rule.evidence:
            note = f" ({escape(evidence.note)})" if evidence.note else ""
            yield f"- vLLM {evidence.release}, `{evidence.file}`: `{evidence.symbol}`{note}"
        yield ""
        yield from self._checked_by(rule)
        related = [self.catalogue.rule(other) for other in rule.related if other in self.catalogue]
        if related:
            links = [f"[{other.id}]({other.chapter.lower()}.md#{other.id.lower()})" for other in related]
            yield ""
            yield f"*See also:* {', '.join(links)}"

    def _example(self, rule: Rule) -> Iterator[str]:
        example = self.examples.get(rule.id)
        if example is None:
            return
        yield ""
        yield f"*An example failure.* The connector: {escape(example.defect)}"
        yield ""
        yield "```text"
        yield f"Expected: {example.expected}"
        yield f"Observed: {example.observed}"
        yield "```"

    def _checked_by(self, rule: Rule) -> Iterator[str]:
        tests = self.tests_of(rule.id)
        if not tests:
            yield f"*Unchecked:* {escape((rule.unchecked or NO_TEST).rstrip('.'))}."
            return
        yield "*Checked by:*"
        yield ""
        for test in tests:
            file, _, name = test.partition("::")
            yield f"- [{file}](../../suites/{file}): `{name}`"


def _file(chapter: Chapter) -> str:
    return f"{chapter.id.lower()}.md"


def _joined(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """A text that Markdown shows as it is; underscores inside of words mean nothing to it."""
    return _SPECIAL.sub(lambda match: "\\" + match.group(), text)
