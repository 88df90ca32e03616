"""Try the kit as a vendor would: the built wheel, a clean environment, a package of their own.

Run it with the interpreter of an environment that has vLLM (``make out-of-tree`` does). Only kvconform and what it
depends on are installed afresh. vLLM, torch and their dependencies are *reused* from that environment, through links to
its packages: installing them again takes minutes and shows nothing about kvconform. kvconform itself and all pytest
plugins of that environment are left out, so nothing but the wheel can provide them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).resolve().parent.parent
#: Never reused: these have to come from the wheel and from what it asks for.
_NOT_REUSED = re.compile(
    r"(?i)(__editable__|_*kvconform|pytest|_pytest|xdist|hypothesis|pip[-.]|pip$|coverage)|.*\.pth$"
)
_SHIPPED = (
    "kvconform/plugin.py",
    "kvconform/py.typed",
    "kvconform/presets.toml",
    "kvconform/rules/catalogue/match.toml",
    "kvconform/suites/__init__.py",
    "kvconform/reference/file_store.py",
)

VENDOR = {
    "pyproject.toml": """
        [build-system]
        requires = ["hatchling"]
        build-backend = "hatchling.build"

        [project]
        name = "vendor-pkg"
        version = "1.0"

        [tool.kvconform]
        kv_connector_extra_config = { path = "{dir}/vendor" }
        env = { VENDOR_MODE = "test" }
        """,
    "conftest.py": """
        import os
        import pytest

        @pytest.fixture(scope="session", autouse=True)
        def vendor_server():
            # Seen by the vendor's connector, which refuses to work without it.
            os.environ["VENDOR_SERVER"] = "up"
            yield
            del os.environ["VENDOR_SERVER"]
        """,
    "vendor_pkg/__init__.py": "",
    "vendor_pkg/connector.py": """
        import os

        from kvconform.reference.file_store import FileStoreConnector


        class VendorConnector(FileStoreConnector):
            def __init__(self, vllm_config, role, kv_cache_config):
                if os.environ.get("VENDOR_SERVER") != "up" or os.environ.get("VENDOR_MODE") != "test":
                    raise RuntimeError("the vendor's server is not up")
                super().__init__(vllm_config, role, kv_cache_config)


        class DeadLoadConnector(VendorConnector):
            def start_load_kv(self, forward_context, **kwargs):
                pass  # promises hits and brings nothing


        class TwoArgumentConnector(FileStoreConnector):
            def __init__(self, vllm_config, role):
                super().__init__(vllm_config, role, None)
        """,
}
STRICT = ("--strict-markers", "--strict-config", "-W", "error", "-p", "no:cacheprovider")


def main() -> None:
    """Build, install, run; the first thing that is wrong ends it with a message and exit code 1."""
    with tempfile.TemporaryDirectory(prefix="kvconform-out-of-tree-") as folder:
        wheel = build_wheel(Path(folder) / "wheel")
        python = make_environment(Path(folder) / "venv", wheel)
        project = Path(folder) / "vendor"
        write_project(project)

        def pytest(*args: str, code: int, title: str) -> str:
            return run_pytest(python, project, args, code, title)

        good = "--kvconform=vendor_pkg.connector:VendorConnector"
        parallel = verdicts(pytest(good, *STRICT, "-n", "2", code=0, title="a good connector, in parallel"))
        check("PASS" in parallel.values(), f"no rule passed: {parallel}")
        check(not {"FAIL", "CRASH", "TIMEOUT", "KIT ERROR"} & set(parallel.values()), f"not all is well: {parallel}")
        serial = verdicts(pytest(good, *STRICT, code=0, title="the same, in one process"))
        check(serial == parallel, f"-n 2 and -n 0 differ: {sorted(serial.items() ^ parallel.items())}")

        # The first failure is enough, and one suite is, named as a package.
        for name, title, choice in (
            ("DeadLoadConnector", "promised hits that never arrive", ("-x",)),
            (
                "TwoArgumentConnector",
                "a constructor with two arguments",
                ("--pyargs", "kvconform.suites.test_signature", "-n", "2"),
            ),
        ):
            broken = f"--kvconform=vendor_pkg.connector:{name}"
            output = pytest(broken, *STRICT, *choice, code=1, title=title)
            check("FAIL" in verdicts(output).values(), f"{name}: no rule failed")

        misspelt = "--kvconform=vendor_pkg.conector:VendorConnector"
        output = pytest(misspelt, *STRICT, "-n", "2", code=4, title="a misspelt module")
        check("did you mean 'connector'?" in output, "the sentence does not say what to do")
    print("out of tree: all checks passed")


def build_wheel(folder: Path) -> Path:
    """The wheel of this checkout, with everything in it that has to be."""
    call(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    (wheel,) = folder.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    missing = [name for name in _SHIPPED if name not in names]
    check(not missing, f"the wheel lacks {missing}")
    strays = sorted({name.split("/")[0] for name in names} - {"kvconform"})
    check(len(strays) == 1 and strays[0].endswith(".dist-info"), f"the wheel has more top-level names: {strays}")
    return wheel


def make_environment(folder: Path, wheel: Path) -> Path:
    """A clean virtual environment with the wheel; its interpreter."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    constraints = str(ROOT / "constraints.txt")
    call(str(python), "-m", "pip", "install", "--quiet", "--constraint", constraints, str(wheel), "pytest-xdist")
    reused = folder / "reused"
    reused.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not _NOT_REUSED.match(entry.name):
            (reused / entry.name).symlink_to(entry)
    site = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    ).strip()
    Path(site, "reused.pth").write_text(f"{reused}\n")
    print(f"reusing vLLM and torch from {sysconfig.get_path('purelib')}", flush=True)
    return python


def write_project(folder: Path) -> None:
    """The vendor's package."""
    for name, text in VENDOR.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))


def run_pytest(python: Path, project: Path, args: tuple[str, ...], code: int, title: str) -> str:
    """pytest as the command that it is, in the vendor's folder; its output."""
    unwanted = ("PYTHONPATH", "PYTEST_ADDOPTS", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in unwanted}
    command = [str(python.parent / "pytest"), *args]
    print(f"\n--- {title}: pytest {' '.join(args)}", flush=True)
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    print(output[-3000:] if done.returncode == code else output, flush=True)
    check(done.returncode == code, f"{title}: exit code {done.returncode}, expected {code}")
    return output


def verdicts(output: str) -> dict[str, str]:
    """Rule id -> label, from the lines of the summary."""
    lines = re.findall(r"^([A-Z/]+(?: [A-Z]+)?) +([A-Z]+-\d+) ", output.partition("= kvconform =")[2], re.MULTILINE)
    return {rule: label for label, rule in lines}


def call(*command: str) -> None:
    """A command that has to succeed."""
    subprocess.run(command, check=True)


def check(condition: bool, message: str) -> None:
    """End with a message unless the condition holds."""
    if not condition:
        sys.exit(f"out of tree: {message}")


if __name__ == "__main__":
    main()
