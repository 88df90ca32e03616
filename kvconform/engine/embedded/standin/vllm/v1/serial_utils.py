"""The pickler between engine core and front-end, for plain data."""

from __future__ import annotations

from typing import Any

import msgspec


class MsgpackEncoder:
    """To MessagePack; what is no plain data is refused, as in vLLM without VLLM_ALLOW_INSECURE_SERIALIZATION."""

    def __init__(self, size_threshold: int | None = None, oob_tensor_consumer: Any = None) -> None:
        self._encoder = msgspec.msgpack.Encoder()

    def encode(self, obj: Any) -> list[bytes]:
        """The parts of a message."""
        return [self._encoder.encode(obj)]


class MsgpackDecoder:
    """Back again, to the type ``t``."""

    def __init__(self, t: Any = None, share_mem: bool = True, oob_tensor_provider: Any = None) -> None:
        self._decoder = msgspec.msgpack.Decoder() if t is None else msgspec.msgpack.Decoder(t)

    def decode(self, bufs: Any) -> Any:
        """From the parts of a message."""
        return self._decoder.decode(bufs if isinstance(bufs, (bytes, bytearray, memoryview)) else bufs[0])
