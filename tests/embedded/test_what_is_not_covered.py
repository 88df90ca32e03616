"""What the stand-in for vLLM does not have is said in a sentence, and is never counted against a connector."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FACTORY = "vllm.distributed.kv_transfer.kv_connector.factory"
# Statements, and what they have to name.
_STATEMENTS = {
    "import vllm.entrypoints.llm": "The module vllm.entrypoints is",
    "from vllm import LLM": "vllm.LLM is",
    "from vllm.config import LoRAConfig": "vllm.config.LoRAConfig is",
    "from vllm.v1.core.kv_cache_utils import check_enough_kv_cache_memory": "check_enough_kv_cache_memory is",
    f"from {_FACTORY} import KVConnectorFactory as f; f.get_connector_class_by_name('NixlConnector')": "v1.nixl is",
}
_CODE = f"""
import sys
from kvconform.api import vllm_version
from kvconform.engine.embedded import finder
from kvconform.engine.protocol import NotSimulated

finder.install()
assert vllm_version() == "0.32.0"
for statement, named in {_STATEMENTS!r}.items():
    try:
        exec(statement)
    except ImportError as error:
        assert named in str(error) and "pip install vllm==0.32.0" in str(error), error
        assert isinstance(error, NotSimulated)
    else:
        raise AssertionError(statement)

for statement in ("import vllm.attention.backends", "from vllm.v1.core.kv_cache_utils import hash_request_tokens"):
    try:
        exec(statement)
    except ImportError as error:
        # Names of other releases, which 0.32.0 does not have either.
        assert "pip install" not in str(error), error
    else:
        raise AssertionError(statement)

from vllm.v1.core.block_pool import BlockPool
pool = BlockPool(4, True, 16)
assert not hasattr(pool, "nonsense")
try:
    pool.move_block_hashes
except NotSimulated as error:
    assert "BlockPool.move_block_hashes is not covered" in str(error), error
else:
    raise AssertionError("nothing was said")

import vllm.v1.core.sched.scheduler, vllm.v1.worker.gpu.kv_connector
files = [str(m.__file__) for n, m in sys.modules.items() if n.split(".")[0] == "vllm"]
assert files and all(file.startswith(str(finder.STANDIN)) for file in files), files
finder.remove()
assert not [n for n in sys.modules if n.split(".")[0] == "vllm"]
"""


def test_what_is_missing_names_itself_and_the_command_and_no_file_of_vllm_is_ever_imported() -> None:
    ended = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr
