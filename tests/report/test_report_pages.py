"""HTML, Markdown and badges: for people, and safe whatever a connector says."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest
from making import MUSTS, SHOULDS, TARGET, everything, make, result, seen

from kvconform.report import badge, html, markdown
from kvconform.report.document import VERDICTS, Document
from kvconform.rules import load_catalogue
from kvconform.verdicts import NOT_SET_UP, Verdict

NASTY = (
    "</script></pre><script>alert(1)</script> <img src=x onerror=y> \"q\" 'p' & \x1b[31mred\x1b[0m \x00\x07 \u202etxt"
)


class Page(HTMLParser):
    """Elements, attributes and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.script = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if not self._open:
            self.text += data
        elif self._open[-1] == "script":
            self.script += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def nasty() -> Document:
    results = [result(MUSTS[0], Verdict.FAIL, message=NASTY), result(MUSTS[1], Verdict.CRASH, message=f"{NASTY}\n" * 3)]
    return make(results, unusable={NASTY: NASTY}, command=(NASTY,), skip_reasons=(NASTY,))


def test_the_page_shows_every_rule_once_with_its_verdict() -> None:
    document = everything()
    page = Page(html.render(document))
    rules = [one for one in page.of("details") if "data-verdict" in one]
    (target,) = document.targets
    assert [one["data-verdict"] for one in rules] == [one.verdict for one in target.rules]
    assert {one["data-verdict"] for one in rules} == set(VERDICTS)
    assert len({one["id"] for one in rules}) == len(rules)
    opened = {one["data-verdict"] for one in rules if "open" in one}
    assert opened == {"fail", "crash", "timeout", "kit error"}
    for rule in load_catalogue().applicable("0.32.0"):
        assert rule.sentence in page.text
        assert rule.fix in page.text


def test_the_page_tells_who_what_when_and_what_is_missing() -> None:
    text = re.sub(r"\s+", " ", Page(html.render(everything())).text)
    for words in (
        TARGET,
        "kvconform 0.1.0 on vLLM 0.32.0, torch 2.13.0, Python 3.11.7 on Linux x86_64.",
        "2026-01-31 12:00:00 UTC",
        "Partial: this run says less than a whole one. 1 test was deselected (-k 'x')",
        "1 fail, 1 crash, 1 timeout, 1 kit error; 1 rule kept; 1 known failure, 1 flaky (partial run)",
        "3 external hits",
        "a warning's text",
        "my-store 1.2",
        "no test of the suites checks this rule yet.",
    ):
        assert words in text, words


def test_the_page_needs_no_network_and_runs_its_own_script_only() -> None:
    text = html.render(nasty())
    page = Page(text)
    assert not page.of("link") + page.of("img") + page.of("iframe") + page.of("object")
    assert len(page.of("script")) == 1
    assert page.of("script")[0] == {}
    (policy,) = [one["content"] for one in page.of("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert all(str(one["href"]).startswith("#") for one in page.of("a"))


def test_what_a_connector_says_is_text() -> None:
    page = Page(html.render(nasty()))
    assert "</script></pre><script>alert(1)</script> <img src=x onerror=y>" in page.text
    assert "alert(1)" not in page.script
    assert "\\x00\\x07 \\u202etxt" in page.text
    for character in "\x00\x07\x1b\u202e":
        assert character not in page.text


def test_the_page_works_without_its_script() -> None:
    page = Page(html.render(everything()))
    (bar,) = [attributes for _, attributes in page.elements if attributes.get("id") == "filter"]
    assert "hidden" in bar
    assert not [one for one in page.of("details") if "hidden" in one]


def test_labels_of_a_failure_text_stand_out_and_nothing_is_lost() -> None:
    text = "SIG-01 broken\nExpected: a\n  Observed: b\nNot a label: c"
    assert html.labelled(text)[1:3] == [("", "Expected:", " a"), ("  ", "Observed:", " b")]
    assert "\n".join("".join(parts) for parts in html.labelled(text)) == text


def test_texts_beyond_the_first_are_folded_away_and_counted() -> None:
    results = [result(MUSTS[0], Verdict.FAIL, nodeid=f"t{i:02}", message=f"text {i:02}") for i in range(25)]
    text = Page(html.render(make(results))).text
    assert "18 more texts of other tests" in text
    assert "5 texts more left out of the report" in text


def test_several_connectors_and_own_tests_have_their_sections() -> None:
    results = [result(MUSTS[0], Verdict.PASS), result("ACME-1", Verdict.FAIL, target="", message="own")]
    text = Page(html.render(make(results, exit_status=1))).text
    assert "Tests without a connector" in text
    assert "This rule is not in the catalogue." in text


def test_a_report_on_nothing_is_a_page() -> None:
    assert "Nothing was shown" in Page(html.render(make([]))).text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0123, "12 ms"), (3.14, "3.1 s"), (150, "2 min 30 s"), (7290, "2 h 1 min")]
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert html._seconds(seconds) == text


# --- Markdown ---------------------------------------------------------------------------------------------------------


