"""A semaphore that serves in order of arrival."""

from __future__ import annotations

import threading
from collections import deque


class Turns:
    """At most `places` holders at once; who waits longest is next.

    `threading.Semaphore` lets whoever comes at the right moment pass those who wait: under steady load a
    poller then waits for many seconds while short commands overtake it.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._lock = threading.Lock()
        self._queue: deque[threading.Event] = deque()

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._queue)

    def acquire(self, timeout: float) -> bool:
        """Take a place, waiting `timeout` seconds at most; False when there was none in time."""
        with self._lock:
            if self._free and not self._queue:
                self._free -= 1
                return True
            turn = threading.Event()
            self._queue.append(turn)
        if turn.wait(max(0.0, timeout)):
            return True
        with self._lock:
            if turn.is_set():  # it was given to us just now
                return True
            self._queue.remove(turn)
            return False

    def release(self) -> None:
        """Give the place to the next in the queue, or back."""
        with self._lock:
            if self._queue:
                self._queue.popleft().set()
            else:
                self._free += 1
