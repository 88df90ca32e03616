"""``kvconform inspect``: faults that the source shows, nobody accused of what it leaves open, nothing imported."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from kvconform.cli import main
from kvconform.errors import UsageError
from kvconform.inspection.findings import Inspection, inspect_source

TESTS = Path(__file__).resolve().parents[1]
ENTRIES: dict[str, list[dict[str, Any]]] = tomllib.loads((TESTS / "mutants/signature.toml").read_text())
MUTANTS = [e for e in ENTRIES["mutant"] if e["connector"].startswith("broken_signature:")]
REFERENCES = sorted(
    {e["connector"] for e in tomllib.loads((TESTS / "mutants/references.toml").read_text())["reference"]}
)

#: Mutants whose source breaks no rule on signatures, and why only running them shows what they break.
NOT_VISIBLE = {
    "NoBaseConstructor": "SIG-04 is about what the constructor does",
    "UsesBaseTooEarly": "SIG-04 is about what the constructor does",
    "NoKVCacheConfigForBase": "SIG-04 is about what the constructor does",
    "AlwaysWorker": "SIG-04 is about what the constructor does",
    "DuckTyped": "what __new__ returns is known when it has returned",
    "AnswersFromState": "a class method as it should be; what it reads is missing at run time",
    "WorkerNeedsScheduler": "SIG-13 is about the order in which roles are built",
    "SchedulerNeedsWorker": "SIG-13 is about the order in which roles are built",
    "Heartbeat": "SIG-15 is about a thread",
}
#: Broken, too, but seen in calls only.
SEEN_IN_CALLS = {"LoadWithoutKeywords": {"LIVE-01"}}

BASE = "from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1\n"
HOOKS = """
    def start_load_kv(self, forward_context, **kwargs): ...
    def wait_for_layer_load(self, layer_name): ...
    def save_kv_layer(self, layer_name, kv_layer, attn_metadata, **kwargs): ...
    def wait_for_save(self): ...
    def get_num_new_matched_tokens(self, request, num_computed_tokens): ...
    def update_state_after_alloc(self, request, blocks, num_external_tokens): ...
    def build_connector_meta(self, scheduler_output): ...
