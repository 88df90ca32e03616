"""Legal classes that have ideas of their own about attributes, equality and truth."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

from kvconform.reference.file_store import FileStoreConnector


class TakesNoAttributes(FileStoreConnector):
    """Nobody else may set anything on it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            raise AttributeError(f"{name} is not to be set")
        super().__setattr__(name, value)


class PassesEverythingOn(KVConnectorBase_V1):
    """Whatever it is asked for is looked up on what does the work, never on itself."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        object.__setattr__(self, "_inner", FileStoreConnector(vllm_config, role, kv_cache_config))

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__") or name == "_inner":
            return object.__getattribute__(self, name)
        return getattr(object.__getattribute__(self, "_inner"), name)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        raise AssertionError("nobody gets here")

    def wait_for_layer_load(self, layer_name: str) -> None:
        raise AssertionError("nobody gets here")

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        raise AssertionError("nobody gets here")

    def wait_for_save(self) -> None:
        raise AssertionError("nobody gets here")

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        raise AssertionError("nobody gets here")

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        raise AssertionError("nobody gets here")

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        raise AssertionError("nobody gets here")


class HasHooksAsProperties(FileStoreConnector):
    """Its hooks are properties that return functions, and cannot be assigned."""

    @property
    def start_load_kv(self) -> Any:
        return super().start_load_kv

    @property
    def get_num_new_matched_tokens(self) -> Any:
        return super().get_num_new_matched_tokens


class EqualsNothing(FileStoreConnector):
    """It is false, unhashable, and can be neither compared nor printed."""

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        raise TypeError("not to be compared")

    def __repr__(self) -> str:
        raise TypeError("not to be printed")
