"""Catalogue, suites and rule book say the same, and the pages are those that this kit writes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kvconform.checks import ALL_CHECKS
from kvconform.cli import main
from kvconform.collection import suites_directory
from kvconform.report.rule_book import INDEX, MARK, Book, escape
from kvconform.report.suite_tests import checked_rules, rules_by_test
from kvconform.rules import Catalogue, Chapter, Rule, load_catalogue, rule_section
from kvconform.rules.examples import Example, load_examples
from kvconform.rules.model import Evidence

ROOT = Path(__file__).parents[2]
CATALOGUE = load_catalogue()


def run(*args: str) -> Result:
    return CliRunner().invoke(main, ["rules", *args], prog_name="kvconform")


# -- in step -----------------------------------------------------------------------------------------------------------


def test_every_rule_that_a_suite_names_is_in_the_catalogue() -> None:
    unknown = {
        f"{test}: {rule}"
        for test, rules in rules_by_test(suites_directory()).items()
        for rule in rules
        if rule not in CATALOGUE
    }
    assert not unknown


def test_every_rule_that_a_check_judges_is_in_the_catalogue() -> None:
    assert not [check.rule for check in ALL_CHECKS if check.rule not in CATALOGUE]


def test_no_rule_with_tests_gives_a_reason_why_it_has_none() -> None:
    checked = checked_rules(suites_directory())
    assert not [rule.id for rule in CATALOGUE if rule.unchecked is not None and rule.id in checked]


def test_every_rule_that_is_checked_has_an_example_and_no_other_rule() -> None:
    judged = checked_rules(suites_directory()) | {check.rule for check in ALL_CHECKS}
    assert set(load_examples()) == judged


def test_the_pages_in_the_repository_are_up_to_date(tmp_path: Path) -> None:
    folder = ROOT / "docs" / "rules"
    found = run("--book", str(tmp_path))
    assert found.exit_code == 0, found.output
    written = {page.name: page.read_text(encoding="utf-8") for page in tmp_path.iterdir()}
    kept = {page.name: page.read_text(encoding="utf-8") for page in folder.iterdir()}
    stale = sorted(name for name in written.keys() | kept.keys() if written.get(name) != kept.get(name))
    assert not stale, "run: make rulebook"


def test_every_test_that_a_page_names_is_there() -> None:
    named = set()
    for page in (ROOT / "docs" / "rules").glob("*.md"):
        named |= set(re.findall(r"^- \[(.+?)\]\(\.\./\.\./suites/\1\): `(.+?)`$", page.read_text(), re.MULTILINE))
    assert len(named) >= 30
    for file, name in named:
        tree = ast.parse((ROOT / "suites" / file).read_bytes())
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert set(name.split("::")) <= defined, f"{file}::{name}"


def test_every_rule_has_its_section_where_texts_point_to() -> None:
    for rule in CATALOGUE:
        file, _, anchor = rule_section(rule.id).partition("#")
        headings = re.findall(r"^## (.+)$", (ROOT / file).read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert anchor in [heading.lower() for heading in headings]


def test_every_link_inside_the_book_leads_somewhere() -> None:
    folder = ROOT / "docs" / "rules"
    links = 0
    for page in folder.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            links += 1
            assert not target or (folder / target).is_file(), f"{page.name}: {target}"
    assert links > 600


# -- the pages ---------------------------------------------------------------------------------------------------------


def rule(rule_id: str, **facts: object) -> Rule:
    known: dict[str, object] = {
        "level": "MUST",
        "sentence": f"What {rule_id} demands_.",
        "consequence": "It <fails>.",
        "since": "0.9.2",
        "capability": "base",
        "fix": "Don't.",
        "evidence": (Evidence("0.32.0", "vllm/x.py", "X.y", "why"),),
    }
    return Rule(rule_id, **{**known, **facts})  # type: ignore[arg-type]


def book() -> dict[str, str]:
    chapter = Chapter(
        "MATCH",
        "The match",
        "About it.",
        (
            rule("MATCH-01", related=("MATCH-02", "R2"), notes="A note."),
            rule("MATCH-02", level="SHOULD", until="0.20.0", capability="hma", unchecked="Needs two hosts."),
            rule("MATCH-03", level="MAY"),
        ),
    )
    example = Example("MATCH-01", "Answers twice.", "one answer", "two answers")
    tests = {"test_match.py::test_it": ("MATCH-01", "MATCH-09"), "test_other.py::TestIt::test_too": ("MATCH-01",)}
    return Book(Catalogue((chapter,)), tests, {"MATCH-01": example}).pages()


def section(rule_id: str) -> str:
    return book()["match.md"].partition(f"\n## {rule_id}\n")[2].partition("\n## ")[0]


def test_a_checked_rule_is_told_with_everything() -> None:
    text = section("MATCH-01")
    for part in (
        r"**What MATCH-01 demands\_.**",
        "MUST, vLLM 0.9.2 and later, every connector.",
        r"*Otherwise:* It \<fails\>.",
        "*How to fix:* Don't.",
        "*Notes:* A note.",
        "- vLLM 0.32.0, `vllm/x.py`: `X.y` (why)",
        "*An example failure.* The connector: Answers twice.\n\n```text\nExpected: one answer\n",
        "- [test_match.py](../../suites/test_match.py): `test_it`",
        "- [test_other.py](../../suites/test_other.py): `TestIt::test_too`",
        "*See also:* [MATCH-02](match.md#match-02)\n",
    ):
        assert part in text
    assert "Unchecked" not in text
    assert "R2" not in text


def test_an_unchecked_rule_says_so_with_its_reason() -> None:
    assert "*Unchecked:* Needs two hosts.\n" in section("MATCH-02")
    assert "SHOULD, vLLM 0.9.2 to 0.20.0, connectors with the capability hma." in section("MATCH-02")
    assert "*Unchecked:* no test of the suites checks this rule yet.\n" in section("MATCH-03")
    assert "Checked by" not in section("MATCH-02")


def test_the_index_has_the_figures() -> None:
    index = book()[INDEX]
    assert "**3 rules in 1 chapter: 1 checked by tests of the suites, 2 unchecked.**" in index
    assert "| [MATCH](match.md) | The match | 3 | 1 | 1 | 1 | 1 | 2 |" in index
    assert "| all |  | 3 | 1 | 1 | 1 | 1 | 2 |" in index


def test_the_same_kit_writes_the_same_pages(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        assert run("--book", str(tmp_path / folder)).exit_code == 0
    pages = {page.name: page.read_bytes() for page in (tmp_path / "a").iterdir()}
    assert pages == {page.name: page.read_bytes() for page in (tmp_path / "b").iterdir()}
    assert len(pages) == len(CATALOGUE.chapters) + 1


def test_pages_of_old_chapters_go_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "old.md").write_text(f"{MARK}\n# Old")
    (tmp_path / "mine.md").write_text("# Mine")
    assert run("--book", str(tmp_path)).exit_code == 0
    assert not (tmp_path / "old.md").exists()
    assert (tmp_path / "mine.md").read_text() == "# Mine"


@pytest.mark.parametrize("args", [("--json",), ("--chapter", "META"), ("--release", "0.32.0")])
def test_the_book_has_all_rules_or_is_not_written(tmp_path: Path, args: tuple[str, ...]) -> None:
    found = run("--book", str(tmp_path / "x"), *args)
    assert found.exit_code == 4
    assert not (tmp_path / "x").exists()


def test_a_book_needs_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = run("--book", str(tmp_path / "file"))
    assert found.exit_code == 4
    assert "this is a file; give the path of a folder." in found.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("request_finished is called", "request_finished is called"),
        ("__init__ and *x* | [y]", r"\_\_init\_\_ and \*x\* \| \[y\]"),
        ("a < b `c`", r"a \< b \`c\`"),
    ],
)
def test_what_markdown_would_take_for_markup_is_escaped(text: str, shown: str) -> None:
    assert escape(text) == shown


def test_explain_names_the_tests_and_the_section() -> None:
    found = CliRunner().invoke(main, ["explain", "META-07"], prog_name="kvconform")
    assert "test_transfer.py::test_prompt_stored_in_prefill_chunks_comes_back_whole" in found.stdout
    assert "docs/rules/meta.md#meta-07" in found.stdout
