"""The brake on guessing passwords, on both databases and over several processes."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select, text

from broker import schema
from broker.db import Database
from broker.errors import LimitReached
from broker.identity.throttle import AT_ONCE, FREE_TRIES, LONGEST, LoginThrottle, LoginTriesRow, pause
from tests.postgres import database_of

NUMBER = iter(range(1000))


class Clock:
    """A database's clock that tests move."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 21, tzinfo=UTC)

    def __call__(self, _session) -> datetime:
        return self.now

    def advance(self, **span) -> None:
        self.now += timedelta(**span)


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def migrated(request, tmp_path_factory):
    url = database_of(request) or f"sqlite:///{tmp_path_factory.mktemp('throttle') / 'broker.sqlite3'}"
    db = Database(url)
    schema.upgrade(db)
    db.close()
    return url


@pytest.fixture
def url(migrated):
    db = Database(migrated)
    with db.write() as session:
        session.execute(text("delete from login_tries"))
    db.close()
    return migrated


@pytest.fixture
def db(url):
    made = Database(url)
    yield made
    made.close()


def fail(throttle: LoginThrottle, name: str = "ann", address: str = "10.0.0.1") -> None:
    with throttle.attempt(name, address):
        pass


def fit(throttle: LoginThrottle, name: str = "ann", address: str = "10.0.0.1") -> None:
    with throttle.attempt(name, address) as fits:
        fits()


def blocked(throttle: LoginThrottle, name: str = "ann", address: str = "10.0.0.1") -> float:
    with pytest.raises(LimitReached) as caught:
        fail(throttle, name, address)
    assert caught.value.retry_after_s is not None
    return caught.value.retry_after_s


def test_five_failures_are_free_then_the_wait_doubles_to_a_quarter_of_an_hour(db):
    clock = Clock()
    throttle = LoginThrottle(db, clock)
    for _ in range(FREE_TRIES):
        fail(throttle)
    waits = []
    for _ in range(12):
        waits.append(blocked(throttle))
        clock.advance(seconds=waits[-1])
        fail(throttle)
    assert waits[:4] == [2, 4, 8, 16]
    assert max(waits) == waits[-1] == LONGEST.total_seconds()


def test_failures_in_one_process_slow_the_others(url):
    one, two = Database(url), Database(url)
    try:
        for number in range(FREE_TRIES):
            fail(LoginThrottle((one, two)[number % 2]))
        assert blocked(LoginThrottle(one)) > 1
        assert blocked(LoginThrottle(two)) > 1
    finally:
        one.close()
        two.close()


def test_guesses_at_once_in_several_processes_are_no_more_than_one_after_the_other(url):
    databases = [Database(url) for _ in range(3)]
    throttles = [LoginThrottle(db, Clock()) for db in databases]
    barrier = threading.Barrier(24)

    def guess(number):
        barrier.wait(20)
        try:
            fail(throttles[number % 3])
        except LimitReached:
            return 0
        return 1

    with ThreadPoolExecutor(24) as pool:
        assert sum(pool.map(guess, range(24))) == FREE_TRIES
    for db in databases:
        db.close()


def test_other_names_and_addresses_are_not_slowed(db):
    throttle = LoginThrottle(db, Clock())
    for _ in range(FREE_TRIES):
        fail(throttle)
    blocked(throttle)
    fail(throttle, name="bob")
    fail(throttle, address="10.0.0.2")


def test_success_forgets_the_failures(db):
    throttle = LoginThrottle(db, Clock())
    for _ in range(FREE_TRIES - 1):
        fail(throttle)
    fit(throttle)
    for _ in range(FREE_TRIES):
        fail(throttle)
    blocked(throttle)


def test_long_quiet_forgets_the_failures(db):
    clock = Clock()
    throttle = LoginThrottle(db, clock)
    for _ in range(FREE_TRIES):
        fail(throttle)
    clock.advance(seconds=LONGEST.total_seconds() + 3)
    for _ in range(FREE_TRIES):
        fail(throttle)
    blocked(throttle)


def test_a_try_that_broke_off_counts_as_failed(db):
    throttle = LoginThrottle(db, Clock())
    for _ in range(FREE_TRIES):
        with pytest.raises(RuntimeError), throttle.attempt("ann", "10.0.0.1"):
            raise RuntimeError
    blocked(throttle)


def test_logins_never_hold_more_threads_than_allowed(db):
    throttle = LoginThrottle(db, Clock())
    entered, leave = threading.Semaphore(0), threading.Event()

    def hold(number: int) -> None:
        with throttle.attempt(f"user{number}", "10.0.0.1") as fits:
            entered.release()
            leave.wait(20)
            fits()

    threads = [threading.Thread(target=hold, args=(n,)) for n in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert entered.acquire(timeout=20)
    assert blocked(throttle, name="one-more") == 1
    leave.set()
    for thread in threads:
        thread.join()
    fail(throttle, name="one-more")


def test_what_is_remembered_is_bounded_by_time_and_names_nobody(db):
    clock = Clock()
    throttle = LoginThrottle(db, clock)
    for number in range(20):
        fail(throttle, name=f"secret{number}")
    clock.advance(seconds=LONGEST.total_seconds() + 1)
    fail(throttle, name="another")
    with db.read() as session:
        assert session.scalar(select(func.count()).select_from(LoginTriesRow)) == 1
        assert "another" not in session.scalars(select(LoginTriesRow.key)).one()


@pytest.mark.parametrize(
    ("failures", "seconds"), [(0, 0), (4, 0), (5, 2), (6, 4), (13, 512), (14, 900), (99, 900)]
)
def test_the_pause_grows(failures, seconds):
    assert pause(failures).total_seconds() == seconds
