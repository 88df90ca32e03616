"""No secrets in a report, and no holes in what is none."""

from __future__ import annotations

import time
from datetime import date
from typing import Any

import pytest
from making import MUSTS, entry, make, result

from kvconform.report.masking import Masker, looks_secret, mask_settings, mask_text, secrets_in
from kvconform.verdicts import Verdict


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("password", "x"),
        ("db_password", 1234),
        ("apiKey", "x"),
        ("API_KEY", "x"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("hf_token", "x"),
        ("accessToken", "x"),
        ("credentials", {"user": "x"}),
        ("Authorization", "Basic x"),
        ("auth-token", ["x"]),
        ("token", 99),
    ],
)
def test_values_of_telling_keys_are_hidden(key: str, value: object) -> None:
    assert looks_secret(key, value)
    assert mask_settings({"outer": {key: value}}) == {"outer": {key: "***"}}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_tokens", 512),
        ("num_tokens_per_chunk", 16),
        ("max_token_len", 9),
        ("use_key", True),
        ("token", None),
        ("monkey", "x"),
        ("keyboard", "x"),
        ("author", "x"),
        ("path", "{dir}"),
    ],
)
def test_other_values_stay(key: str, value: object) -> None:
    assert mask_settings({key: value}) == {key: value}


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("redis://:hunter2@host:1/0", "redis://***@host:1/0"),
        ("see http://user:pw@h/x and ftp://a@b.", "see http://***@h/x and ftp://***@b."),
        ("https://h/x?token=abc&n=1", "https://h/x?token=***&n=1"),
        ("AccountKey=abc123==;Host=h", "AccountKey=***;Host=h"),
        ('{"api_key": "abc", "n": 1}', '{"api_key": "***", "n": 1}'),
        ("Authorization: Bearer abcdefghijk", "Authorization: Bearer ***"),
        ("max_tokens=16, next_token=7", "max_tokens=16, next_token=7"),
        ("password=1234", "password=***"),
        ("mail@host and a//b@c", "mail@host and a//b@c"),
    ],
)
def test_secrets_inside_texts_are_hidden(text: str, masked: str) -> None:
    assert mask_text(text) == masked


def test_settings_become_plain_json() -> None:
    given: dict[str, Any] = {"when": date(2026, 1, 31), "far": float("inf"), "list": (1, "a"), 3: 4.5}
    assert mask_settings(given) == {"when": "2026-01-31", "far": "inf", "list": [1, "a"], "3": 4.5}


def test_what_a_connector_repeats_of_its_configuration_is_hidden() -> None:
    settings = {"url": "redis://u:hunter2@h", "nested": {"secret": {"a": ["s3cr3t-value"]}}, "pwd": "abc", "key": "a"}
    secrets = secrets_in(settings)
    assert {"hunter2", "s3cr3t-value", "abc"} <= secrets
    message = "login hunter2 refused, tried s3cr3t-value and abc, not abcdef; a connector"
    (text,) = entry(make([result(MUSTS[0], Verdict.FAIL, message=message)], secrets=secrets), MUSTS[0]).messages
    assert text == "login *** refused, tried *** and ***, not abcdef; a connector"


def test_the_command_and_other_sentences_are_masked() -> None:
    document = make(
        [],
        command=("--opt=redis://u:p@h",),
        unusable={"a:B": "cannot reach http://u:p@h"},
        secrets=frozenset({"zzzzzz"}),
    )
    assert document.run.command == ("--opt=redis://***@h",)
    assert document.unusable[0].sentence == "cannot reach http://***@h"


@pytest.mark.parametrize("text", ["a" * 300_000, "token" * 60_000, "a-" * 150_000, "://" * 100_000, "x=" * 150_000])
def test_masking_takes_no_time(text: str) -> None:
    started = time.perf_counter()
    assert Masker(["secret-value"])(text) == text
    assert time.perf_counter() - started < 5
