"""Print the oldest release of each package that pyproject.toml accepts, as pip's requirements.

numpy is left out: torch decides which one can be imported beside it.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def oldest(given: str) -> str:
    """``name>=1.2`` -> ``name==1.2``; nothing else is understood."""
    requirement = Requirement(given)
    (bound,) = requirement.specifier
    assert bound.operator == ">=", f"{given}: a bound other than >= is not foreseen here"
    return f"{requirement.name}=={bound.version}"


if __name__ == "__main__":
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    print(*(oldest(each) for each in project["dependencies"] if not each.startswith("numpy")))
