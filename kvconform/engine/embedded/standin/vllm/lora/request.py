"""A LoRA adapter of a request."""

from __future__ import annotations

import msgspec


class LoRARequest(msgspec.Struct, omit_defaults=True, array_like=True):  # type: ignore[call-arg]
    """Adapters are the same if their names are."""

    lora_name: str
    lora_int_id: int
    lora_path: str = ""
    base_model_name: str | None = None
    load_inplace: bool = False
    is_3d_lora_weight: bool = False

    def __post_init__(self) -> None:
        if self.lora_int_id < 1:
            raise ValueError(f"id must be > 0, got {self.lora_int_id}")
        assert self.lora_path, "lora_path cannot be empty"

    @property
    def adapter_id(self) -> int:
        """The number."""
        return self.lora_int_id

    @property
    def name(self) -> str:
        """The name."""
        return self.lora_name

    @property
    def path(self) -> str:
        """Where it is."""
        return self.lora_path

    def __eq__(self, value: object) -> bool:
        return isinstance(value, LoRARequest) and self.lora_name == value.lora_name

    def __hash__(self) -> int:
        return hash(self.lora_name)
