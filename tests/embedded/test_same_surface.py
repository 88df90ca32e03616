"""The stand-in's public surface is vLLM 0.32.0's: names, parameters, fields, members, defaults, and small results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvconform.api import vllm_version

FOLDER = Path(__file__).parent
# Name and what of it differs, and why that is no trap for a connector.
DIFFERENCES = {
    "vllm.config.compilation.CompilationConfig fields": "three counters of compilations, and a default that is made",
    "vllm.config.model.ModelConfig fields": "required fields of vLLM have the default None here",
    "vllm.config.parallel.ParallelConfig fields": "required fields of vLLM have the default None here",
    "vllm.config.scheduler.SchedulerConfig fields": "required fields of vLLM have the default None here",
    "vllm.config.vllm.VllmConfig fields": "optimization_level is no plain value: reading it says so",
    "vllm.config.device.DeviceConfig __init__": "pydantic hides the signature of vLLM's configuration classes",
    "vllm.config.device.DeviceConfig fields": "a plain class with the same two attributes",
    "vllm.config.kv_transfer.KVTransferConfig __init__": "pydantic hides the signature",
    "vllm.config.scheduler.SchedulerConfig __init__": "pydantic hides the signature",
    "vllm.distributed.parallel_state.GroupCoordinator __init__": "groups here are none of torch.distributed",
    "vllm.distributed.parallel_state.GroupCoordinator properties": "asking for the torch group says so",
    "vllm.platforms.interface.Platform insert_blocks_to_device": "only CUDA platforms of vLLM have it",
    "vllm.platforms.interface.Platform swap_out_blocks_to_host": "only CUDA platforms of vLLM have it",
    "vllm.sampling_params.SamplingParams fields": "only what scheduling looks at",
    "vllm.v1.kv_cache_interface.MambaSpec __init__": "making one says that recurrent layers are not simulated",
    "vllm.sampling_params.SamplingParams __init__": "only what scheduling looks at",
    "vllm.v1.attention.backend.AttentionBackend abstract": "there are no kernels",
    "vllm.v1.attention.backend.AttentionImpl abstract": "there are no kernels",
    "vllm.v1.core.kv_cache_utils.FreeKVCacheBlockQueue properties": "num_free_blocks is an attribute in vLLM",
    "vllm.v1.core.single_type_kv_cache_manager.SingleTypeKVCacheManager abstract": "the base is never built alone",
    "vllm.v1.engine.EngineCoreOutput fields": "the front-end's; connectors never see it",
    "vllm.v1.engine.EngineCoreOutput __init__": "the front-end's; connectors never see it",
    "vllm.v1.engine.EngineCoreOutputs fields": "the front-end's; connectors never see it",
    "vllm.v1.engine.EngineCoreOutputs __init__": "the front-end's; connectors never see it",
    "vllm.v1.kv_cache_interface.AttentionSpec get_num_kernel_states": "inherited in vLLM",
    "vllm.v1.kv_cache_interface.AttentionSpec properties": "num_states is inherited in vLLM",
    "vllm.v1.kv_cache_interface.FullAttentionSpec is_uniform_with_collection": "inherited in vLLM",
    "vllm.v1.kv_cache_interface.MambaSpec fields": "known by name only",
    "vllm.v1.metrics.stats.SchedulerStats fields": "the front-end's; connectors never see it",
    "vllm.v1.metrics.stats.SchedulerStats __init__": "the front-end's; connectors never see it",
}


def surface(engine: str) -> dict[str, Any]:
    """Of what ``import vllm`` gives, from a process of its own."""
    ended = subprocess.run(
        [sys.executable, "surface.py", engine], capture_output=True, text=True, cwd=FOLDER, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def differing(real: dict[str, Any], own: dict[str, Any]) -> dict[str, str]:
    """Everything of the stand-in that is not as in vLLM."""
    found = {}
    for name, described in own.items():
        if name not in real:
            found[name] = "vLLM has no such name"
            continue
        for what in ("parameters", "members", "fields", "abstract"):
            if described.get(what) != real[name].get(what):
                found[f"{name} {what}"] = f"{described.get(what)}, in vLLM {real[name].get(what)}"
        for method, parameters in described.get("methods", {}).items():
            theirs = real[name].get("methods", {}).get(method)
            if parameters != theirs:
                found[f"{name} {method}"] = f"{parameters}, in vLLM {theirs}"
        if set(described.get("properties", ())) - set(real[name].get("properties", ())):
            found[f"{name} properties"] = f"{described['properties']}, in vLLM {real[name].get('properties')}"
    return found


@pytest.mark.skipif(not str(vllm_version()).startswith("0.32"), reason="the stand-in follows vLLM 0.32.0")
def test_names_parameters_fields_defaults_and_what_helpers_compute_are_those_of_vllm() -> None:
    real, own = surface("vllm"), surface("embedded")
    assert own["computed"] == real["computed"]
    found = differing(real["surface"], own["surface"])
    unexplained = {what: text for what, text in found.items() if what not in DIFFERENCES}
    assert not unexplained
    assert set(DIFFERENCES) <= set(found), "differences that are gone"


@pytest.mark.skipif(not str(vllm_version()).startswith("0.32"), reason="the stand-in follows vLLM 0.32.0")
def test_the_tables_of_values_and_of_uncovered_names_are_up_to_date() -> None:
    code = (
        "import json, config_values, uncovered\n"
        "assert config_values.collect() == json.loads(config_values.TABLE.read_text()), 'config_values'\n"
        "assert uncovered.missing() == json.loads(uncovered.TABLE.read_text()), 'uncovered'\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=FOLDER, check=False)
    assert ended.returncode == 0, f"run tests/embedded/config_values.py and uncovered.py: {ended.stderr[-800:]}"
