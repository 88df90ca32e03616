"""Where the time of a run went, as the terminal says it."""

from __future__ import annotations

from kvconform.report.spent import Spent


def test_time_of_one_process_adds_up_to_the_total() -> None:
    spent = Spent(3, 4.0, 10.0) + Spent(1, 2.0, 0.0)
    assert spent.sentence(20.4) == "Time: 20 s; 4 scenarios 6 s, starting 10 s, the rest 4 s"


def test_time_of_several_processes_is_theirs_added_up_and_no_share_of_the_total() -> None:
    assert Spent(8, 30.0, 24.0).sentence(31.0, 2) == "Time: 31 s; 8 scenarios 30 s, starting 24 s in 2 processes"


def test_what_was_told_before_is_not_told_again() -> None:
    assert Spent(8, 30.0, 24.0) - Spent(6, 10.0, 24.0) == Spent(2, 20.0, 0.0)


def test_nothing_is_said_where_nothing_was_played() -> None:
    assert Spent().sentence(5.0) == ""


def test_clocks_that_disagree_give_no_negative_rest() -> None:
    assert Spent(1, 5.2, 1.0).sentence(6.0).endswith("the rest 0 s")
