"""Connectors that rely on an order of calls that vLLM does not keep; each is the file store with one defect."""

from __future__ import annotations

from typing import Any

from vllm.forward_context import get_forward_context

from kvconform.reference._file_store_scheduler import SchedulerSide
from kvconform.reference.async_file_store import AsyncFileStoreConnector
from kvconform.reference.file_store import FileStoreConnector


class NoMetadataWhenIdle(FileStoreConnector):
    """build_connector_meta returns None for a step with nothing to do (R10)."""

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        metadata = super().build_connector_meta(scheduler_output)
        return metadata if scheduler_output.total_num_scheduled_tokens else None


class MatchIsAPromise(FileStoreConnector):
    """The load is planned when the match is answered, and never for a repeated question (bug 23, R1)."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._promised: set[str] = set()

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        answer = super().get_num_new_matched_tokens(request, num_computed_tokens)
        assert request.request_id not in self._promised, "a request is matched once"
        if answer[0]:
            self._promised.add(request.request_id)
        return answer


class AllocationMeansLoad(FileStoreConnector):
    """update_state_after_alloc takes for granted that something is to be loaded (bug 14, R5, R6)."""

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        assert num_external_tokens > 0, "allocated without a match"
        super().update_state_after_alloc(request, blocks, num_external_tokens)


class NeedsFinishForward(FileStoreConnector):
    """Saves only what finish_forward has announced, which model runner V1 never calls (R23)."""

    _announced = False

    def finish_forward(self) -> None:
        self._announced = True

    def wait_for_save(self) -> None:
        assert self._announced, "finish_forward comes first"
        self._announced = False
        super().wait_for_save()


class NeedsForwardContext(FileStoreConnector):
    """Saves inside the forward context only, which model runner V2 has left by then (R23)."""

    def wait_for_save(self) -> None:
        get_forward_context()
        super().wait_for_save()


class LoadsFirst(FileStoreConnector):
    """Per-step state is made in start_load_kv, which most steps call after the layer hooks (R23)."""

    _step: Any = None

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        self._step = self._step_metadata()
        super().start_load_kv(forward_context, **kwargs)

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        assert self._step is not None, "start_load_kv begins a step"

    def wait_for_save(self) -> None:
        self._step = None
        super().wait_for_save()


class NeedsAttentionToLoad(FileStoreConnector):
    """start_load_kv insists on attention metadata, which steps without tokens don't have (R23)."""

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        assert forward_context.attn_metadata is not None or kwargs.get("attn_metadata") is not None
        super().start_load_kv(forward_context, **kwargs)


class SkipsLoadWithoutAttention(FileStoreConnector):
    """start_load_kv does nothing when the forward context has no attention metadata (bug 10, vllm#43059, R23)."""

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        if forward_context.attn_metadata is not None:
            super().start_load_kv(forward_context, **kwargs)


class PreemptsFromBoundMetadata(FileStoreConnector):
    """handle_preemptions reads the bound metadata instead of its argument."""

    def handle_preemptions(self, kv_connector_metadata: Any) -> None:
        self._get_connector_metadata()


class NeedsAForward(FileStoreConnector):
    """wait_for_save counts on the layer hooks of its step (R23)."""

    _layers = 0

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        self._layers += 1

    def wait_for_save(self) -> None:
        layers, self._layers = self._layers, 0
        assert layers, "no layer was saved in this step"
        super().wait_for_save()


class RemovesUnguarded(FileStoreConnector):
    """The worker role pops a finished request that only a step would have made known to it (bug 74, R15)."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._known: dict[str, int] = {}

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        metadata = super().build_connector_meta(scheduler_output)
        object.__setattr__(metadata, "requests", list(scheduler_output.num_scheduled_tokens))
        return metadata

    def bind_connector_metadata(self, connector_metadata: Any) -> None:
        super().bind_connector_metadata(connector_metadata)
        self._known |= dict.fromkeys(connector_metadata.requests, 1)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[None, None]:
        for request in finished_req_ids:
            del self._known[request]
        return None, None


class AbortsBetweenStepsOnly(FileStoreConnector):
    """request_finished insists that the results of the last step have come in (R15)."""

    _in_flight = False

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        self._in_flight = bool(scheduler_output.total_num_scheduled_tokens)
        return super().build_connector_meta(scheduler_output)

    def update_connector_output(self, connector_output: Any) -> None:
        self._in_flight = False
        super().update_connector_output(connector_output)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        assert not (self._in_flight and request.status.name == "FINISHED_ABORTED"), "a step is under way"
        return super().request_finished(request, block_ids)


class NeverClears(FileStoreConnector):
    """clear_connector_metadata does nothing, so that the last step's metadata stays bound (bug 11, R10, R23)."""

    def clear_connector_metadata(self) -> None:
        pass


class CountsLayers(FileStoreConnector):
    """wait_for_save asserts that every layer of the model was handed over (R19)."""

    _layers = 0

    def register_kv_caches(self, kv_caches: Any) -> None:
        super().register_kv_caches(kv_caches)
        self._all = len(kv_caches)

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        self._layers += 1

    def wait_for_save(self) -> None:
        layers, self._layers = self._layers, 0
        assert layers in (0, self._all), f"{layers} of {self._all} layers were saved"
        super().wait_for_save()


class BindsOnce(FileStoreConnector):
    """bind_connector_metadata asserts that the step before was cleared."""

    def bind_connector_metadata(self, connector_metadata: Any) -> None:
        assert not self.has_connector_metadata(), "metadata is bound already"
        super().bind_connector_metadata(connector_metadata)


class WaitsForResults(FileStoreConnector):
    """build_connector_meta takes for granted that the last step was acknowledged (bugs 52 and 53, R9)."""

    _in_flight = False

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        assert not self._in_flight, "the results of the last step are missing"
        self._in_flight = bool(scheduler_output.total_num_scheduled_tokens)
        return super().build_connector_meta(scheduler_output)

    def update_connector_output(self, connector_output: Any) -> None:
        self._in_flight = False
        super().update_connector_output(connector_output)


class _ExpectsHashes(SchedulerSide):
    """Looks at as many hashes as blocks are filled by what is scheduled."""

    def _completed_blocks(self, tracked: Any, computed: int, scheduled: int) -> Any:
        filled = (computed + scheduled) // self._granularity.block_tokens
        assert self._granularity.hashed_blocks(tracked.request) >= filled, "a block without a hash"
        return super()._completed_blocks(tracked, computed, scheduled)


class ExpectsHashes(FileStoreConnector):
    """A full block has a hash, it thinks; with placeholders of tokens under way it has none yet (bug 53, R9)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._scheduler is not None:
            self._scheduler.__class__ = _ExpectsHashes


class WantsAMatchFirst(AsyncFileStoreConnector):
    """An allocation answers a match of the same step, it thinks (R6)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._asked: set[str] = set()

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        self._asked.add(request.request_id)
        return super().get_num_new_matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        self._asked.remove(request.request_id)
        super().update_state_after_alloc(request, blocks, num_external_tokens)


class KnowsWhoLoads(AsyncFileStoreConnector):
    """Looks up each received request among those that have not ended (R13, R15)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ending: str | None = None

    def request_finished(self, request: Any, block_ids: list[int]) -> Any:
        # What its load still has to say is expected from the next step on.
        self._ending = request.request_id
        return super().request_finished(request, block_ids)

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        self._ending = None
        return super().build_connector_meta(scheduler_output)

    def update_connector_output(self, connector_output: Any) -> None:
        if self._ending in (connector_output.finished_recving or ()):
            raise KeyError(self._ending)
        super().update_connector_output(connector_output)
