"""Connectors that look for their options in the wrong place."""

from __future__ import annotations

from typing import Any

from kvconform.reference.file_store import FileStoreConnector


class ReadsAnAttributeOfItsOwn(FileStoreConnector):
    """R24: an option as a field of KVTransferConfig, which has no such field."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self.path = vllm_config.kv_transfer_config.store_path


class ReadsARemovedField(FileStoreConnector):
    """R25: kv_buffer_size was a field up to 0.31.0."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self.buffer_bytes = vllm_config.kv_transfer_config.kv_buffer_size
