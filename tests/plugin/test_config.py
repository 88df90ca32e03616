"""The run configuration: who wins, what is refused, and placeholders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvconform.config import CAPABILITIES, KEYS, RunConfig, read_run_config
from kvconform.errors import UsageError
from kvconform.placeholders import expand, placeholders
from kvconform.presets import find_preset, load_presets
from kvconform.target import parse_target

FULL = """
connector = "my.module:MyConnector"
kv_role = "kv_producer"
capabilities = ["sync-load", "lossy"]
engine = "vllm"
device = "cpu"
budget = "full"
seed = 7
timeout = 9.5
peer_timeout = 3.0
transfer_timeout = 4.5
store_delay = 0.5
chunk_size = 256
fresh_model_names = true
baseline = "known.toml"
faults = "my.testing:Faults"

[kv_connector_extra_config]
path = "{dir}/store"
port = "{port}"
nested = { list = [1, 2.5, true, "{port:b}"], text = "{{x}}" }

[env]
STORE = "{not a placeholder} {{dir}}"

[engine_env]
LISTEN = "{port:listener}"

[producer_params]
id = "{transfer}"

[consumer_params]
at = ["{producer}", "{producer:LISTEN}", 1]
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_every_key_is_read(tmp_path: Path) -> None:
    config = read_run_config({}, write(tmp_path / "kit.toml", FULL), None)
    assert config.connector == ("my.module:MyConnector",)
    assert config.kv_role == "kv_producer"
    assert config.capabilities == ("sync-load", "lossy")
    assert (config.engine, config.device, config.budget, config.seed, config.timeout) == ("vllm", "cpu", "full", 7, 9.5)
    assert config.kv_connector_extra_config["nested"] == {"list": [1, 2.5, True, "{port:b}"], "text": "{{x}}"}
    assert config.env == {"STORE": "{not a placeholder} {{dir}}"}
    assert config.engine_env == {"LISTEN": "{port:listener}"}
    assert config.transfer_timeout == 4.5
    assert config.store_delay == 0.5
    assert config.chunk_size == 256
    assert config.fresh_model_names is True
    assert config.producer_params == {"id": "{transfer}"}
    assert config.consumer_params == {"at": ["{producer}", "{producer:LISTEN}", 1]}
    assert config.faults == "my.testing:Faults"
    assert config.explicit == set(KEYS)
    assert config.baseline == str(tmp_path / "known.toml")
    assert config.connector_directory == tmp_path


def test_the_strongest_source_wins_key_by_key(tmp_path: Path) -> None:
    pyproject = write(
        tmp_path / "pyproject.toml",
        "[project]\nname='x'\n[tool.kvconform]\nconnector='weak:C'\nbudget='full'\nseed=1\nkv_role='kv_consumer'\n"
        "[tool.kvconform.kv_connector_extra_config]\na=1\nb=1",
    )
    file = write(tmp_path / "kit.toml", "connector='file:C'\nseed=2\n[kv_connector_extra_config]\na=2")
    config = read_run_config({"connector": ["line:C"], "seed": 3, "budget": None}, file, pyproject)
    assert config.connector == ("line:C",)
    assert config.seed == 3
    assert config.kv_connector_extra_config == {"a": 2}, "a table is taken whole"
    assert config.budget == "full"
    assert config.kv_role == "kv_consumer"
    assert config.connector_directory is None


def test_the_preset_lies_under_what_the_user_gave(tmp_path: Path) -> None:
    target = parse_target("vllm:ExampleConnector", tmp_path)
    plain = RunConfig().for_target(target)
    assert plain.kv_connector_extra_config == {"shared_storage_path": "{dir}"}
    assert plain.preset == "vllm:ExampleConnector"
    given_by_user = RunConfig(
        kv_connector_extra_config={"shared_storage_path": "/here"}, explicit=frozenset({"kv_connector_extra_config"})
    )
    assert given_by_user.for_target(target) == given_by_user
    assert RunConfig().for_target(parse_target("vllm:P2pNcclConnector", tmp_path)).preset is None


def test_values_given_to_the_constructor_are_not_the_presets(tmp_path: Path) -> None:
    target = parse_target("vllm:ExampleConnector", tmp_path)
    given = RunConfig(kv_connector_extra_config={"shared_storage_path": "/here"})
    assert given.for_target(target) == given


