"""What a connector finds when it is built: environment variables of its engine, and the model's layers."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from kvconform.config import RunConfig
from kvconform.conformance import Conformance
from kvconform.filling_in import engine_environment
from kvconform.kvcache.shape import KVCacheShape
from kvconform.scenario import composition, layouts, transfer
from kvconform.scenario.exploration import Refused, refusal_words
from kvconform.target import parse_target

CONNECTOR = """
import os
from vllm.v1.worker.utils import select_common_block_size
from kvconform.reference.file_store import FileStoreConnector


class Tells(FileStoreConnector):
    def __init__(self, vllm_config, role, kv_cache_config):
        layers = vllm_config.compilation_config.static_forward_context
        backends = [layer.get_attn_backend() for layer in layers.values()]
        size = select_common_block_size(vllm_config.cache_config.block_size, backends)
        raise ValueError(f"{os.environ['LISTEN']} for {sorted(layers)} in blocks of {size}")
"""


@pytest.fixture(scope="module")
def tells(vllm_cpu: object, tmp_path_factory: pytest.TempPathFactory) -> Conformance:
    tmp_path = tmp_path_factory.mktemp("connector")
    (tmp_path / "tells_what_is_there.py").write_text(CONNECTOR)
    target = parse_target(f"{tmp_path}/tells_what_is_there.py:Tells", tmp_path)
    config = RunConfig(engine_env={"LISTEN": "port {port}"}, kv_connector_extra_config={"path": "{dir}"})
    target.load()
    return Conformance(target, config)


def test_variables_and_layers_are_there_when_a_connector_is_built(tells: Conformance) -> None:
    with pytest.raises(Refused, match=r"port \d+ for \['model\.layers\.0\S*', 'model\.layers\.1\S*'\] in blocks of 16"):
        tells.examine(transfer.reload().examples[0])
    assert "LISTEN" not in os.environ


def test_layers_say_what_kernel_blocks_they_take(tells: Conformance) -> None:
    program = next(p for p in layouts.kernel_blocks().examples if p.options.shape == KVCacheShape(kernel_block_size=8))
    with pytest.raises(Refused, match="in blocks of 8"):
        tells.examine(program)


def test_two_connectors_in_an_engine_cannot_listen_on_the_one_port_of_its_variables(tells: Conformance) -> None:
    twins = composition.reload("first").examples[0]
    with pytest.raises(Refused, match="two connectors of this class would share it") as refused:
        tells.examine(twins)
    assert refusal_words(str(refused.value)) == str(refused.value), "it is not the connector that refuses"
    with pytest.raises(Refused, match=r"port \d+ for"):
        tells.examine(composition.beside_a_stranger().examples[0])
    given = replace(tells.config, engine_env={"LISTEN": "{dir}"})
    with pytest.raises(Refused, match=r"/\S+ for"):
        Conformance(tells.target, given).examine(twins)


def test_every_engine_gets_ports_of_its_own(tmp_path: Path) -> None:
    config = RunConfig(engine_env={"A": "{port}", "B": "{dir}/x", "C": "{port:a} {port:a}"})
    one, other = engine_environment(config, tmp_path), engine_environment(config, tmp_path)
    assert one["B"] == other["B"] == f"{tmp_path}/x"
    assert one["A"] != other["A"]
    assert len(set(one["C"].split())) == 1
