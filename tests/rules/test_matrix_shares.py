"""A share of the kill matrix: all shares together are the whole, and what is no share is refused."""

from __future__ import annotations

import click
import pytest
from kill_matrix import cover, share
from matrix_entries import read_entries


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_all_shares_together_are_the_whole(parts: int) -> None:
    entries = cover(read_entries())
    shares = [share(entries, f"{number + 1}/{parts}") for number in range(parts)]
    assert sorted(map(repr, entries)) == sorted(repr(entry) for one in shares for entry in one)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_every_third_has_mutants_and_legal_connectors() -> None:
    for which in ("1/3", "2/3", "3/3"):
        kinds = [entry.kind for entry in share(cover(read_entries()), which)]
        assert kinds.count("mutant") > 50
        assert kinds.count("odd") > 10


@pytest.mark.parametrize("which", ["", "0/2", "3/2", "1/0", "half", "-1/2", "1/2/3"])
def test_what_is_no_share_is_refused_in_one_sentence(which: str) -> None:
    with pytest.raises(click.UsageError, match=r"k/n with k from 1 to n"):
        share(read_entries(), which)
