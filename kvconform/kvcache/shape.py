"""Shapes of KV caches as plain data: what a scenario file stores, hypothesis draws and a report prints.

Nothing here imports torch or vllm; :mod:`kvconform.kvcache.build` turns a shape into vLLM's own objects.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Literal

# The physical orders of [L, B, H, N, C] that vLLM knows (vllm/v1/kv_cache_layout.py, KVCacheLayout, 0.29.0 to 0.33.0).
LAYOUTS: tuple[str, ...] = ("LBNHC", "LBHNC", "LHBNC", "BLHNC", "BLNHC", "BHLNC")

# dtype name -> bytes per element. uint8 stands for every format that vLLM stores as raw bytes (fp8 and others).
DTYPES: dict[str, int] = {"float16": 2, "bfloat16": 2, "float32": 4, "uint8": 1}

#: Tokens per block, where nothing else is said.
BLOCK_SIZE = 16
#: Tokens of the largest chunks that a connector may keep KV in: a prompt of eight has to be within the model's length.
LARGEST_CHUNK = 4096

AttentionKind = Literal["full", "sliding_window", "mla"]
LayerKind = Literal[AttentionKind, "recurrent"]

#: Shape of one state of a recurrent layer, in elements, and its dtype.
State = tuple[tuple[int, ...], str]


class ShapeError(ValueError):
    """A shape that vLLM could not allocate; the message names the field."""


@dataclass(frozen=True)
class LayerShape:
    """One kind of layer, repeated ``count`` times.

    ``head_size`` and ``head_size_v`` are elements per head of K and V; an MLA layer has one head slot whose
    ``head_size`` elements hold the latent. ``page_padding`` bytes are left unused at the end of every page.

    A recurrent layer has no slot per token: a block holds the ``states`` of the layer after the block's last computed
    token, one behind the other, such as those of a convolution and of the state space. Heads and dtype mean nothing.
    """

    count: int = 2
    kind: LayerKind = "full"
    num_kv_heads: int = 2
    head_size: int = 8
    head_size_v: int | None = None
    dtype: str = "float16"
    block_size: int = BLOCK_SIZE
    sliding_window: int | None = None
    page_padding: int = 0
    states: tuple[State, ...] = ()

    def __post_init__(self) -> None:
        for name in ("count", "num_kv_heads", "head_size", "block_size"):
            if getattr(self, name) < 1:
                raise ShapeError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.dtype not in DTYPES:
            raise ShapeError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        if (self.kind == "sliding_window") != (self.sliding_window is not None):
            raise ShapeError("sliding_window is the window in tokens of kind 'sliding_window', and of no other kind")
        if self.kind == "mla" and (self.num_kv_heads != 1 or self.head_size_v is not None):
            raise ShapeError("an MLA layer has one head slot and no separate V: num_kv_heads=1, head_size_v=None")
        if (self.kind == "recurrent") != bool(self.states):
            raise ShapeError("states are those of kind 'recurrent', and of no other kind")
        for shape, dtype in self.states:
            if dtype not in DTYPES or not shape or min(shape) < 1:
                raise ShapeError(
                    f"a state has dimensions of at least 1 and one of the dtypes, not {shape} of {dtype!r}"
                )
        if self.page_padding < 0 or self.page_padding % DTYPES[self.dtype]:
            raise ShapeError(
                f"page_padding must be a multiple of the {DTYPES[self.dtype]}-byte element of {self.dtype}"
            )

    @property
    def content_bytes(self) -> int:
        """Bytes per head slot and token: K and V side by side, or the MLA latent; of a recurrent layer, all states."""
        if self.kind == "recurrent":
            return sum(prod(shape) * DTYPES[dtype] for shape, dtype in self.states)
        v = 0 if self.kind == "mla" else (self.head_size if self.head_size_v is None else self.head_size_v)
        return (self.head_size + v) * DTYPES[self.dtype]

    @property
    def page_bytes(self) -> int:
        """Bytes of one block of one layer without padding."""
        if self.kind == "recurrent":
            return self.content_bytes
        return self.num_kv_heads * self.block_size * self.content_bytes


@dataclass(frozen=True)
class KVCacheShape:
    """The whole KV cache of one worker.

    ``kernel_block_size`` smaller than the block size makes vLLM register tensors whose first dimension counts kernel
    blocks (vllm/v1/worker/utils.py, allocate_kv_cache). Block 0 is vLLM's null block: ``num_blocks - 1`` are usable.
    """

    layers: tuple[LayerShape, ...] = field(default_factory=lambda: (LayerShape(),))
    layout: str = "LBNHC"
    num_blocks: int = 32
    kernel_block_size: int | None = None

    def __post_init__(self) -> None:
        if not self.layers:
            raise ShapeError("a KV cache needs at least one layer shape")
        if self.layout not in LAYOUTS:
            raise ShapeError(f"layout must be one of {', '.join(LAYOUTS)}, not {self.layout!r}")
        if self.num_blocks < 2:
            raise ShapeError(f"num_blocks must be at least 2 (block 0 is the null block), not {self.num_blocks}")
        heads_outside = self.layout in ("LHBNC", "BHLNC") and any(layer.num_kv_heads > 1 for layer in self.layers)
        if heads_outside and any(layer.page_padding for layer in self.layers):
            raise ShapeError(f"layout {self.layout} cannot pad pages of several heads (vLLM asserts it)")
        if self.recurrent and self.layout in ("LHBNC", "BHLNC"):
            raise ShapeError(f"layout {self.layout} cannot hold recurrent layers beside others (vLLM refuses it)")
        kernel = self.kernel_block_size
        if kernel is not None:
            if self.recurrent:
                raise ShapeError("kernel blocks beside recurrent layers are not simulated")
            if kernel < 1 or any(layer.block_size % kernel for layer in self.layers):
                raise ShapeError(f"kernel_block_size {kernel} must divide every block size")
            if not self._dense_pages and any(layer.block_size != kernel for layer in self.layers):
                raise ShapeError(
                    "only dense pages, without padding or another layer's or head's page in between, can be split into "
                    f"kernel blocks; {self.layout} does not store these layers so"
                )

    @property
    def _dense_pages(self) -> bool:
        """Whether one block of one layer is a single run of bytes and the next block follows at once."""
        if any(layer.page_padding for layer in self.layers):
            return False
        one_layer = sum(layer.count for layer in self.layers) == 1
        one_head = all(layer.num_kv_heads == 1 for layer in self.layers)
        # vLLM splits pages of one layer and several heads in BHLNC as well, into views that overlap each other
        # (compute_layout_strides with the unsplit layer stride, vllm/v1/kv_cache_interface.py, 0.32.0).
        return {"LHBNC": one_head, "BHLNC": one_layer and one_head, "BLHNC": one_layer, "BLNHC": one_layer}.get(
            self.layout, True
        )

    @property
    def recurrent(self) -> bool:
        """Whether there are layers with a state instead of slots for tokens."""
        return any(layer.kind == "recurrent" for layer in self.layers)

    @property
    def block_size(self) -> int:
        """Tokens per block of the first layer shape; the only block size of a single-group cache."""
        return self.layers[0].block_size

    @property
    def usable_tokens(self) -> int:
        """Tokens that fit without the null block, counted in the smallest block size."""
        return (self.num_blocks - 1) * min(layer.block_size for layer in self.layers)

    def describe(self) -> str:
        """One line for reports: layout, blocks, and each layer shape."""
        parts = []
        for layer in self.layers:
            padding = f", {layer.page_padding} B padding" if layer.page_padding else ""
            if layer.kind == "recurrent":
                states = " and ".join(f"{'x'.join(map(str, shape))} {dtype}" for shape, dtype in layer.states)
                parts.append(f"{layer.count} recurrent layers of {states}, block {layer.block_size}{padding}")
                continue
            heads = "MLA latent" if layer.kind == "mla" else f"{layer.num_kv_heads} heads"
            widths = f"{layer.head_size}" if layer.head_size_v is None else f"{layer.head_size}+{layer.head_size_v}"
            window = f", window {layer.sliding_window}" if layer.sliding_window else ""
            parts.append(
                f"{layer.count} layers {heads} x {widths} {layer.dtype}, block {layer.block_size}{window}{padding}"
            )
        kernel = f", kernel block {self.kernel_block_size}" if self.kernel_block_size else ""
        return f"{self.layout}, {self.num_blocks} blocks{kernel}: " + "; ".join(parts)
