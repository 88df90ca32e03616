"""What a scenario family is, and what all of them are made of.

Each family is one situation. ``examples`` always run; ``strategy`` draws more. ``control`` is the same program without
the situation: if the control is right and the family is not, the situation's own rule is broken, not the general one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from kvconform.checks.model import Finding, Situation
from kvconform.engine.history import History
from kvconform.engine.options import EngineOptions, Runner
from kvconform.kvcache.shape import BLOCK_SIZE, KVCacheShape
from kvconform.scenario.program import Action, Add, Drain, ForgetLocal, Program, RequestSpec

Strategy = st.SearchStrategy[Program]
#: (seed, length) segments.
Prompt = tuple[tuple[int, int], ...]
BLOCK = BLOCK_SIZE
PLAIN = KVCacheShape()
RUNNERS: tuple[Runner, ...] = ("v2", "v1")


@dataclass(frozen=True)
class Family:
    """One situation. ``situation`` completes the sentence "The connector is right without ...": "chunked prefill".

    ``keeps`` are rules whose findings stay theirs, because this very situation is what they are about; ``explain``
    adds a sentence about a failing history. ``sort`` names the rule of a symptom where the situation is about several;
    ``general`` is the family of which this one is a special case: it decides if the control shows symptoms, too, or
    loads nothing. Findings of the rules ``alike`` are symptoms here; if the control breaks one of them as well, it is
    the reason for findings of the family's own chapter. ``more`` times as many programs as of another are drawn.
    ``shown`` is what has to be seen for rules without a check of their own; for other families that is compared loads.
    """

    name: str
    rule: str
    examples: tuple[Program, ...]
    strategy: Strategy
    situation: str = ""
    control: Callable[[Program], Program] | None = None
    explain: Callable[[History], str] | None = None
    keeps: frozenset[str] = frozenset()
    sort: Callable[[History, Finding], str] | None = None
    general: Family | None = None
    more: int = 1
    alike: frozenset[str] = frozenset()
    shown: Situation | None = None


def if_wrong_bytes(rule: str) -> Callable[[History, Finding], str]:
    """Wrong bytes are a wrong key's; an exception has reasons of its own."""
    return lambda _, finding: rule if finding.rule == "LOAD-01" else finding.rule


def program(name: str, actions: Sequence[Action], **options: object) -> Program:
    """A program with these :class:`EngineOptions`."""
    return Program(name, EngineOptions(**options), tuple(actions))  # type: ignore[arg-type]


def store_then_reload(
    prompts: Sequence[tuple[tuple[int, int], ...]], max_tokens: int = 1, first: int = 0
) -> list[Action]:
    """Compute every prompt once, drop the local prefix cache, and ask for each again; ids count from ``first``."""
    stored = [Add(RequestSpec(f"store{i}", prompt, max_tokens)) for i, prompt in enumerate(prompts, first)]
    reload = [Add(RequestSpec(f"reload{i}", prompt, max_tokens)) for i, prompt in enumerate(prompts, first)]
    actions: list[Action] = []
    for add in stored:
        actions += [add, Drain()]
    actions.append(ForgetLocal())
    for add in reload:
        actions += [add, Drain()]
    return actions
