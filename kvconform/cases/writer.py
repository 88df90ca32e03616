"""Keeping the failing scenarios of a run as files, bounded in number and size. Works in every process of a run."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

import kvconform
from kvconform.api import release_of
from kvconform.cases.folder import cases_folder
from kvconform.cases.model import Case, How, Observation, Situation, Tested, dumps, to_data
from kvconform.checks.model import Finding
from kvconform.config import RunConfig
from kvconform.report.json_report import write_text
from kvconform.report.masking import Masker, mask_settings, secrets_in
from kvconform.scenario.family import Family
from kvconform.scenario.program import Program
from kvconform.target import Target

#: Files in the folder. Those of earlier runs make room for new ones; beyond that, failures are not kept.
MAX_FILES = 200
#: Of one file; a scenario that needs more is not kept.
MAX_BYTES = 256 * 1024
_MAX_OBSERVATIONS, _MAX_TEXT = 20, 2_000
_SUFFIX = ".case.json"


@dataclass
class CaseWriter:
    """Writes the cases of one run into one folder.

    Args:
        folder: is made when it is needed.
        own: whether the folder is the kit's own, which version control should leave alone.
    """

    folder: Path
    own: bool = False
    started: float = field(default_factory=time.time)

    @classmethod
    def of(cls, config: pytest.Config) -> CaseWriter:
        """The writer of a run."""
        return cls(cases_folder(config), own=not config.option.kvconform_cases)

    def save(
        self,
        target: Target,
        config: RunConfig,
        test: str,
        family: Family,
        program: Program,
        *,
        rules: Sequence[str],
        how: How = "fail",
        findings: Sequence[Finding] = (),
    ) -> Path | None:
        """Keep one failing scenario.

        Returns:
            The file, named after the connector, the first rule, the scenario and what is in it, so that the same
            failure has the same name in every run. None if it was not kept: there are too many, it is too large, or
            the folder cannot be written to. That must not cost a verdict.
        """
        case = _case(target, config, test, family, program, rules=rules, how=how, findings=findings)
        text = dumps(case)
        if len(text) > MAX_BYTES:
            return None
        path = self.folder / _name(case)
        try:
            if not path.exists() and not self._has_room():
                return None
            if self.own and not self.folder.exists():
                write_text(self.folder / ".gitignore", "# made by kvconform\n*\n")
            write_text(path, text)
        except OSError:
            return None
        return path

    def _has_room(self) -> bool:
        """Whether there is room for one more file, after an older run's oldest one has gone if need be."""
        if not self.folder.is_dir():
            return True
        files = list(self.folder.glob(f"*{_SUFFIX}"))
        if len(files) < MAX_FILES:
            return True
        oldest = min(files, key=lambda file: file.stat().st_mtime)
        if oldest.stat().st_mtime >= self.started:
            return False
        oldest.unlink(missing_ok=True)
        return True


def _case(
    target: Target,
    config: RunConfig,
    test: str,
    family: Family,
    program: Program,
    *,
    rules: Sequence[str],
    how: How,
    findings: Sequence[Finding],
) -> Case:
    secrets = secrets_in(dict(config.kv_connector_extra_config)) | secrets_in({**config.env, **config.engine_env})
    clean = Masker(secrets)

    def text(words: str) -> str:
        return clean(words.encode("utf-8", "backslashreplace").decode("utf-8"))[:_MAX_TEXT]

    return Case(
        kit=kvconform.__version__,
        vllm=release_of(config.resolved_engine),
        connector=Tested(
            spec=target.spec,
            id=target.id,
            kv_role=config.kv_role,
            capabilities=tuple(config.capabilities),
            device=config.resolved_device,
            timeout=config.timeout,
            kv_connector_extra_config=mask_settings(dict(config.kv_connector_extra_config)),
        ),
        test=test,
        seed=config.seed,
        how=how,
        rules=tuple(dict.fromkeys(rules)),
        situations=tuple(_situations(family, program, how, findings)),
        observations=tuple(
            Observation(finding.rule, text(finding.expected), text(finding.observed))
            for finding in findings[:_MAX_OBSERVATIONS]
        ),
        program=program,
    )


def _situations(family: Family, program: Program, how: How, findings: Sequence[Finding]) -> Iterator[Situation]:
    """The family and those of which it is a case, each with its control, as plain data.

    Where a family's own code chooses the rule of a symptom, it is the one that was chosen in the run.
    """
    bound = next((finding.rule for finding in findings if finding.symptom and finding.rule not in family.keeps), None)
    member: Family | None = family
    while member is not None:
        rule = bound if member.sort is not None and bound is not None else member.rule
        # What hung or crashed may have been the control itself.
        control = member.control(program) if member.control is not None and how == "fail" else None
        shown = None if member.shown is None else member.shown.name
        yield Situation(member.name, rule, member.situation, tuple(sorted(member.keeps)), control, shown)
        member = member.general


def _name(case: Case) -> str:
    """Same failure, same name, whatever versions found it and with what numbers."""
    facts = to_data(replace(case, kit="", vllm=None, observations=(), seed=0))
    content = json.dumps([facts[key] for key in ("program", "rules", "how", "test", "connector")], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:10]
    parts = (case.connector.id.rpartition(":")[2], case.rules[0], case.program.name)
    slug = "-".join(re.sub(r"[^A-Za-z0-9]+", "-", part).strip("-")[:40] for part in parts)
    return f"{slug}-{digest}{_SUFFIX}"
