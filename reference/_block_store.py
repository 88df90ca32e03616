"""Files of a block store: names, format, and how a block becomes visible.

One file holds one rank's part of one block, all layers together, so a file is never half there in the sense of "layer 3
is missing". A block is stored when the files of all ranks exist under their final names. The way there:

1. each worker writes its part under a staging name that nobody else uses, and syncs it to disk;
2. the scheduler, once it knows that every rank succeeded and that the KV was good, renames the parts.

A rename within a file system is atomic, so readers see a whole file or none. Files are checked on reading all the same:
the directory may have been copied, truncated by a full disk, or filled by something else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
from pathlib import Path

MAGIC = b"KVBLOCK\x01"
# Magic, bytes of the label, bytes of the payload, digest of label and payload.
_HEADER = struct.Struct("<8sIQ16s")
_STAGING_SUFFIX = ".staged"


class BlockFileError(Exception):
    """A file is not the complete block it should be; the message says in what way."""


def block_label(block_hash: bytes, rank: int, world_size: int, shard: str) -> bytes:
    """What a file claims to hold; a reader accepts only the label it would have written itself.

    ``shard`` names the layers and shapes of this rank's part (:attr:`KVPages.fingerprint`).
    """
    claim = {"block": block_hash.hex(), "rank": rank, "world_size": world_size, "shard": shard}
    return json.dumps(claim, sort_keys=True).encode()


def write_block_file(path: Path, label: bytes, payload: memoryview) -> None:
    """Write one part and make it durable. Raises OSError; what it leaves then is garbage under a staging name."""
    header = _HEADER.pack(MAGIC, len(label), len(payload), _digest(label, payload))
    try:
        file = path.open("xb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("xb")
    with file:
        file.write(header)
        file.write(label)
        file.write(payload)
        file.flush()
        # Without this a power loss can leave the new name with old contents.
        os.fsync(file.fileno())


def read_block_file(path: Path, label: bytes, out: memoryview) -> None:
    """Read one part into ``out``, whose length is the expected payload.

    Raises OSError (FileNotFoundError for a missing file) or BlockFileError. ``out`` may hold garbage after an error.
    """
    with path.open("rb", buffering=0) as file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            raise BlockFileError(f"{path} ends within its header")
        magic, label_bytes, payload_bytes, digest = _HEADER.unpack(header)
        if magic != MAGIC:
            raise BlockFileError(f"{path} is not a block file of this version")
        if os.fstat(file.fileno()).st_size != _HEADER.size + label_bytes + payload_bytes:
            raise BlockFileError(f"{path} is truncated or has trailing bytes")
        if file.read(label_bytes) != label:
            raise BlockFileError(f"{path} holds another block, rank or shape than its name says")
        if payload_bytes != len(out):
            raise BlockFileError(f"{path} holds {payload_bytes} bytes of KV, expected {len(out)}")
        _read_fully(file.fileno(), out, path)
    if _digest(label, out) != digest:
        raise BlockFileError(f"{path} fails its checksum")


def _read_fully(descriptor: int, out: memoryview, path: Path) -> None:
    done = 0
    while done < len(out):
        count = os.readv(descriptor, [out[done:]])
        if count == 0:
            raise BlockFileError(f"{path} was truncated while it was read")
        done += count


def _digest(label: bytes, payload: memoryview) -> bytes:
    digest = hashlib.blake2b(label, digest_size=16)
    digest.update(payload)
    return digest.digest()


class BlockStore:
    """Names and presence of blocks below one root.

    Directories are given relative to the root, because that is what travels from the scheduler to the workers: hosts
    may mount the store in different places.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def block_path(self, directory: str, block_hash: bytes, rank: int) -> Path:
        """The final name of one rank's part; 256 subdirectories keep listings short."""
        name = block_hash.hex()
        return self.root / directory / name[:2] / f"{name}.{rank}"

    def staged_path(self, directory: str, save_id: int, rank: int) -> Path:
        """The name under which a rank writes; ``directory`` belongs to one engine life, ``save_id`` to one attempt."""
        return self.root / directory / f"{save_id}.{rank}{_STAGING_SUFFIX}"

    def contains(self, directory: str, block_hash: bytes, world_size: int) -> bool:
        """Whether the parts of all ranks are there. A store that can't be reached contains nothing."""
        return all(self.block_path(directory, block_hash, rank).is_file() for rank in range(world_size))

    def publish(self, staging: str, save_id: int, directory: str, block_hash: bytes, world_size: int) -> None:
        """Give the staged parts of all ranks their final names. Raises OSError.

        A crash on the way leaves a block that :meth:`contains` denies. Parts of two engines may mix, harmlessly: both
        were good KV for the same key.
        """
        for rank in range(world_size):
            target = self.block_path(directory, block_hash, rank)
            source = self.staged_path(staging, save_id, rank)
            try:
                source.replace(target)
            except FileNotFoundError:
                target.parent.mkdir(parents=True, exist_ok=True)
                source.replace(target)

    def discard(self, staging: str, save_id: int, world_size: int) -> None:
        """Remove what any rank staged. Never raises OSError."""
        for rank in range(world_size):
            with contextlib.suppress(OSError):
                self.staged_path(staging, save_id, rank).unlink(missing_ok=True)

    def remove(self, directory: str, block_hash: bytes, rank: int) -> None:
        """Remove a part that turned out to be broken, so that the block no longer matches. Never raises OSError."""
        with contextlib.suppress(OSError):
            self.block_path(directory, block_hash, rank).unlink(missing_ok=True)
