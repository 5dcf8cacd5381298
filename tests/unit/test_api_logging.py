"""The log: one JSON object per line on stderr, the libraries' lines too, never a secret."""

import json
import subprocess
import sys

PROGRAM = """
import logging, structlog
from broker.logging import Event, configure_logging
configure_logging({format!r}, "info")
structlog.contextvars.bind_contextvars(request_id="r1", user="ann")
log = structlog.get_logger("broker.runs")
log.info(Event.JOB_SUBMITTED, job_id="run-1", user_id="us-1", gpu_count=4, estimated_duration=3600)
log.debug("not shown")
logging.getLogger("some.library").warning("careful: %s", "한글\\nline")
logging.getLogger("botocore").info("not shown")
def fail():
    password = "-".join(["hunter", "2"])
    raise ValueError("it broke")
try:
    fail()
except ValueError:
    log.exception("crashed")
"""


def run(form):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(format=form)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert done.stdout == ""
    return done.stderr


def test_lines_are_json_with_time_level_logger_and_request():
    lines = [json.loads(line) for line in run("json").splitlines()]
    assert [line["event"] for line in lines] == ["job_submitted", "careful: 한글\nline", "crashed"]
    first = lines[0]
    assert (first["job_id"], first["gpu_count"], first["request_id"], first["user"]) == (
        "run-1",
        4,
        "r1",
        "ann",
    )
    assert (first["level"], first["logger"]) == ("info", "broker.runs") and first["timestamp"].endswith("Z")
    assert lines[1]["logger"] == "some.library" and lines[1]["request_id"] == "r1"
    assert "ValueError: it broke" in lines[2]["exception"]


def test_tracebacks_show_no_values_in_either_form():
    for form in ("json", "console"):
        text = run(form)
        assert "it broke" in text and "hunter-2" not in text
