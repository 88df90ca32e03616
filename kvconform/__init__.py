"""kvconform: a conformance kit for vLLM V1 KV connectors.

Importing this package must stay free of cost: vLLM loads it in every server process on a machine where the kit is
installed (entry point group ``vllm.platform_plugins``), and pytest loads it in every test run (group ``pytest11``).
"""

import os as _os

__version__ = "0.1.0"


def _checkout_root() -> "str | None":
    """Folder of a source checkout, or None when this is an installed wheel.

    The wheel holds ``kvconform/suites`` and ``kvconform/reference``. In the repository these two are top-level folders,
    so that a connector author finds them without digging.
    """
    package = _os.path.dirname(_os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib is not needed here
    root = _os.path.dirname(package)  # noqa: PTH120
    if _os.path.isdir(_os.path.join(package, "suites")):  # noqa: PTH112, PTH118
        return None
    siblings = ("suites", "reference")
    if all(_os.path.isfile(_os.path.join(root, name, "__init__.py")) for name in siblings):  # noqa: PTH113, PTH118
        return root
    return None


_root = _checkout_root()
if _root is not None and _root not in __path__:
    __path__.append(_root)
