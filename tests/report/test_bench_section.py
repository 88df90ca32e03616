"""Figures of ``--kvconform-bench`` in every form of the report, honest about what there is none of, and old reports."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from making import as_data, facts_of, result, sealed

from kvconform.bench.figures import Cost, Measured, Measurement, Rate, not_measured
from kvconform.report import html, markdown
from kvconform.report.bench_plot import HEIGHT, WIDTH, plot
from kvconform.report.bench_section import MARK, Chart, Curve, charts, remarks, seconds, size, tables, terminal_lines
from kvconform.report.building import build_document
from kvconform.report.compare import compare
from kvconform.report.document import Document
from kvconform.report.json_report import dumps, from_data, read, schema_problems
from kvconform.report.verify import verify
from kvconform.rules import load_catalogue
from kvconform.verdicts import Verdict

BLOCK = 65536


def case(layout: str, blocks: int, speed: float, **more: Any) -> Measured:
    """Saves at ``speed`` GB/s and loads twice as fast, beside a memcpy of 10 GB/s."""
    moved = blocks * BLOCK
    return Measured(
        layout,
        blocks,
        BLOCK,
        save=Rate(5, moved, speed * 1e9, 0.1, speed / 10),
        load=Rate(5, moved, 2 * speed * 1e9, 0.5, speed / 5),
        memcpy=Rate(10, moved, 10e9, 0.02),
        steps=(
            Cost("worker hooks", "store", 5, 0.01, 0.02),
            Cost("worker hooks", "load", 5, 1.5, 2.5),
            Cost("worker hooks", "decode", 55, 12.34e-6, 0.5e-6),
        ),
        hooks=(
            Cost("request_finished", "store", 5, 3e-6, 4e-6),
            Cost("build_connector_meta", "decode", 55, 1e-6, 2e-6),
        ),
        **more,
    )


MEASURED = Measurement(
    "",
    "cpu",
    2,
    4,
    2.5e-7,
    0.1,
    (
        case("LBNHC", 8, 0.5),
        case("LBNHC", 64, 1.0),
        case("LBHNC", 8, 0.25, asynchronous_load=True, held_for_save=True),
        Measured("LBHNC", 64, problem="the connector's process exited with code 3"),
        Measured("hybrid", 8, problem="no groups <b>"),
    ),
)
NOTHING = replace(
    MEASURED,
    cases=(replace(MEASURED.cases[0], save=Rate(note="nothing came back"), load=Rate(note="no hit")),),
)


def document(bench: Measurement | None) -> Document:
    facts = facts_of([result("SIG-01", Verdict.PASS)])
    return build_document(replace(facts, targets=(replace(facts.targets[0], bench=bench),)), load_catalogue())


def text(measurement: Measurement) -> str:
    return "\n".join(terminal_lines("m:C", measurement))


def test_the_terminal_shows_bandwidth_its_share_of_memcpy_and_what_is_doubtful() -> None:
    shown = text(MEASURED)
    assert re.search(r"^ +LBNHC +8 +512 KiB +0\.500 +5\.0% +1\.00 \? +10% +10\.0$", shown, re.MULTILINE), shown
    assert re.search(
        r"^ +LBNHC +8 +12\.3 us \(0\.500 us\) +10\.0 ms \(20\.0 ms\) +1\.50 s \(2\.50 s\)$", shown, re.MULTILINE
    )
    assert re.search(r"^ +request_finished +saving +3\.00 us \(4\.00 us\) +3\.00 us \(4\.00 us\)$", shown, re.MULTILINE)
    assert MARK in shown
    assert "no verdict" in shown
    assert "busy" not in shown


def test_what_was_not_measured_is_said_with_its_reason_and_where() -> None:
    said = list(remarks(MEASURED))
    assert "LBHNC, from 64 blocks on: not measured: the connector's process exited with code 3" in said
    assert "hybrid: not measured: no groups <b>" in said
    assert "Loads were asynchronous and synchronous." in said
    assert text(not_measured("not measured: a pair", "cpu")).splitlines() == [
        "m:C: figures for information, no verdict",
        "  not measured: a pair",
    ]


def test_without_a_figure_there_is_a_dash_and_a_sentence_and_no_plot_of_memcpy_alone() -> None:
    shown = text(NOTHING)
    assert re.search(r"^ +LBNHC +8 +512 KiB +- +- +- +- +10\.0$", shown, re.MULTILINE)
    assert "save: nothing came back" in shown
    assert "load: no hit" in shown
    assert [chart.unit for chart in charts(NOTHING)] == ["s"]


def test_what_counts_of_a_sliding_window_is_said_where_one_was_measured() -> None:
    window = "hybrid: of a sliding window only the blocks that a load needs count, for the save too."
    assert window not in remarks(MEASURED)
    assert window in remarks(replace(MEASURED, cases=(case("hybrid", 8, 1.0),)))


def test_a_note_of_some_cases_names_them() -> None:
    few = replace(MEASURED.cases[1], load=replace(MEASURED.cases[1].load, note="32 of 64 blocks came back"))
    said = list(remarks(replace(MEASURED, cases=(MEASURED.cases[0], few))))
    assert "load: 32 of 64 blocks came back (LBNHC 64)" in said


def test_what_is_faster_than_memory_is_said_and_marked() -> None:
    fast = replace(MEASURED.cases[0], save=Rate(5, BLOCK, 49e9, 0.01, 17.0))
    shown = text(replace(MEASURED, cases=(fast,)))
    assert re.search(r"^ +LBNHC +8 +512 KiB +49\.0 \? +1700%", shown, re.MULTILINE)
    assert "save: faster than memcpy: " in shown


def test_a_busy_machine_is_said_before_all_figures() -> None:
    lines = text(replace(MEASURED, others=1.3)).splitlines()
    assert lines[2] == "  The machine was busy: other processes took 1.3 cores on average. Read all figures with care."
    assert "is not known" in text(replace(MEASURED, others=None))


def test_durations_and_sizes_have_three_digits() -> None:
    assert [seconds(value) for value in (0, 2.5e-7, 1.234e-5, 0.0123, 1.5, 150)] == [
        "0 us", "0.250 us", "12.3 us", "12.3 ms", "1.50 s", "150 s",
    ]  # fmt: skip
    assert [size(count) for count in (512, 65536, 1 << 26)] == ["0.500 KiB", "64.0 KiB", "64.0 MiB"]


def test_charts_have_a_curve_for_each_layout_with_memcpy_as_its_reference() -> None:
    save, load, steps = charts(MEASURED)
    assert [(curve.name, curve.reference) for curve in save.curves] == [
        ("LBNHC", False), ("memcpy, LBNHC", True), ("LBHNC", False), ("memcpy, LBHNC", True),
    ]  # fmt: skip
    assert save.curves[0].points == ((8, 0.5), (64, 1.0))
    assert load.curves[0].points == ((8, 1.0), (64, 2.0))
    assert [curve.name for curve in steps.curves] == ["nothing to transfer", "saving", "loading"]


def test_a_plot_puts_more_blocks_to_the_right_and_higher_figures_above() -> None:
    drawn = plot(charts(MEASURED)[0])
    (first, second) = drawn.lines[0].dots
    assert first[0] < second[0]
    assert first[1] > second[1]
    assert [tick.text for tick in drawn.x_ticks] == ["8", "64"]
    assert [tick.text for tick in drawn.y_ticks] == ["0.1", "1", "10"]
    assert drawn.lines[1].reference
    assert "LBNHC: 0.5 GB/s with 8 blocks, 1 GB/s with 64 blocks;" in drawn.description
    for line in drawn.lines:
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y, _ in line.dots)


def test_seconds_are_drawn_with_their_unit() -> None:
    drawn = plot(charts(MEASURED)[2])
    assert [tick.text for tick in drawn.y_ticks] == ["10 us", "100 us", "1 ms", "10 ms", "100 ms", "1 s", "10 s"]
    assert "nothing to transfer: 12.3 us with 8 blocks, 12.3 us with 64 blocks;" in drawn.description
    tiny = plot(Chart("Step", "s", (Curve("a", 0, False, ((8, 2e-7),)),)))
    assert [tick.text for tick in tiny.y_ticks] == ["0.1 us", "1 us"]


@pytest.mark.parametrize("value", [1.0, 10.0, 0.1, 1.1e-9, 1e6, 1e15])
def test_one_point_of_any_size_can_be_drawn(value: float) -> None:
    drawn = plot(Chart("Save", "GB/s", (Curve("a", 0, False, ((8, value),)),)))
    ((x, y, _),) = drawn.lines[0].dots
    assert drawn.left < x < drawn.right
    assert drawn.top <= y <= drawn.bottom


def test_figures_that_no_axis_has_a_place_for_are_left_out_of_the_plots() -> None:
    none = replace(MEASURED.cases[0], save=Rate(1, 0, 0.0), load=Rate(1, 0, 0.0), steps=())
    assert charts(replace(MEASURED, cases=(none,))) == ()


def test_the_page_has_plots_and_tables_and_every_text_is_only_text() -> None:
    evil = replace(MEASURED, cases=(*MEASURED.cases, case("<script>alert(1)</script>", 8, 1.0)))
    page = html.render(document(evil))
    assert "<script>alert" not in page
    assert "no groups <b>" not in page
    assert "no groups &lt;b&gt;" in page
    pictures = re.findall(r"<svg viewBox.*?</svg>", page, re.DOTALL)
    assert len([one for one in pictures if 'role="img"' in one]) == 3
    for one in pictures:
        ET.fromstring(one)  # closed, escaped
    assert page.count('<table class="capabilities figures">') == 2 + 3
    assert page.count("no verdict rests on it") == 1
    assert '<details class="more"><summary>Scheduler-side hooks' in page
    section = page[page.index('<section class="bench">') :]
    assert section.index("</details>") < section.index("</section>")


def test_without_a_measurement_no_form_speaks_of_speed() -> None:
    assert "Speed" not in html.render(document(None))
    assert "Speed" not in markdown.render(document(None))


def test_a_page_of_nothing_measured_has_the_reason_and_no_table() -> None:
    page = html.render(document(not_measured("not measured: a pair", "cpu")))
    assert "not measured: a pair" in page
    assert 'class="capabilities figures"' not in page


def test_markdown_has_the_tables_and_the_reasons() -> None:
    page = markdown.render(document(MEASURED))
    assert "### Speed of my.module:MyConnector" in page
    assert re.search(
        r"^\| LBNHC \| 8 \| 512 KiB \| 0\.500 \| 5\.0% \| 1\.00 \? \| 10% \| 10\.0 \|$", page, re.MULTILINE
    )
    assert page.count("<details><summary>Scheduler-side hooks, one by one</summary>") == 1
    assert r"no groups \<b\>" in page


def test_a_report_with_figures_follows_the_schema_is_accepted_and_comes_back_as_it_was(tmp_path: Path) -> None:
    data = as_data(document(MEASURED))
    assert schema_problems(data) == []
    assert not verify(data, load_catalogue(), frozenset()).problems
    file = tmp_path / "report.json"
    file.write_text(dumps(document(MEASURED)), encoding="utf-8")
    assert read(file).targets[0].bench == MEASURED


def test_a_report_of_before_there_were_figures_can_be_read(tmp_path: Path) -> None:
    data = as_data(document(None))
    for target in data["targets"]:
        del target["bench"]
    old = from_data(data)
    assert schema_problems(sealed(data)) == []
    assert old.targets[0].bench is None
    assert not verify(sealed(data), load_catalogue(), frozenset()).problems
    assert compare(old, document(MEASURED)).changes == ()
    html.render(old)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("cases", 0, "save", "bytes_per_second"), -1),
        (("cases", 0, "save", "bytes_per_second"), 1e300),
        (("cases", 0, "blocks"), 0),
        (("cases", 0, "steps", 0, "when"), "always"),
        (("cases", 0, "verdict"), "pass"),
        (("clock",), None),
    ],
)
def test_figures_that_cannot_be_are_refused(path: tuple[Any, ...], value: Any) -> None:
    data = as_data(document(MEASURED))
    at: Any = data["targets"][0]["bench"]
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    assert len(schema_problems(data)) >= 1


def test_secrets_that_a_connector_repeats_are_masked() -> None:
    facts = facts_of(secrets=frozenset({"hunter2hunter2"}))
    problem = "OSError: cannot log in with hunter2hunter2, password=open"
    bench = replace(MEASURED, cases=(Measured("LBNHC", 8, problem=problem),), reason="token hunter2hunter2")
    built = build_document(replace(facts, targets=(replace(facts.targets[0], bench=bench),)), load_catalogue())
    assert "hunter2" not in dumps(built)
    assert "=open" not in dumps(built)


def test_verdicts_counts_and_levels_are_those_of_a_run_without_figures() -> None:
    with_figures, without = as_data(document(MEASURED)), as_data(document(None))
    for data in (with_figures, without):
        del data["digest"]
        del data["targets"][0]["bench"]
    assert json.dumps(with_figures) == json.dumps(without)


def test_tables_of_every_layout_are_in_the_report() -> None:
    assert [table.caption.partition(",")[0] for table in tables(MEASURED)] == [
        "Bandwidth", "Worker-side hooks in an engine step", "Scheduler-side hooks per call",
        "Scheduler-side hooks per call",
    ]  # fmt: skip
