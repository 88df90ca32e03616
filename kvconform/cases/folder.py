"""Where the cases of a run go. Imports nothing heavy: it is asked when pytest starts."""

from __future__ import annotations

from pathlib import Path

import pytest

#: Unless ``--kvconform-cases`` says otherwise, from the folder where pytest was started.
DEFAULT_FOLDER = ".kvconform/cases"


def cases_folder(config: pytest.Config) -> Path:
    """The folder that ``--kvconform-cases`` names.

    Raises:
        pytest.UsageError: it is none.
    """
    given: str | None = config.option.kvconform_cases
    folder = config.invocation_params.dir / (given or DEFAULT_FOLDER)
    if given and folder.exists() and not folder.is_dir():
        raise pytest.UsageError(f"--kvconform-cases={given}: this is a file; give the path of a folder.")
    return folder
