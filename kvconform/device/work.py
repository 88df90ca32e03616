"""The engine's stream, as the rules about the order of work on a device need it.

vLLM calls every connector hook while its kernels of the step are merely queued on the current stream, and waits for
them only when it takes the sampled tokens (0.32.0: GPUModelRunner.execute_model and sample_tokens in
vllm/v1/worker/gpu/model_runner.py start AsyncOutput's copy behind them, then call post_forward with wait_for_save;
AsyncOutput.get_output synchronises. vllm/v1/worker/gpu_model_runner.py: AsyncGPUModelRunnerOutput, and _to_list, which
synchronises transfer_event). It records no event and waits for none around a hook, neither in ActiveKVConnector
(vllm/v1/worker/gpu/kv_connector.py) nor in KVConnectorModelRunnerMixin: the order on the device is the connector's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

#: What is slow: the engine's kernels, so that a copy which does not wait for them overtakes them; or copies between
#: host and device, so that a kernel which does not wait for them overtakes them.
Held = Literal["kernels", "copies"]


class DeviceWork(Protocol):
    """Work on the engine's stream, in the order in which it is queued."""

    def run(self, work: Callable[[], None]) -> None:
        """Queue work. Its operations only queue kernels: the host neither reads a result nor waits."""

    def hold(self, what: Held | None) -> None:
        """Make the device slow from here on: what is queued next, or the copies of others, begins only after a while.

        That is longer than the host needs for a step's hooks, unless a hook waits. None takes it back.
        """

    def pending(self) -> bool:
        """Whether something queued by :meth:`run` has not been done yet."""

    def settle(self) -> None:
        """Wait until everything queued so far is done."""
