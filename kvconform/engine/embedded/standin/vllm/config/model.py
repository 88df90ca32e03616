"""The model on paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from vllm.config._tables import fields_of


class _HFConfig:
    """A model's config.json, by attribute."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("_values", {})
        if name in values:
            return values[name]
        raise AttributeError(f"the model's config.json has no {name!r}")

    def to_dict(self) -> dict[str, Any]:
        """All of it."""
        return dict(self._values)


class ModelConfig(fields_of("ModelConfig")):  # type: ignore[misc]
    """A folder with nothing but a config.json is enough."""

    dtype: Any

    def __post_init__(self) -> None:
        values = json.loads((Path(self.model) / "config.json").read_text()) | dict(self.hf_overrides)
        self.hf_config = self.hf_text_config = _HFConfig(values)
        self.tokenizer = self.served_model_name = self.model
        self.original_max_model_len = self.max_model_len
        if isinstance(self.dtype, str):
            wanted = values["torch_dtype"] if self.dtype == "auto" else self.dtype
            self.dtype = getattr(torch, wanted)

    @property
    def is_encoder_decoder(self) -> bool:
        """Text in, text out."""
        return False

    @property
    def is_multimodal_model(self) -> bool:
        """Text only."""
        return False

    @property
    def use_mla(self) -> bool:
        """Whether the model on paper keeps one latent for each token."""
        return self.is_deepseek_mla

    @property
    def is_deepseek_mla(self) -> bool:
        """The same question."""
        return str(self.hf_config.model_type).startswith("deepseek")

    def get_vocab_size(self) -> int:
        """Of the model on paper."""
        return int(self.hf_config.vocab_size)

    def get_hidden_size(self) -> int:
        """Of the model on paper."""
        return int(self.hf_config.hidden_size)

    def get_head_size(self) -> int:
        """Of the model on paper: a head's, or the latent's."""
        if self.is_deepseek_mla:
            return int(self.hf_config.kv_lora_rank + self.hf_config.qk_rope_head_dim)
        if hasattr(self.hf_config, "head_dim"):
            return int(self.hf_config.head_dim)
        return self.get_hidden_size() // int(self.hf_config.num_attention_heads)

    def get_total_num_kv_heads(self) -> int:
        """Of the model on paper."""
        return int(getattr(self.hf_config, "num_key_value_heads", self.hf_config.num_attention_heads))

    def get_num_kv_heads(self, parallel_config: Any, arch_config: Any = None) -> int:
        """Of one rank."""
        if self.is_deepseek_mla:
            return 1
        return max(1, self.get_total_num_kv_heads() // int(parallel_config.tensor_parallel_size))

    def get_num_attention_heads(self, parallel_config: Any, arch_config: Any = None) -> int:
        """Of one rank."""
        return int(self.hf_config.num_attention_heads) // int(parallel_config.tensor_parallel_size)

    def get_total_num_hidden_layers(self) -> int:
        """Of the model on paper."""
        return int(self.hf_config.num_hidden_layers)

    def get_num_layers(self, parallel_config: Any) -> int:
        """Of one pipeline stage."""
        return self.get_total_num_hidden_layers() // int(parallel_config.pipeline_parallel_size)
