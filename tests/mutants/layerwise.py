"""Connectors that move KV layer by layer and get one thing of it wrong."""

from __future__ import annotations

from typing import Any

from kvconform.reference.layerwise_file_store import LayerwiseFileStoreConnector


class AsksForNoPiecewiseGraphs(LayerwiseFileStoreConnector):
    """Loads in a hook that a replayed full CUDA graph never calls, and does not say so (R11, R23)."""

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        return False


class SkipsTheLastLayer(LayerwiseFileStoreConnector):
    """The pipeline that loads one layer ahead ends one layer too early (R11)."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        worker = self._layers()
        if worker._pages is not None and layer_name != list(worker._pages.layers)[-1]:
            super().wait_for_layer_load(layer_name)
