"""What is measured: layouts times numbers of blocks. Imports neither torch nor vLLM."""

from __future__ import annotations

from dataclasses import dataclass

from kvconform.errors import UsageError
from kvconform.kvcache.shape import LAYOUTS, KVCacheShape, LayerShape

#: With the suites, or without them.
MODES = ("beside", "only")
DEFAULT_BLOCKS = (8, 64, 256, 1024)
MAX_BLOCKS = 16384
#: Two KV cache groups, in the first of the layouts: full attention and a sliding window.
HYBRID = "hybrid"
#: Both orders that vLLM's attention backends take by default: tokens before heads (NHD), and heads before tokens (HND).
DEFAULT_LAYOUTS = ("LBNHC", "LBHNC", HYBRID)
#: Layers of the measured cache, with the page of one of four tensor-parallel ranks of an 8B Llama: 16 KiB.
LAYERS = 4
_LAYER = LayerShape(LAYERS, num_kv_heads=2, head_size=128)
#: Blocks of a sliding window.
WINDOW_BLOCKS = 4


@dataclass(frozen=True)
class Case:
    """One layout with one number of blocks."""

    layout: str
    blocks: int

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return _LAYER.block_size

    @property
    def prompt(self) -> int:
        """Tokens of a prompt: the blocks, and two more. One has to be computed after a load anyway.

        The other is for connectors that take off that one twice, as vLLM's ExampleConnector does (0.32.0).
        """
        return self.blocks * self.block_size + 2

    @property
    def shape(self) -> KVCacheShape:
        """A cache with room for one request at a time."""
        layers: tuple[LayerShape, ...] = (_LAYER,)
        spare = 8
        if self.layout == HYBRID:
            half = LayerShape(LAYERS // 2, num_kv_heads=2, head_size=128)
            window = LayerShape(
                LAYERS // 2,
                kind="sliding_window",
                num_kv_heads=2,
                head_size=128,
                sliding_window=WINDOW_BLOCKS * self.block_size,
            )
            layers = (half, window)
        groups = len(layers)
        layout = LAYOUTS[0] if self.layout == HYBRID else self.layout
        return KVCacheShape(layers, layout, num_blocks=groups * (self.blocks + 1) + spare)


def parse_blocks(text: str | None) -> tuple[int, ...]:
    """``--kvconform-bench-blocks``.

    Raises:
        UsageError: one sentence.
    """
    if text is None:
        return DEFAULT_BLOCKS
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= MAX_BLOCKS for part in parts):
        raise UsageError(
            f"--kvconform-bench-blocks={text}: expected are numbers of blocks from 1 to {MAX_BLOCKS}, with commas "
            f"between them, such as {','.join(map(str, DEFAULT_BLOCKS))}."
        )
    return tuple(sorted({int(part) for part in parts}))


def parse_layouts(text: str | None) -> tuple[str, ...]:
    """``--kvconform-bench-layouts``.

    Raises:
        UsageError: one sentence.
    """
    if text is None:
        return DEFAULT_LAYOUTS
    parts = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    unknown = [part for part in parts if part not in (*LAYOUTS, HYBRID)]
    if unknown:
        raise UsageError(
            f"--kvconform-bench-layouts={text}: {unknown[0]!r} is no layout; the layouts are "
            f"{', '.join(LAYOUTS)} and {HYBRID}, with commas between them."
        )
    return parts