"""
COMPLETE = f"{BASE}class Complete(KVConnectorBase_V1):{HOOKS}"


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def look(source: str, name: str = "Mine") -> Inspection:
    Path("conn.py").write_text(source)
    return inspect_source(f"conn.py:{name}", Path.cwd())


def rules(found: Inspection) -> list[str]:
    return [finding.rule for finding in found.findings]


def run(*args: str) -> Result:
    return CliRunner().invoke(main, ["inspect", *args], prog_name="kvconform")


@pytest.mark.parametrize("spec", REFERENCES)
def test_a_reference_connector_gives_no_finding_no_hint_and_is_judged_completely(spec: str) -> None:
    found = inspect_source(spec, Path.cwd())
    assert (found.findings, found.hints, found.not_judged) == ((), (), ())
    assert dict(found.looked_at)["abstract methods"] >= 7
    assert dict(found.looked_at)["hooks"] >= 7


@pytest.mark.parametrize("entry", MUTANTS, ids=lambda entry: entry["connector"].partition(":")[2])
def test_a_mutant_gives_the_rules_that_its_source_breaks(entry: dict[str, Any]) -> None:
    file, name = entry["connector"].split(":")
    found = inspect_source(f"{TESTS}/mutants/{file}.py:{name}", Path.cwd())
    expected = set() if name in NOT_VISIBLE else set(entry["breaks"]) - SEEN_IN_CALLS.get(name, set())
    assert set(rules(found)) == expected
    assert all(finding.file.name == "broken_signature.py" and finding.line >= found.line for finding in found.findings)


def test_every_mutant_that_is_not_visible_is_one() -> None:
    names = {entry["connector"].partition(":")[2] for entry in MUTANTS}
    assert names >= NOT_VISIBLE.keys() | SEEN_IN_CALLS.keys()


@pytest.mark.parametrize("entry", ENTRIES["odd"], ids=lambda entry: entry["connector"].partition(":")[2])
def test_an_odd_signature_that_is_legal_gives_no_finding(entry: dict[str, Any]) -> None:
    file, name = entry["connector"].split(":")
    found = inspect_source(f"{TESTS}/odd/{file}.py:{name}", Path.cwd())
    assert (found.findings, found.hints) == ((), ())


def test_what_a_partial_method_takes_is_called_open() -> None:
    found = inspect_source(f"{TESTS}/odd/legal_signature.py:Cached", Path.cwd())
    assert any("partialmethod" in reason for reason in found.not_judged)


def test_a_class_under_a_condition_is_said_to_be_one() -> None:
    found = inspect_source(f"{TESTS}/mutants/defined_for_tests_only.py:DefinedForTestsOnly", Path.cwd())
    assert found.findings == ()
    assert "under a condition" in found.not_judged[0]


# -- single rules ------------------------------------------------------------------------------------------------------


def test_a_class_without_the_base_breaks_sig_05() -> None:
    found = look("class Other: ...\nclass Mine(Other):\n    def wait_for_save(self): ...\n")
    assert rules(found) == ["SIG-05"]
    assert (found.findings[0].line, found.findings[0].observed) == (
        2,
        "Mine derives from Other, and so not from KVConnectorBase_V1",
    )


def test_missing_methods_are_named_and_inherited_ones_are_not_missing() -> None:
    mixin = "class Saves:\n    def wait_for_save(self): ...\n    def save_kv_layer(self, *a, **k): ...\n"
    found = look(f"{BASE}{mixin}class Mine(Saves, KVConnectorBase_V1): ...\n")
    assert rules(found) == ["SIG-06"]
    assert "wait_for_save" not in found.findings[0].observed
    assert "build_connector_meta, get_num_new_matched_tokens, start_load_kv" in found.findings[0].observed


def test_a_mixin_behind_the_base_implements_nothing() -> None:
    mixin = "class Saves:\n    def wait_for_save(self): ...\n"
    found = look(f"{COMPLETE}{mixin}class Mine(KVConnectorBase_V1, Saves):{HOOKS.replace('wait_for_save', 'other')}")
    assert rules(found) == ["SIG-06"]
    assert found.findings[0].observed == "Mine leaves wait_for_save abstract"


def test_several_groups_need_their_own_method() -> None:
    marked = BASE.replace("\n", ", SupportsHMA\n")
    found = look(f"{marked}class Mine(KVConnectorBase_V1, SupportsHMA):{HOOKS}")
    assert "request_finished_all_groups" in found.findings[0].observed


def test_parameters_in_another_order_break_sig_07() -> None:
    method = "    def get_num_new_matched_tokens(self, num_computed_tokens, request): ...\n"
    found = look(f"{COMPLETE}class Mine(Complete):\n{method}")
    assert rules(found) == ["SIG-07"]
    assert "its parameter 1 is num_computed_tokens, where vLLM passes request" in found.findings[0].observed
    assert found.findings[0].line == len(COMPLETE.splitlines()) + 2


def test_a_hook_without_self_breaks_sig_07() -> None:
    found = look(f"{COMPLETE}class Mine(Complete):\n    def wait_for_save(): ...\n")
    assert rules(found) == ["SIG-07"]


def test_a_name_that_is_nearly_a_hooks_is_a_hint_and_no_finding() -> None:
    found = look(f"{COMPLETE}class Mine(Complete):\n    def get_finished_counts(self): ...\n")
    assert found.findings == ()
    assert ["did you mean the hook get_finished_count" in hint.sentence for hint in found.hints] == [True]


def test_a_coroutine_is_a_hint_and_no_finding() -> None:
    found = look(f"{COMPLETE}class Mine(Complete):\n    async def wait_for_save(self): ...\n")
    assert found.findings == ()
    assert "coroutine" in found.hints[0].sentence


def test_the_import_of_vllm_counts_and_not_what_stands_in_for_it() -> None:
    fallback = f"try:\n    {BASE}except ImportError:\n    KVConnectorBase_V1 = object\n"
    found = look(f"{fallback}class Mine(KVConnectorBase_V1): ...\n")
    assert (rules(found), found.not_judged) == (["SIG-06"], ())


def test_a_class_may_have_the_name_of_its_base() -> None:
    found = look(
        f"{COMPLETE}class Mine(Complete): ...\nclass Complete(Complete):\n    def wait_for_save(self, x): ...\n"
    )
    assert found.findings == ()
    assert rules(inspect_source("conn.py:Complete", Path.cwd())) == ["SIG-07"]


# -- what stays open ---------------------------------------------------------------------------------------------------

BROKEN = "    def wait_for_save(self, x): ...\n"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (f"{COMPLETE}class Mine(base()): ...\n", "base() is computed"),
        (f"{COMPLETE}import absent\nclass Mine(absent.Base): ...\n", "the source of absent.Base was not found"),
        (f"{COMPLETE}@change\nclass Mine(Complete):\n{BROKEN}", "@change of Mine may change the class"),
        (f"{COMPLETE}class Mine(Complete, metaclass=Other):\n{BROKEN}", "the metaclass Other of Mine"),
        (f"{COMPLETE}class M(Complete, metaclass=X): ...\nclass Mine(M):\n{BROKEN}", "the metaclass X of M"),
        (f"{COMPLETE}class Mine(Complete):\n    @change\n{BROKEN}", "wait_for_save is decorated with @change"),
        (f"{COMPLETE}class Mine(Complete):\n{BROKEN}Mine.wait_for_save = ok\n", "is assigned outside of the class"),
        (f"{COMPLETE}class Mine(Complete):\n{BROKEN}setattr(Mine, hook, ok)\n", "setattr(Mine, hook, ok)"),
        (f"{COMPLETE}class Mine(Complete):\n    if OLD:\n    {BROKEN}", "is defined under a condition"),
        (f"{COMPLETE}class Mine(Complete):\n{BROKEN}    def __getattribute__(self, n): ...\n", "__getattribute__"),
        (f"{COMPLETE}class Mine(Complete):\n    def __getattr__(self, n): ...\n", "what Mine.__getattr__ answers"),
        (
            f"{COMPLETE}class R(Complete):\n    def __init_subclass__(cls): ...\nclass Mine(R):\n{BROKEN}",
            "R.__init_sub",
        ),
        (f"{COMPLETE}Mine = make(Complete)\n", "the class itself: make(Complete) is computed"),
        (f"{COMPLETE}class Mine(Later): ...\nclass Later(Mine): ...\n", "nothing in conn.py binds Later"),
        (f"{COMPLETE}class Mine(Complete):\n    requires_kv_delivery = flag()\n", "requires_kv_delivery is flag()"),
    ],
)
def test_what_the_source_leaves_open_is_said_and_held_against_nobody(source: str, reason: str) -> None:
    found = look(source)
    assert found.findings == ()
    assert [text for text in found.not_judged if reason in text], found.not_judged


def test_beside_a_base_that_is_not_known_only_the_own_methods_are_judged() -> None:
    source = f"{COMPLETE}class Broken(Complete):\n{BROKEN}class Mine(unknown(), Broken):\n"
    assert look(f"{source}    pass\n").findings == ()
    assert rules(look(f"{source}    def take_events(self, x): ...\n")) == ["SIG-07"]


def test_a_flag_that_instances_set_themselves_is_not_accused() -> None:
    body = "    def __init__(self, vllm_config, role, kv_cache_config):\n        self.requires_kv_delivery = False\n"
    found = look(f"{COMPLETE}class Mine(Complete):\n    requires_kv_delivery = None\n{body}")
    assert found.findings == ()
    assert "instances may get a value of their own" in found.not_judged[0]


def test_modules_that_import_each_other_end() -> None:
    Path("other.py").write_text("from conn import Mine\nclass Base(Mine): ...\n")
    found = look("from other import Base\nclass Mine(Base): ...\n")
    assert found.findings == ()
    assert found.not_judged == ("Base's base Mine: Mine derives from itself",)


def test_star_imports_in_a_circle_end() -> None:
    Path("other.py").write_text(
        "from conn import *\ntry:\n    from conn import Base\nexcept ImportError:\n    Base = 1\n"
    )
    found = look("from other import *\nfrom other import Base\nclass Mine(Base): ...\n")
    assert found.findings == ()
    assert found.not_judged[0].startswith("Mine's base Base: ")


def test_a_star_import_and_a_name_of_the_same_module_agree() -> None:
    Path("other.py").write_text(f"{COMPLETE}class Base(Complete):\n{BROKEN}")
    found = look("from other import Base\nfrom other import *\nclass Mine(Base): ...\n")
    assert (rules(found), found.not_judged) == (["SIG-07"], ())


def test_what_only_a_run_as_a_script_does_changes_nothing() -> None:
    found = look(f'{COMPLETE}class Mine(Complete):\n{BROKEN}if __name__ == "__main__":\n    try_out(Mine)\n')
    assert (rules(found), found.not_judged) == (["SIG-07"], ())


# -- where things are --------------------------------------------------------------------------------------------------


def test_a_package_is_looked_up_without_running_any_of_it() -> None:
    Path("vendor/deep").mkdir(parents=True)
    Path("vendor/__init__.py").write_text("raise SystemExit('ran')\n")
    Path("vendor/deep/base.py").write_text(f"raise SystemExit('ran')\n{COMPLETE}")
    Path("vendor/deep/conn.py").write_text(f"from .base import *\nclass Mine(Complete):\n{BROKEN}")
    found = inspect_source("vendor.deep.conn:Mine", Path.cwd())
    assert rules(found) == ["SIG-07"]
    Path("vendor/api.py").write_text("from vendor.deep import conn\nMine = conn.Mine\n")
    again = inspect_source("vendor.api:Mine", Path.cwd())
    assert (again.findings, again.file) == (found.findings, found.file)
    # As a file of no package its relative import leads nowhere, for Python as well.
    alone = inspect_source("vendor/deep/conn.py:Mine", Path.cwd())
    assert "the source of .base.Complete was not found" in " ".join(alone.not_judged)
    Path("vendor/deep/__init__.py").touch()
    assert rules(inspect_source("vendor/deep/conn.py:Mine", Path.cwd())) == ["SIG-07"]


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("conn.py:Nine", "has no class 'Nine'; did you mean 'Mine'? More: kvconform explain SIG-10"),
        ("conn.py:make", "'make' is a function, but a connector is a class"),
        ("con.py:Mine", "did you mean 'conn.py'"),
        ("absent_vendor.conn:Mine", "neither absent_vendor.py nor absent_vendor/__init__.py was found on Python's"),
        ("vendor.absent:Mine", "there is no module 'vendor.absent': neither absent.py nor absent/__init__.py was"),
        ("conn.sub:Mine", "'conn' is a module, not a package, so it has no 'sub'"),
        ("Mine", "does not name a connector class"),
        ("broken.py:Mine", "line 2 is not valid Python"),
        ("twice.py:Mine", "line 1 is not valid Python: duplicate argument 'a'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_4(spec: str, sentence: str) -> None:
    Path("vendor").mkdir()
    Path("vendor/__init__.py").touch()
    Path("more.py").write_text("class Another: ...\n")
    Path("conn.py").write_text(f"from more import *\n{BASE}class Mine(KVConnectorBase_V1): ...\ndef make(): ...\n")
    Path("broken.py").write_text("class Mine:\n    def (self): ...\n")
    Path("twice.py").write_text("def f(a, a): ...\nclass Mine: ...\n")
    result = run(spec)
    assert result.exit_code == 4
    assert result.stdout == ""
    assert sentence in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_names_of_vllms_registry_are_read_in_its_factory(monkeypatch: pytest.MonkeyPatch) -> None:
    factory = Path("lib/vllm/distributed/kv_transfer/kv_connector/factory.py")
    factory.parent.mkdir(parents=True)
    Path("lib/vllm/__init__.py").touch()
    factory.write_text('KVConnectorFactory.register_connector(\n    "Own", "own_connector", "Mine"\n)\n')
    body = "    def __init__(self, a, b, c): ...\n"
    Path("lib/own_connector.py").write_text(f"{COMPLETE}class Mine(Complete):\n{body}")
    monkeypatch.syspath_prepend("lib")
    found = inspect_source("vllm:Own", Path.cwd())
    # The factory examines the parameters' names of out-of-tree classes only (SIG-02).
    assert (found.class_name, found.findings) == ("Mine", ())
    assert rules(inspect_source("own_connector:Mine", Path.cwd())) == ["SIG-02"]
    with pytest.raises(UsageError, match="vLLM registers no connector as 'Owm'; did you mean 'Own'"):
        inspect_source("vllm:Owm", Path.cwd())


# -- the command -------------------------------------------------------------------------------------------------------


def test_a_finding_is_shown_with_its_place_and_exit_code_1() -> None:
    look(f"{COMPLETE}class Mine(Complete):\n    @property\n    def get_required_kvcache_layout(self): ...\n{BROKEN}")
    result = run("conn.py:Mine")
    assert result.exit_code == 1
    line = len(COMPLETE.splitlines()) + 1
    for text in (
        f"class Mine, conn.py:{line}",
        "SIG-07 (MUST) broken: Overridden hooks keep the base class's parameter order",
        f"  Where: conn.py:{line + 3}",
        "  Expected: vLLM calls wait_for_save()",
        "  Observed: Mine.wait_for_save(x): missing a required argument: 'x'",
        "  More: kvconform explain SIG-07",
        "1 finding. Looked at: 7 abstract methods, 7 hooks, 1 class-level answer.",
        "it clears nothing",
        "  pytest --kvconform=conn.py:Mine",
    ):
        assert text in result.stdout
    assert not [shown for shown in result.stdout.splitlines() if shown != shown.rstrip()]


def test_nothing_found_is_exit_code_0_and_no_clearance() -> None:
    look(COMPLETE, "Complete")
    result = run("conn.py:Complete")
    assert result.exit_code == 0
    assert "0 findings." in result.stdout
    assert "it clears nothing" in result.stdout


def test_json_says_the_same() -> None:
    look(f"{COMPLETE}class Mine(Complete):\n{BROKEN}    def get_finishe(self): ...\n    take_events = made()\n")
    result = run("conn.py:Mine", "--json")
    assert result.exit_code == 1
    data = json.loads(result.stdout)
    line = len(COMPLETE.splitlines()) + 1
    assert data["class"] == {"name": "Mine", "file": "conn.py", "line": line}
    (finding,) = data["findings"]
    assert (finding["rule"], finding["level"], finding["file"], finding["line"]) == (
        "SIG-07",
        "MUST",
        "conn.py",
        line + 1,
    )
    assert finding["explain"] == "kvconform explain SIG-07"
    assert "get_finished" in data["hints"][0]["sentence"]
    assert data["not_judged"] == ["Mine.take_events is made()"]
    assert data["looked_at"] == {"abstract methods": 7, "hooks": 7}
    assert data["verdict_by"] == "pytest --kvconform=conn.py:Mine"


def test_neither_the_connector_nor_torch_nor_vllm_is_imported() -> None:
    code = (
        "import sys; from kvconform.cli import main\n"
        "code = main(['inspect', 'kvconform.reference.file_store:FileStoreConnector'], standalone_mode=False)\n"
        "bad = ('torch', 'vllm', 'kvconform.reference')\n"
        "print(code, [m for m in sys.modules if m in bad or m.startswith(tuple(f'{b}.' for b in bad))])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0 []"


def test_the_command_is_listed() -> None:
    assert "inspect" in main.list_commands(click.Context(main))
