"""What the oracle says of whole requests, kept as long as step after step compares it.

A request that decodes is read from its first token on in every step. The oracle is a pure function, so its bytes are
worked out once, in memory that nobody but the kit knows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from kvconform.kvcache.head_rows import Contents, as_contents
from kvconform.kvcache.oracle import PageContent, TokenChain, expand, slot_seeds

#: Bytes; what goes beyond is worked out for each step anew.
LIMIT = 16 << 20


@dataclass
class KeptContents:
    """The contents of one worker's slots, by request and layer.

    ``rank`` is the worker's.
    """

    rank: int
    _kept: dict[tuple[int, tuple[str, ...]], tuple[TokenChain, Contents]] = field(default_factory=dict)
    _bytes: int = 0

    def of(self, chain: TokenChain, layers: tuple[str, ...], content: PageContent, stop: int) -> Contents:
        """What the slots of the positions [0, ``stop``) or more hold, [layers, tokens, heads]; read only.

        ``content`` is that of each of the layers.
        """
        # The chain is kept with what it gave, so that no other one can come by its id.
        kept = self._kept.get((id(chain), layers))
        if kept is not None and kept[1].shape[1] >= stop:
            return kept[1]
        tokens = max(stop, chain.known)
        values = chain.chain(0, tokens)
        seeds = np.concatenate([slot_seeds(values, layer, self.rank) for layer in layers])
        raw = expand(seeds, content).numpy().reshape(len(layers), tokens, content.heads * content.content_bytes)
        contents = as_contents(raw, content.content_bytes)
        contents.flags.writeable = False
        self._keep(chain, layers, contents, 0 if kept is None else kept[1].nbytes)
        return contents

    def _keep(self, chain: TokenChain, layers: tuple[str, ...], contents: Contents, instead_of: int) -> None:
        if self._bytes - instead_of + contents.nbytes > LIMIT:
            self._kept.clear()
            self._bytes = instead_of = 0
        if contents.nbytes <= LIMIT:
            self._bytes += contents.nbytes - instead_of
            self._kept[id(chain), layers] = chain, contents
