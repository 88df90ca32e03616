"""A process that allocates a pool of so many 64-KiB blocks, and computes, overwrites, audits and compares all of it."""

from __future__ import annotations

import sys

from subjects import peak_bytes

from kvconform.api import prepare

prepare("cpu")
from kv_bench import Owned, build_memory, compute, connector_view, places  # noqa: E402

from kvconform.kvcache.comparison import differing  # noqa: E402
from kvconform.kvcache.oracle import TokenChain, expand, prompt_tokens, slot_seeds  # noqa: E402
from kvconform.kvcache.shape import KVCacheShape, LayerShape  # noqa: E402

STRETCH = 64


def main(num_blocks: int) -> None:
    # A small cache first: what vLLM imports only when it allocates one counts as imports.
    build_memory(KVCacheShape())
    imports = peak_bytes()
    shape = KVCacheShape((LayerShape(1, num_kv_heads=8, head_size=128),), num_blocks=num_blocks)
    owned = Owned(build_memory(shape))
    memory = owned.memory
    ((name, layer),) = memory.layers.items()
    tokens = STRETCH * shape.block_size
    chain = TokenChain(prompt_tokens(((1, tokens),)))
    for first in range(1, num_blocks - STRETCH, STRETCH):
        table = list(range(first, first + STRETCH))
        compute(memory, chain, table, tokens)
        at = places(table, shape.block_size, tokens)
        expected = expand(slot_seeds(chain.chain(0, tokens), name), layer.content)
        assert differing(memory.read(name, *at), expected) is None
    # The connector writes one block that it may write: the audit has to look closer.
    owned.own(1)
    connector_view(memory, name)[1] = 1
    assert owned.audit() == []
    print(imports, memory.raw.numel(), peak_bytes())


if __name__ == "__main__":
    main(int(sys.argv[1]))
