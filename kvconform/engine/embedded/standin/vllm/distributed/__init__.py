"""Processes that work together; here there is one."""

from vllm.distributed.parallel_state import *  # noqa: F403
