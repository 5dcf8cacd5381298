"""Passwords and the brake on guessing."""

import threading
import time

import pytest

from broker.errors import InvalidRequest, LimitReached
from broker.identity.passwords import (
    LoginThrottle,
    check_new_password,
    hash_password,
    one_time_password,
    verify_password,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def fail(throttle: LoginThrottle, name: str = "ann", address: str = "10.0.0.1") -> None:
    with throttle.attempt(name, address):
        pass


def blocked(throttle: LoginThrottle, name: str = "ann", address: str = "10.0.0.1") -> float:
    with pytest.raises(LimitReached) as caught:
        fail(throttle, name, address)
    assert caught.value.retry_after_s is not None
    return caught.value.retry_after_s


def test_hash_is_argon2id_and_fits_only_its_password():
    stored = hash_password("correct-horse-battery")
    assert stored.startswith("$argon2id$") and "correct" not in stored
    assert verify_password("correct-horse-battery", stored)
    assert not verify_password("correct-horse-batterY", stored)
    assert hash_password("correct-horse-battery") != stored


def test_unreadable_hash_fits_nothing():
    assert not verify_password("x", "not a hash")


def test_unknown_user_takes_as_long_as_a_known_one():
    stored = hash_password("correct-horse-battery")
    verify_password("warm up", None)

    def fastest(hashed: str | None) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            assert not verify_password("wrong", hashed)
            times.append(time.perf_counter() - start)
        return min(times)

    known, unknown = fastest(stored), fastest(None)
    assert 0.5 < unknown / known < 2


def test_five_failures_are_free_then_the_wait_doubles():
    clock = Clock()
    throttle = LoginThrottle(clock)
    for _ in range(5):
        fail(throttle)
    waits = []
    for _ in range(12):
        wait = blocked(throttle)
        waits.append(wait)
        clock.now += wait
        fail(throttle)
    assert waits[:4] == [2, 4, 8, 16]
    assert max(waits) == waits[-1] == LoginThrottle.longest_s


def test_brake_is_per_name_and_address():
    throttle = LoginThrottle(Clock())
    for _ in range(5):
        fail(throttle)
    blocked(throttle)
    fail(throttle, name="bob")
    fail(throttle, address="10.0.0.2")


def test_success_forgets_the_failures():
    throttle = LoginThrottle(Clock())
    for _ in range(4):
        fail(throttle)
    with throttle.attempt("ann", "10.0.0.1") as fits:
        fits()
    for _ in range(5):
        fail(throttle)
    blocked(throttle)


def test_long_quiet_forgets_the_failures():
    clock = Clock()
    throttle = LoginThrottle(clock)
    for _ in range(5):
        fail(throttle)
    clock.now += LoginThrottle.longest_s + 3
    for _ in range(5):
        fail(throttle)
    blocked(throttle)


def test_with_the_brake_on_only_one_try_is_under_way():
    clock = Clock()
    throttle = LoginThrottle(clock)
    for _ in range(5):
        fail(throttle)
    clock.now += 2
    with throttle.attempt("ann", "10.0.0.1"):
        blocked(throttle)


def test_logins_never_hold_more_threads_than_allowed():
    throttle = LoginThrottle(Clock())
    entered, leave = threading.Semaphore(0), threading.Event()

    def hold(number: int) -> None:
        with throttle.attempt(f"user{number}", "10.0.0.1") as fits:
            entered.release()
            leave.wait(10)
            fits()

    threads = [threading.Thread(target=hold, args=(n,)) for n in range(LoginThrottle.at_once)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert entered.acquire(timeout=10)
    assert blocked(throttle, name="one-more") == 1
    leave.set()
    for thread in threads:
        thread.join()
    fail(throttle, name="one-more")


def test_memory_of_the_brake_is_bounded():
    throttle = LoginThrottle(Clock())
    throttle.remembered = 10
    for number in range(100):
        fail(throttle, name=f"user{number}")
    assert len(throttle._tries) == 10


@pytest.mark.parametrize("password", ["short", "a" * 30, "annannannann", "x" * 300])
def test_weak_password_is_refused_with_its_field(password):
    with pytest.raises(InvalidRequest) as caught:
        check_new_password(password, "ann")
    (problem,) = caught.value.problems
    assert (problem.pointer, problem.code) == ("/new", "weak_password")
    assert password not in problem.detail


def test_one_time_passwords_are_strong_and_differ():
    made = {one_time_password() for _ in range(100)}
    assert len(made) == 100
    for password in made:
        check_new_password(password, "admin")
