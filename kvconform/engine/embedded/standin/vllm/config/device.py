"""Where tensors are."""

from __future__ import annotations

from typing import Any

import torch


class DeviceConfig:
    """ "auto", or a device by name."""

    def __init__(self, device: Any = "auto") -> None:
        from vllm.platforms import current_platform

        name = current_platform.device_type if device == "auto" else device
        self.device = torch.device(name) if isinstance(name, str) else name
        self.device_type: str = self.device.type
