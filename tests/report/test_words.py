"""Figures and names as they are written everywhere."""

from __future__ import annotations

import math
from typing import get_args

import pytest

from vae_astro.collapse.units import VERDICT_WORDS, Verdict
from vae_astro.report.words import held, known_number, number, shortened


def test_every_verdict_has_words_that_are_a_verdict() -> None:
    assert set(VERDICT_WORDS) == set(get_args(Verdict))
    assert all("collapse" in words for words in VERDICT_WORDS.values())


@pytest.mark.parametrize("keys", [("a", "b"), ("a.b",)])
def test_an_entry_is_found_by_its_keys_or_its_dotted_name(keys: tuple[str, ...]) -> None:
    assert held({"a": {"b": 3}}, *keys) == 3
    for other in ({"a": {}}, {"a": 3}, {}, None, "text", []):
        assert held(other, *keys) is None


@pytest.mark.parametrize("value", [None, math.nan, math.inf, True, "3", [3]])
def test_what_is_no_finite_number_is_not_known(value: object) -> None:
    assert known_number(value) is None
    assert number(value) == "–"
    assert number(value, unknown="-") == "-"


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [(-0.1234, ".3g", "−0.123"), (3, "#.1g", "3"), (12345.6, ",.0f", "12,346"),
     (1e-9, ".3g", "1e-09")],
)  # fmt: skip
def test_numbers_are_written_with_a_minus_and_without_a_loose_point(
    value: float, form: str, text: str
) -> None:
    assert number(value, form) == text


def test_a_long_name_keeps_both_ends_and_its_length() -> None:
    assert shortened("short", 5) == "short"
    for longest in range(1, 20):
        cut = shortened("abcdefghijklmnopqrstuvwxyz", longest)
        assert len(cut) == longest
        assert cut.count("…") == 1
    assert shortened("abcdefghij", 5) == "ab…ij"
