"""A connector that its module defines under a condition that only holds in tests."""

from __future__ import annotations

import sys

from kvconform.reference import file_store

# What a process has imported that looks for a connector to test, and no process of an engine has.
if "kvconform.target" in sys.modules:

    class DefinedForTestsOnly(file_store.FileStoreConnector):
        """Found by the vendor's tests, and by no vLLM process."""
