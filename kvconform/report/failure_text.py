"""The text of a failing test, for a reader who has never seen the kit."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from kvconform.checks.model import Finding
from kvconform.engine.byte_events import Arrived, Stray, WrongBytes
from kvconform.engine.events import EngineRaised, Event, HookCall, ProgramAction, Scheduled, Tokens
from kvconform.engine.history import History
from kvconform.isolation.room import CrashedError, HungError
from kvconform.picture import lines_of
from kvconform.report.picturing import pictures_of
from kvconform.rules import load_catalogue, rule_section
from kvconform.scenario.program import Program
from kvconform.scenario.wording import program_lines

WIDTH = 118
#: Command lines that show a failure again.
Commands = str | Sequence[str]
TRACE_LINES = 16
# Hooks whose call tells a part of the story; the others are noise in a trace.
_TOLD = (
    "get_num_new_matched_tokens",
    "update_state_after_alloc",
    "request_finished",
    "request_finished_all_groups",
    "get_block_ids_with_load_errors",
    "reset_cache",
)


def failure_text(
    findings: Sequence[Finding],
    history: History,
    program: Program | None,
    *,
    target: str,
    reproduce: Commands,
    contrast: str = "",
) -> str:
    """Everything about the findings of one scenario, grouped by rule.

    Args:
        findings: at least one; findings of the same rule share a paragraph.
        history: of the scenario.
        program: the scenario, None where a finding needs none (signatures).
        target: id of the connector.
        reproduce: command lines.
        contrast: what the same scenario without its special situation showed.
    """
    blocks = []
    for rule_id in dict.fromkeys(finding.rule for finding in findings):
        of_rule = [finding for finding in findings if finding.rule == rule_id]
        blocks.append(_rule_block(rule_id, of_rule, target, history))
    requests = {request for finding in findings for request in finding.requests}
    if contrast:
        blocks.append(_paragraph("Contrast", [contrast]))
    if program is not None:
        blocks.append("Scenario:\n" + textwrap.indent("\n".join(_wrapped(program_lines(program))), "  "))
        blocks.append(
            "What happened:\n" + textwrap.indent("\n".join(_wrapped(trace(history, findings, requests))), "  ")
        )
    blocks.append(_commands(reproduce))
    return "\n".join(blocks)


def hung_text(error: HungError, scenario: str, *, target: str, reproduce: Commands) -> str:
    """A scenario that did not end, with the stacks of all threads."""
    return _lost_text(
        f"TIMEOUT: {target} did not end the scenario {scenario!r} within {error.limit:g} s.",
        "The connector's process was killed; other scenarios go on in a new one. Stacks of all its threads:",
        error.stacks.strip() or "(the process did not answer the request for its stacks)",
        "Give every wait in a hook a limit, and report what did not arrive as failed.",
        reproduce,
    )


def crashed_text(error: CrashedError, scenario: str, *, target: str, reproduce: Commands) -> str:
    """A scenario in which the connector's process ended."""
    by_the_system = " A system that is short of memory kills processes, too." if "SIGKILL" in error.how else ""
    return _lost_text(
        f"CRASH: the process of {target} {error.how} during the scenario {scenario!r}.",
        "Other scenarios go on in a new process. The last that it printed:",
        _without_repeats(error.output.strip()) or "(nothing)",
        f"A connector lives in the engine's process: it raises, and never ends it.{by_the_system}",
        reproduce,
    )


def _without_repeats(output: str) -> str:
    """vLLM logs the same warnings for every engine that is built: each line once, where it came last."""
    lines = output.splitlines()
    kept = list(reversed(dict.fromkeys(reversed(lines))))
    return "\n".join([*([f"({len(lines) - len(kept)} repeated lines cut)"] if len(kept) < len(lines) else []), *kept])


def _lost_text(what: str, then: str, evidence: str, fix: str, reproduce: Commands) -> str:
    return "\n".join(
        [
            what,
            then,
            textwrap.indent(evidence, "  "),
            _paragraph("How to fix", [fix]),
            _commands(reproduce),
        ]
    )


def _rule_block(rule_id: str, findings: Sequence[Finding], target: str, history: History) -> str:
    rule = load_catalogue().rule(rule_id)
    lines = [*textwrap.wrap(f"{rule.id} ({rule.level}) broken by {target}: {rule.sentence}", WIDTH)]
    for finding in findings[:3]:
        lines += _paragraph("Expected", [finding.expected]).splitlines()
        lines += _paragraph("Observed", [finding.observed, *finding.details[:6]]).splitlines()
        hidden = len(finding.details) - 6
        if hidden > 0:
            lines.append(f"  (and {hidden} more runs)")
    if len(findings) > 3:
        lines.append(f"  (and {len(findings) - 3} more findings of this rule)")
    for picture in pictures_of(findings, history).get(rule_id, ())[:1]:
        lines += lines_of(picture)
    lines += _paragraph("Why it matters", [rule.consequence]).splitlines()
    lines += _paragraph("How to fix", [rule.fix]).splitlines()
    if rule.evidence:
        lines += _paragraph("Source", [str(rule.evidence[0])]).splitlines()
    lines.append(f"More: kvconform explain {rule.id} ({rule_section(rule.id)})")
    return "\n".join(lines) + "\n"