def test_time_outs_of_a_preset_are_those_of_its_own_settings(tmp_path: Path) -> None:
    target = parse_target("kvconform.reference.producer_consumer:ProducerConsumerConnector", tmp_path)
    assert RunConfig().for_target(target).peer_timeout == 3.0
    longer = RunConfig(kv_connector_extra_config={"lease_seconds": 60.0})
    assert longer.for_target(target).peer_timeout == 0.0
    named = RunConfig(kv_connector_extra_config={"lease_seconds": 60.0}, peer_timeout=61.0)
    assert named.for_target(target).peer_timeout == 61.0


def test_every_preset_is_valid_and_belongs_to_a_target(tmp_path: Path) -> None:
    assert {"vllm:ExampleConnector", "vllm:MultiConnector", "vllm:DecodeBenchConnector"} <= set(load_presets())
    for target_id, settings in load_presets().items():
        directory, _, name = target_id.rpartition(":")
        assert directory, target_id
        assert name.isidentifier(), target_id
        assert set(settings) <= set(KEYS), target_id
    multi = find_preset(parse_target("vllm:MultiConnector", tmp_path))["kv_connector_extra_config"]["connectors"]
    assert [child["kv_connector_extra_config"]["path"] for child in multi] == ["{dir}/a", "{dir}/b"]
    assert RunConfig().for_target(parse_target("vllm:DecodeBenchConnector", tmp_path)).capabilities == ("dummy-fill",)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("kv_rol = 'kv_both'", "unknown key 'kv_rol'; did you mean 'kv_role'? the keys are connector, kv_role,"),
        ("completely = 1", "unknown key 'completely'; the keys are connector,"),
        ("kv_role = 'both'", "kv_role = 'both', but expected is one of kv_both, kv_producer, kv_consumer."),
        ("engine = 'vlm'", "engine = 'vlm', but expected is one of auto, vllm, embedded."),
        ("device = 'gpu'", "device = 'gpu', but expected is one of auto, cpu, cuda."),
        ("budget = 3", "budget = 3, but expected is one of quick, full."),
        ("seed = 'x'", "seed = 'x', but expected is a whole number"),
        ("seed = true", "seed = True, but expected is a whole number"),
        ("seed = -1", "seed = -1, but expected is a whole number"),
        ("timeout = 0", "timeout = 0, but expected is a number of seconds above 0"),
        (
            "transfer_timeout = 31",
            "transfer_timeout = 31 s, but a scenario is ended after timeout = 60 s: timeout must",
        ),
        ("transfer_timeout = 'x'", "transfer_timeout = 'x', but expected is a number of seconds above 0"),
        ("store_delay = 6.5", "store_delay = 6.5 s, which a scenario waits up to seven times, but it is ended after"),
        ("store_delay = 0.5\ntimeout = 4", "timeout = 4 s: timeout must be at least ten times as long"),
        ("store_delay = -0.1", "store_delay = -0.1, but expected is a number of seconds, 0 or more"),
        ("store_delay = inf", "store_delay = inf, but expected is a number of seconds, 0 or more"),
        ("chunk_size = 100", "chunk_size = 100, but expected is a number of tokens: a multiple of 16, 4096 at most"),
        ("chunk_size = 8192", "chunk_size = 8192, but expected is a number of tokens: a multiple of 16, 4096 at most"),
        ("chunk_size = 0", "chunk_size = 0, but expected is a number of tokens: a multiple of 16, 4096 at most"),
        ("chunk_size = '256'", "chunk_size = '256', but expected is a number of tokens"),
        ("fresh_model_names = 1", "fresh_model_names = 1, but expected is true or false"),
        ("chunk_size = true", "chunk_size = True, but expected is a number of tokens"),
        ("store_delay = true", "store_delay = True, but expected is a number of seconds, 0 or more"),
        ("producer_params = 'x'", "producer_params = 'x', but expected is a table, as a router puts it into kv_tra"),
        (
            "consumer_params = { at = ['{dir}'] }",
            "consumer_params.at[0] = '{dir}' has the unknown placeholder '{dir}': expected are {transfer}, {producer}",
        ),
        (
            "consumer_params = { at = '{producer:PORT}' }",
            "consumer_params asks for {producer:PORT}, but engine_env sets no PORT: a producer's variable has to be",
        ),
        ("engine_env = { PORT = 1 }", 'engine_env.PORT = 1, but expected is a string: write PORT = "1".'),
        ("engine_env = { PORT = '{prt}' }", "engine_env.PORT = '{prt}' has the unknown placeholder '{prt}'"),
        ("timeout = true", "timeout = True, but expected is a number of seconds"),
        ("connector = 3", "connector = 3, but expected is a string such as"),
        ("connector = ['a:B', '']", "but expected is a string such as"),
        ("capabilities = 'sync_load'", "unknown capability 'sync_load'; did you mean 'sync-load'?"),
        ("capabilities = ['quantum']", "unknown capability 'quantum'; the capabilities are base, sync-load,"),
        ("capabilities = [1]", "capabilities = [1], but expected is a list of names"),
        ("env = ['a']", "env = ['a'], but expected is a table"),
        ("env = { PORT = 1 }", 'env.PORT = 1, but expected is a string: write PORT = "1".'),
        ("env = { STORE = '{dir}/x' }", "env.STORE = '{dir}/x' has a placeholder, but the environment is set once"),
        ("kv_connector_extra_config = 1", "kv_connector_extra_config = 1, but expected is a table"),
        (
            "kv_connector_extra_config = {a='{dri}'}",
            "kv_connector_extra_config.a = '{dri}' has the unknown placeholder",
        ),
        (
            "kv_connector_extra_config = {a=[{b='{port:}'}]}",
            "kv_connector_extra_config.a[0].b = '{port:}' has the unknown",
        ),
        ("kv_connector_extra_config = {a='}'}", "has a single '}': write it twice"),
        ("kv_connector_extra_config = {a='{\"x\": 1}'}", "has the unknown placeholder"),
        ("kv_role = ", "is not valid TOML"),
    ],
)
def test_a_wrong_file_gets_one_sentence_that_names_the_place(tmp_path: Path, text: str, sentence: str) -> None:
    file = write(tmp_path / "kit.toml", text)
    with pytest.raises(UsageError) as error:
        read_run_config({}, file, None)
    assert sentence in str(error.value)
    assert str(file) in str(error.value)
    assert str(error.value).endswith(".")


