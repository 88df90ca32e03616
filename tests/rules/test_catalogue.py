"""The catalogue that ships: its form, its cross references, and that its evidence exists in the installed vLLM."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from kvconform.rules import CHAPTERS, Catalogue, load_catalogue
from kvconform.rules.model import Rule, release_key

CATALOGUE = load_catalogue()


@pytest.fixture
def catalogue() -> Catalogue:
    return CATALOGUE


def test_it_is_read_once() -> None:
    assert load_catalogue() is load_catalogue()


@pytest.mark.parametrize("chapter", ["SIG", "ROLE", "ORDER", "MATCH", "ALLOC", "META"])
def test_chapter_is_present(catalogue: Catalogue, chapter: str) -> None:
    found = catalogue.chapter(chapter)
    assert len(found.rules) >= 10
    assert any(rule.level == "MUST" for rule in found.rules)


def test_ids_are_unique_and_chapters_in_order(catalogue: Catalogue) -> None:
    ids = [rule.id for rule in catalogue]
    assert len(ids) == len(set(ids))
    positions = [CHAPTERS.index(chapter.id) for chapter in catalogue.chapters]
    assert positions == sorted(positions)


def test_see_also_leads_to_rules_of_the_catalogue(catalogue: Catalogue) -> None:
    present = {chapter.id for chapter in catalogue.chapters}
    dangling = {
        f"{rule.id} -> {other}"
        for rule in catalogue
        for other in rule.related
        if "-" in other and other not in catalogue and other.split("-")[0] in present
    }
    assert not dangling


def test_no_two_rules_say_the_same(catalogue: Catalogue) -> None:
    sentences = [rule.sentence for rule in catalogue]
    assert len(sentences) == len(set(sentences))


@pytest.mark.parametrize("rule", CATALOGUE.rules, ids=lambda rule: rule.id)
def test_rule_is_readable_without_the_kit(rule: Rule) -> None:
    texts = (rule.sentence, rule.consequence, rule.fix, rule.notes, rule.unchecked or "")
    for text in texts:
        assert "  " not in text
        assert "\n" not in text
        assert not re.search(r"/(tmp|home|root|work)/|\bTODO\b|\bprobe\b|\.md\b", text), text
    # One sentence: no full stop followed by a new one (releases such as 0.32.0 have no blank behind the stop).
    assert not re.search(r"[.!?] [A-Z]", rule.sentence), rule.sentence
    # Consequence and fix add something.
    assert len({rule.sentence, rule.consequence, rule.fix}) == 3


@pytest.mark.parametrize("rule", CATALOGUE.rules, ids=lambda rule: rule.id)
def test_evidence_belongs_to_the_releases_of_the_rule(rule: Rule) -> None:
    # A rule that has ended may instead point to the place in a newer release that ended it.
    assert rule.until is not None or any(rule.applies_to(evidence.release) for evidence in rule.evidence)


def test_some_rules_end_and_some_begin_with_a_release(catalogue: Catalogue) -> None:
    new = {rule.id for rule in catalogue.applicable("0.33.0")} - {rule.id for rule in catalogue.applicable("0.32.0")}
    assert {"ROLE-16", "ALLOC-10"} <= new
    assert "SIG-03" in {rule.id for rule in catalogue.applicable("0.20.2")}
    assert "SIG-03" not in {rule.id for rule in catalogue.applicable("0.21.0")}


def test_digest_is_the_same_in_another_process(catalogue: Catalogue) -> None:
    code = "from kvconform.rules import load_catalogue; print(load_catalogue().digest())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == catalogue.digest()


def test_neither_rules_nor_cli_import_torch_or_vllm() -> None:
    code = (
        "import sys, kvconform.rules, kvconform.cli; kvconform.rules.load_catalogue();"
        "print(sorted({'torch', 'vllm'} & {name.split('.')[0] for name in sys.modules}))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == "[]"


def _installed_vllm() -> tuple[Path, str] | None:
    """Folder above the vllm package, and its release; found without importing it."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        return None
    try:
        release = importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(spec.origin).parent.parent, release


@cache
def _symbols(file: Path) -> frozenset[str]:
    """Dotted names that a module defines: classes, functions, methods, fields, constants; also inside if and try."""
    names: set[str] = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            match node:
                case ast.ClassDef():
                    names.add(prefix + node.name)
                    visit(node.body, f"{prefix}{node.name}.")
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    names.add(prefix + node.name)
                case ast.Assign():
                    names.update(prefix + target.id for target in node.targets if isinstance(target, ast.Name))
                case ast.AnnAssign(target=ast.Name()):
                    names.add(prefix + node.target.id)
                case ast.If():
                    visit(node.body + node.orelse, prefix)
                case ast.Try():
                    visit(node.body + node.orelse + [s for handler in node.handlers for s in handler.body], prefix)

    visit(ast.parse(file.read_text(encoding="utf-8")).body, "")
    return frozenset(names)


def test_the_symbol_reader_knows_what_a_module_defines(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        "LIMIT = 1\nclass A:\n    x: int\n    def f(self): ...\n"
        "try:\n    def g(): ...\nexcept ImportError:\n    h = 2\n"
    )
    assert _symbols(file) == {"LIMIT", "A", "A.x", "A.f", "g", "h"}


def test_evidence_exists_in_the_installed_vllm(catalogue: Catalogue) -> None:
    installed = _installed_vllm()
    if installed is None:
        pytest.skip("vLLM is not installed, so there is no source to compare with")
    root, release = installed
    entries = [
        (rule.id, evidence)
        for rule in catalogue
        for evidence in rule.evidence
        if release_key(evidence.release) == release_key(release)
    ]
    missing = [
        f"{rule_id}: {evidence.file}: {evidence.symbol}"
        for rule_id, evidence in entries
        if not (root / evidence.file).is_file() or evidence.symbol not in _symbols(root / evidence.file)
    ]
    assert not missing, "\n".join(missing)
    if release_key(release) == release_key("0.32.0"):
        # The release that most evidence was read in; a comparison of nothing would prove nothing.
        assert len(entries) > len(catalogue.rules)
