"""How work is divided."""

from __future__ import annotations

import vllm.envs as envs


def get_pp_indices(num_hidden_layers: int, pp_rank: int, pp_size: int) -> tuple[int, int]:
    """The first layer of a stage and the one after its last.

    What cannot be divided evenly goes to the stages before the last one, from the back.

    Raises:
        ValueError: VLLM_PP_LAYER_PARTITION does not fit.
    """
    given = envs.VLLM_PP_LAYER_PARTITION
    if given is not None:
        try:
            stages = [int(layers) for layers in given.split(",")]
        except ValueError as error:
            raise ValueError(f"Invalid partition string: {given}") from error
        if len(stages) != pp_size or sum(stages) != num_hidden_layers:
            raise ValueError(f"VLLM_PP_LAYER_PARTITION={given}: not {num_hidden_layers} layers in {pp_size} stages.")
    else:
        stages = [num_hidden_layers // pp_size] * pp_size
        for back in range(num_hidden_layers % pp_size):
            stages[-2 - back] += 1
    first = sum(stages[:pp_rank])
    return first, first + stages[pp_rank]
