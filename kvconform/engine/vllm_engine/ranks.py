"""Several tensor-parallel ranks in one process: what a worker asks of vLLM is answered as in a process of its own.

vLLM keeps its process groups in module globals (vllm/distributed/parallel_state.py); here they belong to a gloo world
of one rank. While a worker is built or runs, copies of the tensor-parallel and the world group stand in for them, which
know the worker's rank and the number of workers, and the worker's configuration is one of its own.

Simulated: ranks and sizes of these groups, the ranks in ParallelConfig, objects that rank 0 broadcasts while the
workers are built (vLLM synchronises the engine id so), and barriers there. Not simulated: every other collective
operation, torch.distributed itself, and ranks as seen from threads of the connector that ask while another worker runs.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvconform.engine.protocol import NotSimulated

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "all_gatherv",
    "reduce_scatter",
    "reduce_scatterv",
    "gather",
    "gather_object",
    "broadcast",
    "broadcast_object_list",
    "broadcast_tensor_dict",
    "send",
    "recv",
    "send_object",
    "recv_object",
    "send_tensor_dict",
    "recv_tensor_dict",
)


@dataclass
class Broadcasts:
    """What rank 0 broadcast in a group while the workers were built, for the ranks that are built after it."""

    sent: list[Any] = field(default_factory=list)
    open: bool = True


class RankWorld:
    """The ranks of one engine.

    Args:
        size: the number of workers.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._groups: dict[tuple[str, int], Any] = {}
        self._broadcasts = {"_TP": Broadcasts(), "_WORLD": Broadcasts()}

    def built(self) -> None:
        """All workers are there: from now on they can't communicate."""
        for each in self._broadcasts.values():
            each.open = False

    def config_of(self, config: VllmConfig, rank: int) -> VllmConfig:
        """The configuration as the worker of ``rank`` has it (WorkerBase.__init__ sets the rank, 0.32.0)."""
        if self.size == 1:
            return config
        own = copy.copy(config)
        own.parallel_config = copy.copy(config.parallel_config)
        own.parallel_config.rank = rank
        # Connectors keep what they are given: neither rank may see what the other writes into it.
        own.compilation_config = copy.copy(config.compilation_config)
        own.compilation_config.static_forward_context = {}
        own.kv_transfer_config = copy.deepcopy(config.kv_transfer_config)
        return own

    @contextlib.contextmanager
    def of(self, rank: int) -> Iterator[None]:
        """While this is open, vLLM's groups answer as in the process of ``rank``."""
        if self.size == 1:
            yield
            return
        from vllm.distributed import parallel_state

        before = {name: getattr(parallel_state, name) for name in self._broadcasts}
        try:
            for name, group in before.items():
                if (name, rank) not in self._groups:
                    self._groups[name, rank] = _group(group, rank, self.size, self._broadcasts[name])
                setattr(parallel_state, name, self._groups[name, rank])
            yield
        finally:
            for name, group in before.items():
                setattr(parallel_state, name, group)


def _group(real: Any, rank: int, size: int, broadcasts: Broadcasts) -> Any:
    """A copy of a group coordinator that believes to be ``rank`` of ``size``."""
    group = copy.copy(real)
    group.__class__ = type("SimulatedGroup", (type(real),), dict.fromkeys(_COLLECTIVES, property(_refused)))
    group.rank = group.rank_in_group = rank
    group.world_size = size
    group.ranks = list(range(size))
    group.local_rank = rank
    received = iter(broadcasts.sent) if rank else None

    def broadcast_object(obj: Any = None, src: int = 0) -> Any:
        if not broadcasts.open or src != 0:
            raise _not_simulated("broadcast_object between running workers")
        if rank == 0:
            broadcasts.sent.append(obj)
            return obj
        assert received is not None
        return copy.deepcopy(next(received))

    def barrier() -> None:
        if not broadcasts.open:
            raise _not_simulated("a barrier of running workers")

    group.broadcast_object, group.barrier = broadcast_object, barrier
    return group


def _refused(_: Any) -> Any:
    raise _not_simulated("a collective operation")


def _not_simulated(what: str) -> NotSimulated:
    return NotSimulated(f"{what} is not simulated: the workers take turns in one process")
