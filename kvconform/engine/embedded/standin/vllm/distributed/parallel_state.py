"""Process groups of one rank each."""

from __future__ import annotations

from typing import Any

from kvconform.engine.protocol import NotSimulated


class GroupCoordinator:
    """A group in which there is nobody else; nothing here is a torch.distributed group."""

    def __init__(self, unique_name: str) -> None:
        self.unique_name = unique_name
        self.rank = self.local_rank = self.rank_in_group = 0
        self.world_size = 1
        self.ranks = [0]

    @property
    def first_rank(self) -> int:
        """The global rank of the first one."""
        return self.ranks[0]

    @property
    def last_rank(self) -> int:
        """The global rank of the last one."""
        return self.ranks[-1]

    @property
    def is_first_rank(self) -> bool:
        """Whether this is the first one."""
        return self.rank == self.first_rank

    @property
    def is_last_rank(self) -> bool:
        """Whether this is the last one."""
        return self.rank == self.last_rank

    @property
    def device_group(self) -> Any:
        """Not there."""
        raise NotSimulated("process groups of torch.distributed are not simulated by the engine 'embedded'")

    cpu_group = device_group

    def barrier(self) -> None:
        """Nobody to wait for."""

    def broadcast_object(self, obj: Any = None, src: int = 0) -> Any:
        """Nobody else gets it."""
        return obj


_WORLD: GroupCoordinator | None = None
_TP: GroupCoordinator | None = None
_PP: GroupCoordinator | None = None
_DP: GroupCoordinator | None = None
_DCP: GroupCoordinator | None = None
_PCP: GroupCoordinator | None = None


def init_distributed_environment(
    world_size: int = -1,
    rank: int = -1,
    distributed_init_method: str = "env://",
    local_rank: int = -1,
    backend: str = "nccl",
    timeout: Any = None,
) -> None:
    """The world of one rank."""
    global _WORLD
    assert world_size == 1, "the engine 'embedded' has one process"
    _WORLD = _WORLD or GroupCoordinator("world:0")


def ensure_model_parallel_initialized(
    tensor_model_parallel_size: int,
    pipeline_model_parallel_size: int,
    prefill_context_model_parallel_size: int = 1,
    decode_context_model_parallel_size: int | None = 1,
    backend: str | None = None,
) -> None:
    """Groups of one rank."""
    global _TP, _PP, _DP, _DCP, _PCP
    assert (tensor_model_parallel_size, pipeline_model_parallel_size) == (1, 1)
    _TP, _PP = _TP or GroupCoordinator("tp:0"), _PP or GroupCoordinator("pp:0")
    _DP, _DCP, _PCP = (
        _DP or GroupCoordinator("dp:0"),
        _DCP or GroupCoordinator("dcp:0"),
        _PCP or GroupCoordinator("pcp:0"),
    )


def _there(group: GroupCoordinator | None, name: str) -> GroupCoordinator:
    assert group is not None, f"{name} is not initialized"
    return group


def get_world_group() -> GroupCoordinator:
    """All ranks."""
    return _there(_WORLD, "world group")


def get_tp_group() -> GroupCoordinator:
    """Ranks that share the heads of a layer."""
    return _there(_TP, "tensor model parallel group")


def get_pp_group() -> GroupCoordinator:
    """Ranks that share the layers."""
    return _there(_PP, "pipeline model parallel group")


def get_dp_group() -> GroupCoordinator:
    """Ranks that share the requests."""
    return _there(_DP, "data parallel group")


def get_dcp_group() -> GroupCoordinator:
    """Ranks that share the tokens while decoding."""
    return _there(_DCP, "decode context model parallel group")


def get_pcp_group() -> GroupCoordinator:
    """Ranks that share the tokens of a prompt."""
    return _there(_PCP, "prefill context parallel group")


def get_tensor_model_parallel_rank() -> int:
    """This rank among those that share the heads."""
    return get_tp_group().rank_in_group


def get_tensor_model_parallel_world_size() -> int:
    """How many of them there are."""
    return get_tp_group().world_size


def get_pipeline_model_parallel_rank() -> int:
    """This rank among those that share the layers."""
    return get_pp_group().rank_in_group


def model_parallel_is_initialized() -> bool:
    """Whether there are groups."""
    return _TP is not None and _PP is not None
