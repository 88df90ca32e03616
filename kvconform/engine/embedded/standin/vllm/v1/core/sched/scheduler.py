"""The scheduler of one engine with its connector."""

from __future__ import annotations

from vllm.v1.core.sched._planner import StepPlanner
from vllm.v1.core.sched._results import ResultTaker


class Scheduler(StepPlanner, ResultTaker):
    """Decides which tokens are computed in the next step, and takes the results."""
