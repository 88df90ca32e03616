"""What the engine 'embedded' puts in vLLM's place: names and behaviour of release 0.32.0, none of its code."""

from vllm.version import __version__, __version_tuple__

__all__ = ["__version__", "__version_tuple__"]
