"""What trials have shown of a connector's store, in the forms of a report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from making import as_data, facts_of, sealed

from kvconform.report import html, markdown
from kvconform.report.building import build_document
from kvconform.report.document import Document
from kvconform.report.json_report import dumps, from_data, read, schema_problems
from kvconform.report.verify import verify
from kvconform.rules import load_catalogue

SENTENCES = ("keeps KV in chunks of <256> tokens", "stores in the background")


def document(*trials: str) -> Document:
    facts = facts_of()
    return build_document(replace(facts, targets=(replace(facts.targets[0], trials=trials),)), load_catalogue())


def test_trials_follow_the_schema_and_come_back_as_they_were(tmp_path: Path) -> None:
    data = as_data(document(*SENTENCES))
    assert schema_problems(data) == []
    assert not verify(data, load_catalogue(), frozenset()).problems
    file = tmp_path / "report.json"
    file.write_text(dumps(document(*SENTENCES)), encoding="utf-8")
    assert read(file).targets[0].trials == SENTENCES


def test_a_report_of_before_there_were_trials_can_be_read() -> None:
    data = as_data(document())
    for target in data["targets"]:
        del target["trials"]
    assert schema_problems(sealed(data)) == []
    assert from_data(data).targets[0].trials == ()
    assert not verify(sealed(data), load_catalogue(), frozenset()).problems


def test_pages_say_what_trials_have_shown_and_nothing_where_they_have_shown_nothing() -> None:
    page = html.render(document(*SENTENCES))
    assert "<dt>Trials</dt><dd>it keeps KV in chunks of &lt;256&gt; tokens<br>it stores in the background</dd>" in page
    assert "<dt>Trials</dt>" not in html.render(document())
    text = markdown.render(document(*SENTENCES))
    assert "- It stores in the background." in text
    assert "\n- It " not in markdown.render(document())