def _commands(commands: Commands) -> str:
    """Each on one line, however long: they are copied."""
    lines = [commands] if isinstance(commands, str) else commands
    return "\n".join(("Reproduce: " if index == 0 else " " * 11) + line for index, line in enumerate(lines))


def _paragraph(title: str, sentences: Iterable[str]) -> str:
    head = f"{title}: "
    body = [line for sentence in sentences for line in _wrap(sentence, WIDTH - len(head))]
    return "\n".join((head if index == 0 else " " * len(head)) + line for index, line in enumerate(body))


def _wrapped(lines: Iterable[str]) -> list[str]:
    return [part for line in lines for part in _wrap(line, WIDTH - 2, indent="    ") or [""]]


def _wrap(text: str, width: int, *, indent: str = "") -> list[str]:
    """Lines of a text; paths and ids stay whole, because they are copied."""
    return textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def trace(history: History, findings: Sequence[Finding], requests: set[str]) -> list[str]:
    """The steps that lead to the first finding, restricted to the requests concerned; the oldest ones are cut."""
    first = min(findings, key=lambda finding: _order(history, finding.at)).at
    last = _order(history, first)
    lines = []
    for event in history.events[: last + 1]:
        line = _line(event, requests, event is first)
        if line is not None:
            lines.append(f"engine {event.engine} step {event.step:>2}  {line}")
    lines = list(dict.fromkeys(lines))
    if len(lines) > TRACE_LINES:
        lines = [f"... {len(lines) - TRACE_LINES} earlier lines cut", *lines[-TRACE_LINES:]]
    return lines


def _order(history: History, event: Event) -> int:
    return next((index for index, known in enumerate(history.events) if known is event), len(history.events) - 1)


def _line(event: Event, requests: set[str], is_finding: bool) -> str | None:
    match event:
        case ProgramAction(action=action, detail=detail):
            return f"scenario: {action} {detail.get('request', '')}".rstrip()
        case Scheduled(computed=computed, scheduled=scheduled):
            parts = [f"{r}: {n} tokens from position {computed[r]}" for r, n in scheduled.items()]
            preempted = [f"{r} preempted" for r in event.preempted]
            return "scheduled " + ", ".join(parts + preempted) if parts or preempted else None
        case HookCall(error=error) if error is not None:
            return f"{event.hook} RAISED {error}"
        case HookCall() if event.hook in _TOLD:
            return _hook_line(event, requests)
        case Tokens(request=request, finish_reason=reason) if reason is not None and (
            not requests or request in requests
        ):
            return f"{request} ended ({reason})"
        case WrongBytes() if is_finding:
            return f"WRONG BYTES in {event.layer} for {event.request}: {event.observed[0]}"
        case Arrived(wrong=wrong) if is_finding and wrong:
            return f"LOAD REPORTED AS COMPLETE with {wrong} tokens wrong in {event.layer} for {event.request}"
        case Stray() if is_finding:
            return f"STRAY WRITE to block {event.block} of {event.layer}, {event.phase}"
        case EngineRaised() if is_finding:
            return f"ENGINE DEAD during {event.during}: {event.error}"
        case _:
            return None


def _hook_line(call: HookCall, requests: set[str]) -> str | None:
    request = call.args.get("request")
    if request is not None and requests and request not in requests:
        return None
    if call.hook == "get_num_new_matched_tokens":
        answer = tuple(call.result) if isinstance(call.result, list) else call.result
        return f"get_num_new_matched_tokens({request}, {call.args['num_computed_tokens']}) -> {answer}"
    if call.hook == "update_state_after_alloc":
        blocks = ", ".join(map(str, call.args["block_ids"]))
        external = call.args["num_external_tokens"]
        return f"update_state_after_alloc({request}, blocks {blocks}, num_external_tokens={external})"
    if call.hook == "get_block_ids_with_load_errors":
        failed = call.result.get("set") if isinstance(call.result, dict) else call.result
        return f"get_block_ids_with_load_errors -> {failed}" if failed else None
    if call.hook == "reset_cache":
        return f"reset_cache() -> {call.result}"
    return f"{call.hook}({request}, {call.args['status']}) -> {call.result}"
