"""Passwords."""

import time

import pytest

from broker.errors import InvalidRequest
from broker.identity.passwords import (
    NO_PASSWORD,
    check_new_password,
    hash_password,
    one_time_password,
    verify_password,
)


def test_hash_is_argon2id_and_fits_only_its_password():
    stored = hash_password("correct-horse-battery")
    assert stored.startswith("$argon2id$") and "correct" not in stored
    assert verify_password("correct-horse-battery", stored)
    assert not verify_password("correct-horse-batterY", stored)
    assert hash_password("correct-horse-battery") != stored


def test_unreadable_hash_fits_nothing():
    assert not verify_password("x", "not a hash")


@pytest.mark.parametrize("password", ["", "!", "x"])
def test_no_password_fits_an_account_without_one(password):
    assert not verify_password(password, NO_PASSWORD)


def test_unknown_user_takes_as_long_as_a_known_one():
    stored = hash_password("correct-horse-battery")
    verify_password("warm up", None)

    def fastest(hashed: str | None) -> float:
        times = []
        for _ in range(5):
            start = time.process_time()  # of all lanes; what else the machine does is not in it
            assert not verify_password("wrong", hashed)
            times.append(time.process_time() - start)
        return min(times)

    known = fastest(stored)
    assert 0.5 < fastest(None) / known < 2
    assert 0.5 < fastest(NO_PASSWORD) / known < 2


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
