"""What the configuration says of a connector's store, and trials show where it says nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from kvconform.config import RunConfig
from kvconform.kvcache.shape import BLOCK_SIZE
from kvconform.scenario.program import Program
from kvconform.trials import chunk_size, store_delay
from kvconform.trials.outliving import find_outliving
from kvconform.trials.traits import StoreTraits

# Plays a program, waiting so many seconds for what was stored, with a model's name of its own or the one that all
# scenarios share; request id -> tokens offered.
Offers = Callable[[Program, float, bool], Mapping[str, int]]

#: Seeds of prompts from here on are nobody's; which they are differs from run to run.
_NEW = 1 << 40


@dataclass(frozen=True)
class Needs:
    """What scenarios have to be like: chunks in tokens, seconds until a store is found, a model's name for each."""

    chunk_size: int = BLOCK_SIZE
    store_delay: float = 0.0
    fresh_model_names: bool = False
    shown: StoreTraits = field(default_factory=StoreTraits)


def said(config: RunConfig) -> Needs:
    """What the configuration says, without any trial."""
    return Needs(config.chunk_size or BLOCK_SIZE, config.store_delay or 0.0, bool(config.fresh_model_names))


def find(config: RunConfig, offers: Offers) -> Needs:
    """What the configuration says, and trials show.

    Args:
        config: of the connector.
        offers: plays a trial.
    """
    needs = said(config)
    fresh = needs.fresh_model_names
    if config.chunk_size is None:
        delays = (0.0, store_delay.LONG) if config.store_delay is None else (config.store_delay,)
        size = chunk_size.find_chunk_size(lambda delay: offers(chunk_size.trial(), delay, fresh), delays)
        needs = replace(needs, chunk_size=size or BLOCK_SIZE)
        if size != BLOCK_SIZE:
            needs = replace(needs, shown=replace(needs.shown, chunk_size=size))
    if config.fresh_model_names is None and needs.shown.chunk_size != 0:
        if config.chunk_size is not None:
            offers(chunk_size.trial(), needs.store_delay, False)
        delay = needs.store_delay
        outlives = find_outliving(
            lambda own: offers(chunk_size.trial(), delay, own),
            lambda: offers(chunk_size.trial(random.randrange(_NEW, 2 * _NEW)), delay, False),
        )
        fresh = outlives == "one model"
        needs = replace(needs, fresh_model_names=fresh, shown=replace(needs.shown, outlives=outlives))
    if config.store_delay is None:
        program = replace(store_delay.trial(), chunk_size=needs.chunk_size)
        delay = store_delay.find_store_delay(lambda delay: offers(program, delay, fresh), needs.chunk_size)
        needs = replace(needs, store_delay=delay, shown=replace(needs.shown, store_delay=delay))
    return needs
