"""How a model is compiled: not at all."""

from __future__ import annotations

import enum

from vllm.config._tables import fields_of


class CUDAGraphMode(enum.Enum):
    """Which parts of a forward are graphs, for mixed batches and for decodes."""

    NONE = 0
    PIECEWISE = 1
    FULL = 2
    FULL_DECODE_ONLY = (FULL, NONE)
    FULL_AND_PIECEWISE = (FULL, PIECEWISE)

    def separate_routine(self) -> bool:
        """Whether decodes are treated apart."""
        return isinstance(self.value, tuple)

    def decode_mode(self) -> CUDAGraphMode:
        """That of decodes."""
        return CUDAGraphMode(self.value[0]) if self.separate_routine() else self

    def mixed_mode(self) -> CUDAGraphMode:
        """That of other batches."""
        return CUDAGraphMode(self.value[1]) if self.separate_routine() else self

    def has_full_cudagraphs(self) -> bool:
        """Whether whole forwards are graphs."""
        return CUDAGraphMode.FULL in (self.decode_mode(), self.mixed_mode())

    def has_piecewise_cudagraphs(self) -> bool:
        """Whether parts are."""
        return CUDAGraphMode.PIECEWISE in (self.decode_mode(), self.mixed_mode())


class CompilationConfig(fields_of("CompilationConfig")):  # type: ignore[misc]
    """With ``static_forward_context``, where layers are found by name."""

    def __post_init__(self) -> None:
        self.cudagraph_mode = CUDAGraphMode.NONE
