"""When the engine's work on a device runs: at once, as far as the host can tell, or held back to show missing waits."""

from kvconform.device.work import DeviceWork, Held

__all__ = ["DeviceWork", "Held"]
