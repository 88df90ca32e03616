"""Hash functions of prefix caching."""

from __future__ import annotations

import hashlib
import importlib
import pickle
from collections.abc import Callable
from typing import Any


def sha256(input: Any) -> bytes:
    """Of the pickled object."""
    return hashlib.sha256(pickle.dumps(input, protocol=pickle.HIGHEST_PROTOCOL)).digest()


def sha256_cbor(input: Any) -> bytes:
    """Of the object in canonical CBOR."""
    import cbor2

    return hashlib.sha256(cbor2.dumps(input, canonical=True)).digest()


def _xxh3(data: bytes) -> bytes:
    try:
        package = importlib.import_module("xxhash")
    except ImportError as error:
        raise ModuleNotFoundError(f"prefix caching with xxhash needs that package: {error}") from error
    digest: bytes = package.xxh3_128_digest(data)
    return digest


def xxhash(input: Any) -> bytes:
    """A weak hash of the pickled object."""
    return _xxh3(pickle.dumps(input, protocol=pickle.HIGHEST_PROTOCOL))


def xxhash_cbor(input: Any) -> bytes:
    """A weak hash of the object in canonical CBOR."""
    import cbor2

    return _xxh3(cbor2.dumps(input, canonical=True))


_BY_NAME: dict[str, Callable[[Any], bytes]] = {
    "sha256": sha256,
    "sha256_cbor": sha256_cbor,
    "xxhash": xxhash,
    "xxhash_cbor": xxhash_cbor,
}


def get_hash_fn_by_name(hash_fn_name: str) -> Callable[[Any], bytes]:
    """The function that ``prefix_caching_hash_algo`` names."""
    if hash_fn_name not in _BY_NAME:
        raise ValueError(f"Unsupported hash function: {hash_fn_name}")
    return _BY_NAME[hash_fn_name]


def safe_hash(data: bytes, usedforsecurity: bool = True) -> Any:
    """A hash for names, of no value against attacks."""
    try:
        return hashlib.md5(data, usedforsecurity=usedforsecurity)
    except ValueError:
        return hashlib.sha256(data)
