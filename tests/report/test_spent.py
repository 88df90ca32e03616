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


def test_what_was_waited_for_is_said_of_each_connector_with_the_longest_of_several_processes() -> None:
    spent = Spent(1, store_delays={"a:A": 0.03}) + Spent(1, store_delays={"a:A": 0.15, "b:B": 0.6})
    spent += Spent(1, store_delays={"a:A": 0.03}) - Spent(1)
    assert spent.store_delays == {"a:A": 0.15, "b:B": 0.6}
    (sentence,) = spent.trials("a:A", loading=True)
    assert sentence.startswith("stores in the background: scenarios wait 0.15 s before they look for what it stored")
    assert sentence.endswith("(store_delay = 0.15 in the configuration does without the trial)")
    assert "0.6 s" in spent.trials("b:B", loading=True)[0]
    assert spent.trials("c:C", loading=False) == ()


def test_the_size_of_chunks_is_said() -> None:
    spent = Spent(1, chunk_sizes={"a:A": 256}) + Spent(1, store_delays={"a:A": 0.06}) - Spent(1)
    size, delay = spent.trials("a:A", loading=True)
    assert size.startswith("keeps KV in chunks of 256 tokens: prompts have a chunk wherever others have a block")
    assert size.endswith("(chunk_size = 256 in the configuration does without the trial)")
    assert delay.startswith("stores in the background")


def test_what_finds_the_kv_of_earlier_scenarios_is_said_with_what_was_done_about_it() -> None:
    spent = Spent(1, outliving={"a:A": "one model"}) + Spent(1, outliving={"b:B": "any model"}) - Spent(1)
    (helped,), (in_vain,) = (spent.trials(target, loading=True) for target in ("a:A", "b:B"))
    assert helped.startswith("finds what earlier scenarios have stored: each scenario's model has a name of its own")
    assert in_vain.startswith("finds what earlier scenarios have stored: what is said to be broken may come from that")


def test_that_nothing_was_found_is_said_of_those_that_never_loaded_anything() -> None:
    spent = Spent(1, chunk_sizes={"a:A": 0})
    (sentence,) = spent.trials("a:A", loading=False)
    assert sentence.startswith("has found nothing of any prompt that was computed before: what only loads can show")
    assert spent.trials("a:A", loading=True) == ()


def test_nothing_is_said_where_nothing_was_played() -> None:
    assert Spent().sentence(5.0) == ""


def test_clocks_that_disagree_give_no_negative_rest() -> None:
    assert Spent(1, 5.2, 1.0).sentence(6.0).endswith("the rest 0 s")
