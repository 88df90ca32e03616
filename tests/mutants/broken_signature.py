"""Connectors with one defect each in how they are declared or built."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole
from vllm.distributed.kv_transfer.kv_transfer_state import get_kv_transfer_group

from kvconform.reference.file_store import FileStoreConnector


class TwoArguments(FileStoreConnector):
    """Written for a vLLM before 0.11: no KV cache configuration (contract SIG-01, SIG-02; R25)."""

    def __init__(self, vllm_config: Any, role: Any) -> None:
        super().__init__(vllm_config, role, None)


class RenamedArgument(FileStoreConnector):
    """The third parameter has a name of its own; the factory looks for kv_cache_config (R25)."""

    def __init__(self, vllm_config: Any, role: Any, cache: Any) -> None:
        super().__init__(vllm_config, role, cache)


class SwappedArguments(FileStoreConnector):
    """Role first, as in another framework."""

    def __init__(self, role: Any, vllm_config: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)


class RoleLast(FileStoreConnector):
    """The last two parameters in another order; called by position, the role takes the wrong one (bug 1, R24)."""

    def __init__(self, vllm_config: Any, kv_cache_config: Any = None, role: Any = None) -> None:
        super().__init__(vllm_config, role, kv_cache_config)


class KeywordOnly(FileStoreConnector):
    """Only tried with keyword arguments, in the vendor's own tests."""

    def __init__(self, vllm_config: Any, role: Any, *, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)


class NoBaseConstructor(FileStoreConnector):
    """Forgets super().__init__: nothing is noticed until the first property of the base class is read."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        self._worker = self._scheduler = None


class UsesBaseTooEarly(FileStoreConnector):
    """Reads a base attribute before super().__init__ has set it."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        self.path = self._kv_transfer_config.kv_connector_extra_config["path"]
        super().__init__(vllm_config, role, kv_cache_config)


class NoKVCacheConfigForBase(FileStoreConnector):
    """Passes the base class None, as was allowed until 0.20 (R25)."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        KVConnectorBase_V1.__init__(self, vllm_config, role, None)


class AlwaysWorker(FileStoreConnector):
    """Tells the base class the same role in both instances (R24)."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._role = KVConnectorRole.WORKER


class _Proxy:
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class DuckTyped(FileStoreConnector):
    """A tracing wrapper that is no connector itself: vLLM skips its layer hooks without a word."""

    def __new__(cls, vllm_config: Any, role: Any, kv_cache_config: Any) -> Any:
        return _Proxy(FileStoreConnector(vllm_config, role, kv_cache_config))


class LeavesAbstract(FileStoreConnector):
    """One of the seven methods is missing."""

    wait_for_save = KVConnectorBase_V1.wait_for_save


class LoadWithoutKeywords(FileStoreConnector):
    """Works with model runner V1, which passes no keywords, and kills the worker of V2."""

    def start_load_kv(self, forward_context: Any) -> None:
        super().start_load_kv(forward_context)


class SaveWithoutKeywords(FileStoreConnector):
    """The base class's signature without **kwargs."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any) -> None:
        super().save_kv_layer(layer_name, kv_layer, attn_metadata)


class MethodFlag(FileStoreConnector):
    """The @property is missing: the method object is always true."""

    def requires_kv_delivery(self) -> bool:
        return False


class IntegerFlag(FileStoreConnector):
    """Not a bool."""

    supports_divergent_local_hybrid_hits = 0


class LayoutOfInstance(FileStoreConnector):
    """No @classmethod: vLLM asks while it configures itself, where no instance exists."""

    def get_required_kvcache_layout(self, vllm_config: Any) -> str | None:
        return None


class StatsOfInstance(FileStoreConnector):
    """No @classmethod: the call on the class takes the data for self, and nothing is noticed."""

    def build_kv_connector_stats(self, data: dict[str, Any] | None = None) -> None:
        return None


class AnswersFromState(FileStoreConnector):
    """A class method that reads what the constructor leaves in the class."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        type(self).layerwise = False

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        return bool(cls.layerwise)


class WorkerNeedsScheduler(FileStoreConnector):
    """The worker role reads a manifest that the scheduler role's constructor writes."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        manifest = Path(self._kv_transfer_config.kv_connector_extra_config["path"]) / "manifest"
        if role is KVConnectorRole.SCHEDULER:
            manifest.parent.mkdir(parents=True, exist_ok=True)
            manifest.touch()
        elif not manifest.exists():
            raise RuntimeError("the scheduler has not announced itself")


class SchedulerNeedsWorker(FileStoreConnector):
    """The scheduler role takes its name from what a worker role left in the environment."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        if role is KVConnectorRole.WORKER:
            os.environ["KVCONFORM_TEST_WORKER"] = "worker"
        self.peer = os.environ["KVCONFORM_TEST_WORKER"]


class Heartbeat(FileStoreConnector):
    """A thread looks the connector up in the process-wide slot, and dies when a dummy run has emptied it."""

    def register_kv_caches(self, kv_caches: Any) -> None:
        super().register_kv_caches(kv_caches)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._stop.wait(0.001):
            try:
                get_kv_transfer_group()
            except AssertionError:
                return

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        if not self._thread.is_alive():
            raise ConnectionError("the store has dropped this client: no heartbeat")
        super().start_load_kv(forward_context, **kwargs)

    def shutdown(self) -> None:
        if hasattr(self, "_stop"):
            self._stop.set()
        super().shutdown()