def test_markdown_shows_counts_and_what_needs_attention() -> None:
    text = markdown.render(everything())
    assert "### my.module:MyConnector" in text
    assert "**1 fail, 1 crash, 1 timeout, 1 kit error; 1 rule kept; 1 known failure, 1 flaky**" in text
    assert "**Partial run:**\n\n- 1 test was deselected (-k 'x')" in text
    rows = re.findall(r"^\| \S+ ([a-z ]+) \| ([A-Z]+-\d+) \| (MUST|SHOULD) \|", text, re.MULTILINE)
    assert [row[0] for row in rows] == [
        "fail", "crash", "timeout", "kit error", "known failure", "flaky", "warn",
    ]  # fmt: skip
    assert rows[-1][1:] == (SHOULDS[0], "SHOULD")
    assert "```text\na warning's text\n```" in text


def test_markdown_of_a_good_run_has_no_table_of_rules() -> None:
    text = markdown.render(make([result(MUSTS[0], Verdict.PASS)]))
    assert "**1 rule kept, none broken**" in text
    assert "| verdict |" not in text
    assert "Partial" not in text


def test_markdown_shows_nasty_texts_as_they_are() -> None:
    text = markdown.render(nasty())
    outside = re.sub(r"^(`{3,})text\n.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"(?<!\\)<(?!/?(details|summary)>)", outside)
    assert "\x00" not in text
    assert markdown.escape("a|b\n@me #12 http://x [l](u) *b* <i>") == (
        "a\\|b @\u200bme #\u200b12 http:\u200b//x \\[l\\](u) \\*b\\* \\<i\\>"
    )


def test_backticks_cannot_end_the_block() -> None:
    text = markdown.render(make([result(MUSTS[0], Verdict.FAIL, message="a\n`````\n# not a heading")]))
    assert "``````text\na\n`````\n# not a heading\n``````" in text


def test_markdown_stays_small() -> None:
    results = [result(rule, Verdict.FAIL, message=f"{rule} {'x' * 100_000}") for rule in MUSTS]
    text = markdown.render(make(results))
    assert len(text) < 500_000
    assert f"The texts of {len(MUSTS) - 40} more rules are in the report." in text
    assert "characters cut ...]" in text


# --- badges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdicts", "facts", "message", "colour"),
    [
        ([Verdict.PASS], {}, "1 pass", "brightgreen"),
        ([Verdict.PASS, Verdict.INCONCLUSIVE], {}, "1 pass, 1 inconclusive", "brightgreen"),
        ([Verdict.PASS, Verdict.FAIL], {}, "1 fail", "red"),
        ([Verdict.FAIL, Verdict.CRASH, Verdict.TIMEOUT], {}, "1 fail, 1 crash", "red"),
        ([Verdict.PASS, Verdict.TIMEOUT], {}, "1 timeout", "red"),
        ([Verdict.KIT_ERROR], {}, "1 kit error", "orange"),
        ([Verdict.INCONCLUSIVE], {}, "1 inconclusive", "lightgrey"),
        ([], {}, "nothing shown", "lightgrey"),
        ([Verdict.PASS], {"tests": "missing"}, "1 pass, partial", "yellowgreen"),
        ([Verdict.FAIL], {"tests": "missing"}, "1 fail, partial", "red"),
        ([Verdict.PASS], {"unusable": {"a:B": "no."}}, "not tested, partial", "red"),
    ],
)
def test_a_badge_has_the_colour_of_the_worst_verdict(
    verdicts: list[Verdict], facts: dict[str, object], message: str, colour: str
) -> None:
    results = [result(rule, verdict, message="m") for rule, verdict in zip(MUSTS, verdicts, strict=False)]
    if facts.pop("tests", None):
        facts["tests"] = [*(seen(one.rule) for one in results), seen("X-1", "deselected")]
    document = make(results, **facts)
    assert badge.badge(document) == badge.Badge(message, colour)
    assert json.loads(badge.endpoint(document)) == {
        "schemaVersion": 1,
        "label": "kvconform",
        "message": message,
        "color": colour,
    }
    root = ET.fromstring(badge.svg(document))
    assert [one.text for one in root.iter("{http://www.w3.org/2000/svg}text")] == ["kvconform", message]


def test_a_connector_that_did_not_start_is_told_in_its_own_words() -> None:
    words = f"{NOT_SET_UP}: needs <CUDA>"
    document = make([result(rule, Verdict.INCONCLUSIVE, message=words) for rule in MUSTS[:3]], exit_status=1)
    assert badge.badge(document) == badge.Badge("not set up", "red")
    assert "**Not set up:** my.module:MyConnector: the connector could not be set up: needs \\<CUDA\\>" in (
        markdown.render(document)
    )
    page = html.render(document)
    assert '<p class="verdict-line bad">the connector could not be set up: needs &lt;CUDA&gt;</p>' in page
    assert make([result(MUSTS[0], Verdict.INCONCLUSIVE, message="no hit")]).targets[0].not_set_up == ""


def test_a_warning_makes_the_badge_yellow() -> None:
    document = make([result(MUSTS[0], Verdict.PASS), result(SHOULDS[0], Verdict.FAIL, message="m")])
    assert badge.badge(document) == badge.Badge("1 pass, 1 warn", "yellow")
