"""What is made ahead comes in order, and its thread ends with the iteration."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from vae_astro.data.ahead import made_ahead


def helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "vae-astro-ahead"]


def test_results_come_in_order_and_are_made_in_another_thread() -> None:
    made_in = set()

    def make(item: int) -> int:
        made_in.add(threading.current_thread())
        return item * item

    assert list(made_ahead(range(20), make)) == [item * item for item in range(20)]
    assert threading.current_thread() not in made_in
    assert not helpers()


def test_no_more_is_made_than_may_wait() -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(50):
            taken.append(item)
            yield item

    results = made_ahead(items(), lambda item: item, n_ahead=2)
    assert next(results) == 0
    time.sleep(0.2)
    assert len(taken) <= 5  # one handed out, two that wait, one in hand, one looked at
    results.close()
    assert not helpers()


def test_an_error_comes_in_its_place() -> None:
    def make(item: int) -> int:
        if item == 2:
            raise OSError("disk gone")
        return item

    results = made_ahead(range(5), make)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(OSError, match="disk gone"):
        next(results)
    assert not helpers()


def test_results_may_be_none() -> None:
    assert list(made_ahead(range(3), lambda item: None)) == [None] * 3
