"""A program in words: numbered lines for a failure's text."""

from __future__ import annotations

from kvconform.engine.options import EngineOptions
from kvconform.scenario.program import (
    PLACEHOLDERS,
    TWIN_SEEDS,
    Abort,
    AbortDuringStep,
    AbortOnArrival,
    AbortOnceLoading,
    Action,
    Add,
    BreakStore,
    Drain,
    DummyRun,
    FailForward,
    FinishRequests,
    ForgetLocal,
    HandOff,
    HoldBack,
    Kill,
    Leave,
    MendStore,
    Outlast,
    Pause,
    PreemptAll,
    Program,
    RefuseWrites,
    RepeatHandshake,
    ResetConnector,
    Restart,
    Resume,
    Step,
    Turn,
)
from kvconform.scenario.stretching import stretched


def program_lines(program: Program) -> list[str]:
    """The program, as it is played, as numbered lines for a failure text."""
    program = stretched(program)
    text = [f"engine: {describe_options(program.options)}"]
    if program.twin:
        text.append(
            "engine 2, in the same process, with a store of its own: does the same, in lock step, "
            f"with other prompts (seeds + {TWIN_SEEDS})"
        )
    if program.pair is not None:
        text.append(f"engine 1 is the producer ({program.pair[0]}), engine 2 the consumer ({program.pair[1]})")
    text += [f"{number}. {describe_action(action)}" for number, action in enumerate(program.actions, 1)]
    return text


_SIBLINGS = {
    "twin": "two of its class",
    "stranger": "one of another class beside it",
    "store": "a store of another class beside it",
}


def describe_options(options: EngineOptions) -> str:
    """One line: cache shape, token budget, runner."""
    return (
        f"{options.shape.describe()}; max_num_batched_tokens={options.max_num_batched_tokens}, "
        f"model runner {options.runner}, load failures: {options.load_failure_policy}"
        + ("" if options.enable_prefix_caching else ", no prefix caching")
        + (", asynchronous scheduling" if options.async_scheduling else "")
        + (f", speculative decoding with {options.drafts} drafts a step" if options.drafts else "")
        + ("" if options.workers == 1 else f", {options.workers} workers")
        + (f", the last one's completions {options.late_steps} steps late" if options.late_steps else "")
        + (
            ""
            if not options.place
            else f", the {options.place} child of a MultiConnector with {_SIBLINGS[options.sibling]}"
        )
        + ("" if options.hook_order == "vllm" else f", hook order: {options.hook_order}")
        + ("" if options.model == "model" else f", model {options.model}")
    )


def describe_action(action: Action) -> str:
    """One line per action."""
    if isinstance(action, (Add, HandOff)):
        request = action.request
        kind = "embeddings" if request.embeds else "tokens"
        parts = [
            f"{length} placeholder tokens" if seed == PLACEHOLDERS else f"{length} {kind} of seed {seed}"
            for seed, length in request.prompt
        ]
        parts += [f"item {item.name!r} at {item.start} to {item.start + item.length - 1}" for item in request.items]
        if request.continues is not None:
            parts.insert(0, f"{request.continues.id}'s prompt and its {request.continues.max_tokens} generated tokens")
        prompt = " + ".join(parts)
        extra = "".join(
            f", {name} {value!r}" for name, value in (("LoRA", request.lora), ("salt", request.salt)) if value
        )
        tokens = f"prompt {request.prompt_length} tokens ({prompt}), max_tokens={request.max_tokens}"
        extra += ", which the first generated token stops" if request.stops else ""
        extra += "" if request.prompt_logprobs is None else f", prompt_logprobs={request.prompt_logprobs}"
        extra += ", not to be served from any cache (skip_reading_prefix_cache)" * request.skip_reading_prefix_cache
        if isinstance(action, HandOff):
            return f"add {request.id} with what the producer returned for {action.of}: {tokens}{extra}"
        if (request.kv_transfer_params or {}).get("do_remote_decode"):
            extra += ", to be decoded elsewhere (do_remote_decode)"
        return f"add {request.id}: {tokens}{extra}"
    if isinstance(action, Abort):
        return f"abort {action.request}"
    if isinstance(action, AbortDuringStep):
        return f"run 1 step, and abort {action.request} between its execution and its results"
    if isinstance(action, AbortOnceLoading):
        name = action.request
        return f"run until a load is promised to {name}, and abort it between that step's execution and its results"
    if isinstance(action, AbortOnArrival):
        return f"in the step that reports the end of {action.request}'s load, abort it between execution and results"
    if isinstance(action, FailForward):
        return f"let the forward raise after {action.layers} layer(s), which ends the engine; start a new one"
    if isinstance(action, Step):
        return f"run {action.count} step{'' if action.count == 1 else 's'}"
    if isinstance(action, Restart):
        how = "" if action.drain else " amid what is under way"
        again = " twice" if action.twice else ""
        anew = "" if action.options is None else f", set up as: {describe_options(action.options)}"
        return f"shut down{again}{how}, start a new engine on the same store{anew}"
    if isinstance(action, Turn):
        return f"what follows is done with the {action.engine}"
    if isinstance(action, Leave):
        return "the process falls silent for good (SIGSTOP)" if action.silent else "shut down for good"
    if isinstance(action, Pause):
        return f"pause the scheduler (PAUSED_{action.what.upper()})"
    if isinstance(action, BreakStore):
        return describe_fault(action)
    if isinstance(action, HoldBack):
        return {
            "kernels": "from here on the device runs a step's kernels only long after its hooks were called",
            "copies": "from here on copies between host and device take long",
            "nothing": "the device is as fast as it can again",
        }[action.what]
    if isinstance(action, RefuseWrites):
        how = "files can't grow any more" if action.how == "full" else "its directory has become a file"
        return f"make the connector's store unwritable: {how}"
    texts = {
        Drain: "run until idle",
        ForgetLocal: "drop the local prefix cache",
        PreemptAll: "preempt every running request (reset_prefix_cache(reset_running_requests=True))",
        ResetConnector: "reset the connector's cache (reset_prefix_cache(reset_connector=True))",
        Kill: "kill the process without a shutdown, start a new engine on the same store in another one",
        DummyRun: "run a forward without the connector (dummy run)",
        RepeatHandshake: "collect and deliver the handshake metadata again",
        MendStore: "mend the connector's store: it answers, and can be written",
        Resume: "end the pause",
        FinishRequests: "run until no request is unfinished, whatever is still held",
        Outlast: "step both engines until this one is idle, or as long as the connector may wait for a peer",
    }
    return texts[type(action)]


def describe_fault(action: BreakStore) -> str:
    """One line for a broken store."""
    entry = "entry" if action.fault == "silent" else "file"
    which = f"every {entry}" if action.every == 1 else f"one {entry} in {action.every}"
    what = {
        "removed": "is removed",
        "truncated": "is cut to half its length",
        "emptied": "is emptied",
        "folders": "becomes a folder",
        "unreadable": "becomes a link to itself, which nobody can open",
        "silent": "is there, but who asks for it gets no answer",
    }[action.fault]
    when = ", once the next load has been promised and before it starts" if action.at_load else ""
    return f"break the connector's store: {which} {what}{when}"
