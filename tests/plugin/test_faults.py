"""The key ``faults``: what is refused at once, what when it is imported, and what becomes of a class that raises."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvconform.config import read_run_config
from kvconform.errors import UsageError
from kvconform.faults import FAULTS, find_faults, load_faults

GOOD = """
    class Faults:
        faults = ["missing", "silent"]
        def __init__(self, setting): self.setting = setting
        def damage(self, fault, every): return 1
        def mend(self): pass
    class Named(Faults): faults = "missing"
    class Unknown(Faults): faults = ["missing", "slow"]
    class Empty(Faults): faults = ()
    class None_(Faults): faults = None
    class NoMend: faults = ["missing"]; damage = print
    class NoBoth: faults = ["missing"]
    def function(setting): pass
    """


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from textwrap import dedent

    (tmp_path / "kvf_faults.py").write_text(dedent(GOOD))
    (tmp_path / "kvf_broken.py").write_text("import nothing_of_that_name\nclass Faults: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_class_of_the_right_shape_is_loaded_by_module_and_by_file(folder: Path) -> None:
    for spec in ("kvf_faults:Faults", "kvf_faults.py:Faults"):
        assert set(load_faults(spec, folder)(None).faults) < set(FAULTS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            "vllm:NixlConnector",
            "^faults = 'vllm:NixlConnector' does not name a class: expected package.module",
        ),
        ("kvf_faults", "^faults = 'kvf_faults' does not name a class: expected"),
        ("kvf_fault:Faults", "^faults = 'kvf_fault:Faults': there is no module 'kvf_fault'"),
        ("kvf_faults:Fault", "^faults = 'kvf_faults:Fault': .*has no class 'Fault'; did you mean 'Faults'"),
    ],
)
def test_a_typing_error_is_found_without_an_import(folder: Path, spec: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        find_faults(spec, folder)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("kvf_broken:Faults", "it cannot be imported: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("kvf_faults:function", "function is no class; expected is a class with 'faults', 'damage' and 'mend'"),
        ("kvf_faults:NoMend", "NoMend has no mend; expected"),
        ("kvf_faults:NoBoth", "NoBoth has no damage and no mend; expected"),
        ("kvf_faults:Named", "Named.faults is 'missing', but expected is a list of one or more of missing, truncated"),
        ("kvf_faults:Unknown", r"Unknown.faults is \['missing', 'slow'\], but expected is"),
        ("kvf_faults:Empty", r"Empty.faults is \(\), but"),
        ("kvf_faults:None_", "None_.faults is None, but"),
    ],
)
def test_a_class_of_another_shape_is_refused(folder: Path, name: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=f"^faults = '{name}': .*{sentence}"):
        load_faults(name, folder)


def test_a_file_is_relative_to_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/kit.toml").write_text('connector = "x:Y"\nfaults = "../mine/faults.py:Faults"\n')
    assert read_run_config({}, tmp_path / "sub/kit.toml", None).faults == f"{tmp_path}/mine/faults.py:Faults"
    (tmp_path / "sub/kit.toml").write_text('connector = "x:Y"\nfaults = "mine.faults:Faults"\n')
    assert read_run_config({}, tmp_path / "sub/kit.toml", None).faults == "mine.faults:Faults"


@pytest.mark.parametrize("value", ["7", '""', '["a:B"]'])
def test_another_value_than_a_name_is_refused(tmp_path: Path, value: str) -> None:
    (tmp_path / "kit.toml").write_text(f'connector = "x:Y"\nfaults = {value}\n')
    with pytest.raises(UsageError, match=r"faults = .*, but expected is a string such as"):
        read_run_config({}, tmp_path / "kit.toml", None)