def test_a_missing_file_and_a_wrong_pyproject_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        read_run_config({}, tmp_path / "missing.toml", None)
    pyproject = write(tmp_path / "pyproject.toml", "[tool.kvconform]\nbuget = 'full'")
    with pytest.raises(UsageError, match=r"\[tool.kvconform\] of .*: unknown key 'buget'; did you mean 'budget'"):
        read_run_config({}, None, pyproject)
    assert read_run_config({}, None, tmp_path / "none.toml") == RunConfig()


def test_all_capabilities_of_the_rules_can_be_declared() -> None:
    from kvconform.rules import load_catalogue

    assert {rule.capability for rule in load_catalogue()} <= set(CAPABILITIES)


SUBSTITUTIONS: dict[str, str | int] = {"dir": "/scenario", "port": 4000, "port:b": 4001}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("{dir}", "/scenario"),
        ("{dir}/a", "/scenario/a"),
        ("{port}", 4000),
        ("tcp://host:{port:b}", "tcp://host:4001"),
        ("{port}{port}", "40004000"),
        ("{{dir}}", "{dir}"),
        ("{{", "{"),
        ("{{{dir}}}", "{/scenario}"),
        ({"{dir}": ["{port}", 1, 2.5, None, True]}, {"{dir}": [4000, 1, 2.5, None, True]}),
        ("", ""),
    ],
)
def test_placeholders_are_expanded(value: Any, expected: Any) -> None:
    result = expand(value, SUBSTITUTIONS)
    assert result == expected
    assert type(result) is type(expected)


def test_placeholders_are_listed() -> None:
    assert placeholders({"a": ["{dir}/{port:b}", {"b": "{port}"}], "c": "{{x}}", "d": 1}) == {"dir", "port", "port:b"}


toml_values = st.recursive(
    st.text() | st.integers() | st.booleans() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def escape(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("{", "{{").replace("}", "}}")
    if isinstance(value, dict):
        return {key: escape(entry) for key, entry in value.items()}
    return [escape(entry) for entry in value] if isinstance(value, list) else value


@given(toml_values)
def test_escaped_text_comes_out_as_it_was_meant(value: Any) -> None:
    assert expand(escape(value), {}) == value
    assert placeholders(escape(value)) == frozenset()
