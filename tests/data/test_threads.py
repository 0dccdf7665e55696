"""Threads share work, wait for each other, and are made anew in a forked process."""

import multiprocessing
import threading
import time

import pytest

from vae_astro.data import threads
from vae_astro.data.threads import together


def test_work_is_done_in_as_many_threads_as_asked_for():
    for n_threads in (1, 2, 4, 2):
        barrier = threading.Barrier(n_threads, timeout=10)
        seen = set()

        def work(barrier=barrier, seen=seen) -> None:
            barrier.wait()  # broken if fewer come
            seen.add(threading.get_ident())

        together(work, n_threads)
        assert len(seen) == n_threads
        assert threading.get_ident() in seen


def test_it_waits_for_the_last_one():
    done = []
    slow = threading.Event()

    def work() -> None:
        if threading.current_thread() is threading.main_thread():
            threading.Timer(0.05, slow.set).start()
        else:
            slow.wait(10)
        done.append(1)

    together(work, 2)
    assert len(done) == 2


def test_work_within_work_is_done_alone():
    calls = []
    together(lambda: together(lambda: calls.append(1), 2), 2)
    assert len(calls) == 2


def test_an_error_is_raised_and_the_threads_go_on_serving():
    def fail() -> None:
        if threading.current_thread() is threading.main_thread():
            raise ValueError("of the work")

    for _ in range(3):
        with pytest.raises(ValueError, match="of the work"):
            together(fail, 2)
    calls = []
    together(lambda: calls.append(1), 2)
    assert len(calls) == 2


def test_work_that_fails_in_every_thread_leaves_them_alive_for_the_next():
    together(lambda: None, 2)

    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        together(fail, 2)
    time.sleep(0.05)
    calls: list[int] = []
    together(lambda: calls.append(1), 2)  # would wait for ever for a thread that has ended
    assert len(calls) == 2


def count_calls(results) -> None:
    calls: list[int] = []
    together(lambda: calls.append(1), 2)
    results.put(len(calls))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own():
    together(lambda: None, 2)
    assert threads._team.helpers
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=count_calls, args=(results,))
    process.start()
    process.join(20)
    assert process.exitcode == 0
    assert results.get() == 2
