"""Legal, if odd, ways to declare and build a connector: none of them may be accused."""

from __future__ import annotations

from functools import cached_property, partialmethod
from typing import Any

from kvconform.reference.file_store import FileStoreConnector


class ExtraKeywords(FileStoreConnector):
    """Further constructor parameters with defaults, and names of its own for the first two."""

    def __init__(self, config: Any, my_role: Any, kv_cache_config: Any, *, retries: int = 3) -> None:
        super().__init__(config, my_role, kv_cache_config)
        self.retries = retries


class StarArguments(FileStoreConnector):
    """Everything is passed on, in the constructor and in hooks; the flags are class attributes."""

    requires_kv_delivery = False
    supports_divergent_local_hybrid_hits = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def start_load_kv(self, *args: Any, **kwargs: Any) -> None:
        super().start_load_kv(*args, **kwargs)

    def get_num_new_matched_tokens(self, req: Any, computed: int, *_: Any) -> tuple[int | None, bool]:
        return super().get_num_new_matched_tokens(req, computed)


class Cached(StarArguments):
    """A subclass of a subclass; a cached flag, a partial method, static methods for the class-level answers.

    One parameter by position only, and the one behind it by its usual name.
    """

    @cached_property
    def requires_kv_delivery(self) -> bool:
        return self._kv_transfer_config.kv_connector_extra_config["path"] is None

    def _take(self, how: str) -> set[int]:
        assert how == "all"
        return super().get_block_ids_with_load_errors()

    get_block_ids_with_load_errors = partialmethod(_take, "all")

    def get_num_new_matched_tokens(self, request: Any, /, num_computed_tokens: int) -> tuple[int | None, bool]:
        return super().get_num_new_matched_tokens(request, num_computed_tokens)

    @staticmethod
    def get_required_kvcache_layout(vllm_config: Any) -> str | None:
        return None

    requires_piecewise_for_cudagraph = staticmethod(lambda extra_config: False)


class BackendIsDown(FileStoreConnector):
    """No defect: it cannot be set up here."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        raise ConnectionRefusedError("no metadata server at 127.0.0.1:1")
