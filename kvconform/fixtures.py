"""Fixtures of the suites and of vendors' own tests. Registered only when the kit is active; heavy imports are inside.

The docstrings are what ``pytest --kvconform=SPEC --fixtures`` shows; docs/fixtures.md has examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from kvconform.config import RunConfig
from kvconform.errors import UsageError
from kvconform.target import Target
from kvconform.target_fixtures import Rooms

if TYPE_CHECKING:
    from kvconform.conformance import Conformance
    from kvconform.testing import (
        ConnectorFactory,
        EngineFactory,
        KVCacheConfigFactory,
        KVTensorsFactory,
        RequestFactory,
        SharedStore,
        VllmConfigFactory,
    )


@pytest.fixture(scope="session")
def conformance(
    request: pytest.FixtureRequest, kvconform_target: Target, kvconform_config: RunConfig, _rooms: Rooms
) -> Iterator[Conformance]:
    """The connector under test, ready to be tried: plays programs, examines histories, settles rules.

    ``conformance.play(program)`` runs a kvconform.testing.Program on fresh engines and a fresh store and returns the
    History. ``conformance.examine(program)`` also judges it: an Examination with ``findings``, empty if no rule is
    broken. It raises Refused, with the connector's words, if the engine does not start.
    """
    from kvconform.cases.writer import CaseWriter
    from kvconform.conformance import Conformance

    room = _rooms.room(kvconform_target)
    yield Conformance(kvconform_target, kvconform_config, room, cases=CaseWriter.of(request.config))
    room.close()


@pytest.fixture(scope="session")
def _vllm_is_ready(kvconform_config: RunConfig) -> None:
    """vLLM, or its stand-in, imported on the platform of the run, with a world of one rank."""
    from kvconform.api import prepare, standin_in_place

    if kvconform_config.resolved_engine == "embedded" and not standin_in_place():
        pytest.fail(
            "the fixtures of the engine 'embedded' cannot be used in a process that has imported vLLM before the kit "
            "started: import it later, or run with --kvconform-engine=vllm",
            pytrace=False,
        )
    from kvconform.engine.vllm_engine.configuration import ensure_parallel_state

    try:
        prepare(kvconform_config.resolved_device)
    except UsageError as error:
        pytest.fail(str(error), pytrace=False)
    ensure_parallel_state()


@pytest.fixture
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> SharedStore:
    """What ``{dir}``, ``{port}`` and ``{port:NAME}`` of the configuration stand for in this test.

    ``directory`` is a Path, empty at first; ``port(NAME)`` is a free TCP port, the same one during the test. All
    connectors and engines of the test share them.
    """
    from kvconform.testing import SharedStore

    return SharedStore(tmp_path_factory.mktemp("store"))


@pytest.fixture
def make_vllm_config(
    kvconform_target: Target, kvconform_config: RunConfig, shared_store: SharedStore, _vllm_is_ready: None
) -> VllmConfigFactory:
    """Factory: a fresh VllmConfig with the connector under test and its extra config, placeholders replaced.

    ``make_vllm_config(options=EngineOptions(), *, connector=True, kv_role=None, kv_connector_extra_config=None,
    engine_id=None)``. ``connector=False`` leaves kv_transfer_config out; the others replace what the run says.

    Raises ValueError for an unknown role or placeholder, and whatever vLLM raises for a class that it refuses.
    """
    from kvconform.testing import VllmConfigFactory

    return VllmConfigFactory(kvconform_target, kvconform_config, shared_store)


@pytest.fixture
def make_test_kv_cache_config(make_vllm_config: VllmConfigFactory) -> KVCacheConfigFactory:
    """Factory: a complete KV cache configuration, planned by vLLM's own functions.

    ``make_test_kv_cache_config()`` is 2 layers of 2 heads x 8 float16, 32 blocks of 16 tokens, layout LBNHC. Any other
    cache is given in one of four ways: by words (``layers``, ``kind``, ``block_size``, ``num_kv_heads``, ``head_size``,
    ``head_size_v``, ``dtype``, ``sliding_window``, ``page_padding`` in bytes, ``layout``, ``num_blocks`` with the null
    block, ``kernel_block_size``), as a KVCacheShape, as ``specs={layer name: KVCacheSpec}``, or as
    ``groups=[([layer name, ...], KVCacheSpec), ...]`` that are taken as they are. ``vllm_config`` replaces a fresh one.

    Returns a frozen KVCachePlan: ``worker`` and ``scheduler`` (two KVCacheConfig, the second a deep copy, with
    kv_cache_tensors, kv_cache_layout, hash_block_size and cache_hit_alignment_tokens as the engine core fills them),
    ``vllm_config``, and ``layout``, ``num_blocks``, ``groups``, ``block_sizes``, ``specs``, ``kernel_block_size``.

    Raises ShapeError (a ValueError) for arguments that contradict and for a cache that vLLM cannot plan or allocate.
    """
    from kvconform.testing import KVCacheConfigFactory

    return KVCacheConfigFactory(make_vllm_config)


@pytest.fixture
def make_connector(make_test_kv_cache_config: KVCacheConfigFactory) -> Iterator[ConnectorFactory]:
    """Factory: the connector under test for a role, made by vLLM's KVConnectorFactory.

    ``make_connector("worker", cache)`` and ``make_connector("scheduler", cache)``, in this order if both are made for
    one cache, as an engine does. ``cache`` is a KVCachePlan; without it, all calls of a test share a default one.
    Connectors that the test did not shut down are shut down after it, workers first.

    Raises ValueError for an unknown role or the wrong order, and whatever the factory or the constructor raises.
    """
    from kvconform.testing import ConnectorFactory

    factory = ConnectorFactory(make_test_kv_cache_config)
    yield factory
    factory.close()


@pytest.fixture
def make_request(make_connector: ConnectorFactory) -> RequestFactory:
    """Factory: a vLLM Request with block hashes, for calls of the scheduler role.

    ``make_request(RequestSpec("r1", ((7, 40),)), cache)``: id r1, a prompt of 40 tokens drawn from seed 7. Prompts
    with equal leading segments share a prefix. Without ``cache`` it is that of ``make_connector``.
    """
    from kvconform.testing import RequestFactory

    return RequestFactory(make_connector)


@pytest.fixture
def make_kv_tensors(make_connector: ConnectorFactory, kvconform_config: RunConfig) -> KVTensorsFactory:
    """Factory: KV tensors from vLLM's own allocation, on the device of the run, for ``register_kv_caches``.

    ``make_kv_tensors(cache, fill="poison")`` returns KVTensors, a dict layer name -> [B, H, N, C] view: B blocks
    (rows of kernel_block_size tokens where blocks are split), H head slots, N tokens, C elements of K and V or of an
    MLA latent. ``fill`` is "poison" (every slot different) or "zeros". Without ``cache`` it is that of make_connector.

    ``tensors.write(request, block_ids, first=0, last=None)`` stores what a model would compute for a RequestSpec;
    ``tensors.differences(request, block_ids, first=0, last=None)`` says what does not hold it, and what is there
    instead; ``tensors.poison(block_ids)`` overwrites blocks. Positions are tokens of the request.

    Raises ShapeError for block tables that are too short, unknown block ids, and layers other than attention.
    """
    from kvconform.testing import KVTensorsFactory

    return KVTensorsFactory(make_connector, kvconform_config.resolved_device)


@pytest.fixture
def make_engine(make_vllm_config: VllmConfigFactory) -> Iterator[EngineFactory]:
    """Factory: a running engine, vLLM's scheduler and cache manager with the connector under test and no model.

    ``make_engine(EngineOptions(...))`` or ``make_engine(max_num_batched_tokens=32, ...)`` with the fields of
    EngineOptions. Engines have ``add(RequestSpec)``, ``abort(id)``, ``step()``, ``drain()``, ``reset_prefix_cache()``,
    ``audit()``, ``shutdown()``, and ``history``, which all engines of a test share, as they share the store;
    kvconform.testing.examine(history) judges it. Engines that the test did not shut down are shut down after it.

    Raises EngineStopped if vLLM or the connector refuses to start, and from an engine's methods once it is dead.
    """
    from kvconform.testing import EngineFactory

    factory = EngineFactory(make_vllm_config)
    yield factory
    factory.close()
