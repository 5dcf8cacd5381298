"""The REST API as a person's program uses it. Waits for events, with a deadline; survives a killed API."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

API = "/api/v1"
Json = dict[str, Any]
FINAL = {"succeeded", "failed", "cancelled", "rejected"}


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a run."""

    seq: int
    type: str
    data: Json


class Refused(AssertionError):
    """The API said no; `problem` is its problem+json."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.problem: Json = _json(response)
        super().__init__(
            f"{response.request.method} {response.request.url}: {self.status} {response.text[:2000]}"
        )


class Client:
    """One person's session. `patience_s`: how long a broken connection is tried again (an API restarts)."""

    def __init__(self, url: str, patience_s: float = 60.0) -> None:
        self.url, self._patience_s = url, patience_s
        self.http = httpx.Client(base_url=f"{url}{API}", timeout=60)

    def close(self) -> None:
        self.http.close()

    # ---- requests -----------------------------------------------------------------------------------

    def login(self, username: str, password: str) -> Json:
        """Log in; every later request carries the token."""
        answer = self.post("/auth/login", {"username": username, "password": password})
        self.http.headers["Authorization"] = f"Bearer {answer['access_token']}"
        return answer

    def change_password(self, old: str, new: str) -> None:
        answer = self.post("/auth/password", {"old": old, "new": new})
        self.http.headers["Authorization"] = f"Bearer {answer['access_token']}"

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request, whatever the answer; a broken connection or a 503 is tried again for a while.

        Safe for what creates work only with an `Idempotency-Key`: `request_run` always sends one.
        """
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                response = self.http.request(method, path, **options)
                if response.status_code != 503 or time.monotonic() > deadline:
                    return response
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def get(self, path: str, **params: Any) -> Any:
        return _good(self.send("GET", path, params=params))

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        return _good(self.send("POST", path, json=body, headers=headers))

    # ---- pipelines and runs -------------------------------------------------------------------------

    def store(self, spec: Json) -> Json:
        """Store a spec."""
        stored: Json = self.post("/pipelines", spec)
        return stored

    def request_run(self, pipeline: str, *, key: str | None = None, **more: Any) -> Json:
        """Ask for a run; an answer that got lost is asked for again under the same key."""
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        view: Json = _good(self.send("POST", "/runs", json={"pipeline": pipeline, **more}, headers=headers))
        return view

    def start(self, spec: Json, **more: Any) -> str:
        """Store a spec and run it; the run's id."""
        self.store(spec)
        run_id: str = self.request_run(spec["pipeline_id"], **more)["id"]
        return run_id

    def run(self, run_id: str) -> Json:
        view: Json = self.get(f"/runs/{run_id}")
        return view

    def jobs(self, run_id: str, **params: Any) -> dict[str, Json]:
        """The newest job of each component."""
        return {job["component"]: job for job in self.get(f"/runs/{run_id}", **params)["jobs"]}

    def outputs(self, run_id: str, **params: Any) -> list[Json]:
        files: list[Json] = self.get(f"/runs/{run_id}/outputs", **params)
        return files

    def log(self, run_id: str, component: str, **params: Any) -> Json:
        chunk: Json = self.get(f"/runs/{run_id}/components/{component}/logs", **params)
        return chunk

    # ---- waiting ------------------------------------------------------------------------------------

    def events(self, run_id: str, seconds: float, after: int = 0) -> Iterator[Event]:
        """Every event of a run from number `after` + 1, live, each once, in order, until the run has ended.

        The stream is taken up again where it broke. `AssertionError` with the run's state at the deadline.
        """
        deadline = time.monotonic() + seconds
        seen = after
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise AssertionError(
                    f"{run_id} did not come so far within {seconds:.0f} s: {self._shown(run_id)}"
                )
            try:
                for event in self._stream(run_id, seen, min(left, 20.0)):
                    assert event.seq == seen + 1, f"event {event.seq} follows {seen}: one is missing"
                    seen = event.seq
                    yield event
                    if time.monotonic() > deadline:
                        break
                else:
                    if self.run(run_id)["state"] in FINAL:
                        return
            except (httpx.TransportError, httpx.HTTPStatusError):
                time.sleep(0.05)

    def _stream(self, run_id: str, after: int, silence_s: float) -> Iterator[Event]:
        path, headers = f"/runs/{run_id}/events/stream", {"Last-Event-ID": str(after)}
        timeout = httpx.Timeout(10, read=silence_s)
        with self.http.stream("GET", path, headers=headers, timeout=timeout) as response:
            if response.status_code != 200:
                response.read()
                response.raise_for_status()
            fields: dict[str, str] = {}
            for line in response.iter_lines():
                name, _, value = line.partition(": ")
                if line:
                    fields[name] = value
                elif "data" in fields:
                    yield Event(int(fields["id"]), fields["event"], json.loads(fields["data"]))
                    fields = {}

    def wait_for(
        self, run_id: str, happened: str | Callable[[Event], bool], seconds: float = 60, after: int = 0
    ) -> Event:
        """The first event of that type (or for which the function is true) above number `after`."""
        matches = happened if callable(happened) else lambda event: event.type == happened
        for event in self.events(run_id, seconds, after):
            if matches(event):
                return event
        raise AssertionError(f"{run_id} ended without it: {self._shown(run_id)}")

    def finish(self, run_id: str, seconds: float = 120) -> Json:
        """Wait for the run's end; the run as it is then."""
        for _event in self.events(run_id, seconds):
            pass
        return self.run(run_id)

    def succeed(self, run_id: str, seconds: float = 120) -> Json:
        """Wait for the run's end, which must be a success."""
        run = self.finish(run_id, seconds)
        assert run["state"] == "succeeded", self._shown(run_id)
        return run

    def _shown(self, run_id: str) -> str:
        run = self.run(run_id)
        jobs = [
            {
                k: job[k]
                for k in ("component", "attempt", "state", "reason", "slurm_job_id", "stored", "store_error")
            }
            for job in run.pop("jobs")
        ]
        events = [(e["seq"], e["type"], e["data"]) for e in self.get(f"/runs/{run_id}/events")]
        return json.dumps({"run": run, "jobs": jobs, "events": events}, indent=1, ensure_ascii=False)


def of(kind: str, component: str) -> Callable[[Event], bool]:
    """For `wait_for`: an event of that type of that component."""
    return lambda event: event.type == kind and event.data.get("component") == component


def _json(response: httpx.Response) -> Json:
    try:
        value = response.json()
    except ValueError:
        return {}
    return value if isinstance(value, Mapping) else {}  # type: ignore[return-value]


def _good(response: httpx.Response) -> Any:
    if not response.is_success:
        raise Refused(response)
    return response.json() if response.content else None
