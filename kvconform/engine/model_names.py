"""Names of models that no other scenario's have, for stores that outlive one."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def fresh_models() -> Iterator[str]:
    """A folder for models, removed afterwards; a part of its name is part of theirs, see :func:`name_suffix`."""
    folder = tempfile.mkdtemp(prefix="kvconform-models-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def name_suffix(models: str) -> str:
    """What the names of models in this folder end with: the part of its own that nobody else has; empty for none."""
    return "-" + models.rpartition("-")[2] if models else ""
