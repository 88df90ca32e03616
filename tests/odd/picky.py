"""Legal: a store that belongs to one set-up, and says so."""

from __future__ import annotations

from typing import Any

from kvconform.reference._kv_identity import describe
from kvconform.reference.file_store import FileStoreConnector


class OneStoreOneSetUp(FileStoreConnector):
    """Refuses to start on a directory that an engine of another set-up has used."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        if self._scheduler is not None:
            owner = self._scheduler._store.root / "owner"
            digest = describe(vllm_config, kv_cache_config).digest
            if owner.exists() and owner.read_text() != digest:
                raise ValueError(f"{owner.parent} belongs to an engine of another set-up")
            owner.parent.mkdir(parents=True, exist_ok=True)
            owner.write_text(digest)


class NeverForRequestsOfTheirOwn(FileStoreConnector):
    """Serves plain requests only: none with a LoRA adapter, a salt, multimodal items or embeddings."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        answer = super().get_num_new_matched_tokens(request, num_computed_tokens)
        return answer if _is_plain(request) else (0, False)


def _is_plain(request: Any) -> bool:
    own = (request.lora_request, request.cache_salt, request.prompt_embeds)
    return not any(each is not None for each in own) and not request.mm_features
