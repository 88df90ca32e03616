"""Scenario families for the shapes that a KV cache may have: physical orders, dtypes, widths, padding, kernel blocks.

Each stores and reloads the same prompts; the control is the plain shape of every other scenario.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import strategies as st

from kvconform.kvcache.shape import LAYOUTS, KVCacheShape, LayerShape
from kvconform.scenario.family import BLOCK, PLAIN, Family, program, store_then_reload
from kvconform.scenario.program import Program
from kvconform.scenario.transfer import reloads


def _on_plain_shape(program: Program) -> Program:
    options = replace(program.options, shape=PLAIN)
    return replace(program, options=options)


def _with_plain_layers(program: Program) -> Program:
    options = replace(program.options, shape=KVCacheShape(layout=program.options.shape.layout))
    return replace(program, options=options)


def _shape_family(
    rule: str, situation: str, shapes: Sequence[KVCacheShape], drawn: st.SearchStrategy[KVCacheShape]
) -> Family:
    actions = store_then_reload([((1, 3 * BLOCK + 1),), ((2, 2 * BLOCK),)])
    examples = tuple(program("reload", actions, shape=shape) for shape in shapes)
    family = Family("reload", rule, examples, drawn.flatmap(reloads), situation, _on_plain_shape)
    if rule == "LAY-03":
        return family
    # What plain layers show in the same layout is the layout's.
    return replace(
        family, control=_with_plain_layers, general=replace(family, rule="LAY-03", situation="the other layout")
    )


def layout(name: str) -> Family:
    """One of the six physical orders, with several layers and heads so that every order differs from every other."""
    shapes = st.builds(
        lambda count, heads, size: KVCacheShape((LayerShape(count, num_kv_heads=heads, head_size=size),), name),
        st.integers(2, 4),
        st.sampled_from([2, 3, 4]),
        st.sampled_from([4, 8, 12]),
    )
    shape = KVCacheShape((LayerShape(3, num_kv_heads=2, head_size=8),), name)
    return _shape_family("LAY-03", f"the layout {name}", [shape], shapes)


def dtype(name: str) -> Family:
    """Elements of one dtype; the oracle's bytes cover every bit pattern."""
    shapes = st.builds(lambda n: KVCacheShape((LayerShape(dtype=name),), n), st.sampled_from(LAYOUTS))
    return _shape_family("LAY-13", f"dtype {name}", [KVCacheShape((LayerShape(dtype=name),))], shapes)


def head_widths() -> Family:
    """K and V of different widths, and head counts that invite guessing the meaning of a dimension."""
    layers = [
        LayerShape(head_size=8, head_size_v=4),
        LayerShape(head_size=4, head_size_v=12, num_kv_heads=4),
        LayerShape(head_size=8, num_kv_heads=1),
    ]
    drawn = st.builds(
        lambda h, k, v, n: KVCacheShape((LayerShape(num_kv_heads=h, head_size=k, head_size_v=v),), n),
        st.sampled_from([1, 2, 4, BLOCK]),
        st.sampled_from([4, 8, BLOCK]),
        st.sampled_from([4, 8, 20]),
        st.sampled_from(LAYOUTS),
    )
    return _shape_family("LAY-15", "K and V of these widths", [KVCacheShape((layer,)) for layer in layers], drawn)


def mla() -> Family:
    """One latent per token, no separate V."""
    layer = LayerShape(kind="mla", num_kv_heads=1, head_size=24)
    drawn = st.builds(
        lambda size, n: KVCacheShape((replace(layer, head_size=size),), n),
        st.sampled_from([8, 18, 24, 36]),
        st.sampled_from(LAYOUTS),
    )
    return _shape_family("LAY-14", "an MLA cache", [KVCacheShape((layer,)), KVCacheShape((layer,), "BLNHC")], drawn)


def padded_pages() -> Family:
    """Unused bytes between pages, which belong to no token."""
    drawn = st.builds(
        lambda padding, n: KVCacheShape((LayerShape(page_padding=2 * padding),), n),
        st.integers(1, 600),
        st.sampled_from(("LBNHC", "LBHNC", "BLNHC", "BLHNC")),
    )
    shapes = [KVCacheShape((LayerShape(page_padding=64),)), KVCacheShape((LayerShape(page_padding=1024),), "BLHNC")]
    return _shape_family("LAY-12", "padded pages", shapes, drawn)


def kernel_blocks() -> Family:
    """Registered tensors whose first dimension counts kernel blocks, smaller than the scheduler's blocks."""
    drawn = st.builds(
        lambda kernel, n: KVCacheShape(layout=n, kernel_block_size=kernel),
        st.sampled_from([1, 2, 4, 8]),
        st.sampled_from(("LBNHC", "LBHNC")),
    )
    shapes = [KVCacheShape(kernel_block_size=8), KVCacheShape(layout="LBHNC", kernel_block_size=4)]
    return _shape_family("LAY-10", "kernel blocks smaller than the scheduler's blocks", shapes, drawn)
