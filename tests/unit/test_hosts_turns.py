"""Channels are given out in order of arrival."""

from __future__ import annotations

import threading

from broker.hosts.turns import Turns


def wait_until_queued(turns: Turns, count: int) -> None:
    tick = threading.Event()
    while turns.waiting < count:
        tick.wait(0.001)


def test_who_waits_longest_is_served_first() -> None:
    turns, served = Turns(1), list[int]()
    assert turns.acquire(0)

    def wait(number: int) -> None:
        assert turns.acquire(10)
        served.append(number)
        turns.release()

    threads = []
    for number in range(5):
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
        wait_until_queued(turns, number + 1)
    turns.release()
    for thread in threads:
        thread.join(10)
    assert served == [0, 1, 2, 3, 4]


def test_a_newcomer_does_not_pass_those_who_wait() -> None:
    turns = Turns(1)
    assert turns.acquire(0)
    waiter = threading.Thread(target=lambda: turns.acquire(10))
    waiter.start()
    wait_until_queued(turns, 1)
    assert not turns.acquire(0)
    turns.release()
    waiter.join(10)
    assert not turns.acquire(0)


def test_a_place_is_neither_lost_nor_doubled_by_those_who_give_up() -> None:
    turns = Turns(2)
    assert turns.acquire(0)
    assert turns.acquire(0)
    assert not turns.acquire(0.001)
    assert turns.waiting == 0
    turns.release()
    turns.release()
    assert turns.acquire(0)
    assert turns.acquire(0)
    assert not turns.acquire(0)
