"""Outputs that are larger than any buffer on their way."""

from __future__ import annotations

import re

from tests.harness import specs
from tests.harness.processes import peak_rss_mib, reset_peak, rss_mib
from tests.harness.product import Broker
from tests.harness.truth import assert_outputs_verified

GROWTH_LIMIT_MIB = 100


def assert_large_output_arrives(broker: Broker, mib: int) -> str:
    """An output of `mib` MiB is stored with its checksum; broker processes grow by less than 100 MiB.

    A small run comes first, so that what a worker loads once is not counted as growth.
    """
    broker.client.succeed(broker.client.start(specs.pipeline([specs.component("small", specs.output_of(1))])))
    pids = {name: part.pid for name, part in broker.parts.items()}
    before = {name: rss_mib(pid) for name, pid in pids.items()}
    for pid in pids.values():
        reset_peak(pid)
    run_id = broker.client.start(specs.pipeline([specs.component("large", specs.output_of(mib))]))
    run = broker.client.succeed(run_id, 580)
    growth = {name: peak_rss_mib(pid) - before[name] for name, pid in pids.items()}
    said = re.search(r"^([0-9a-f]{64})  data\.bin$", broker.client.log(run_id, "large")["text"], re.MULTILINE)
    assert said is not None, "the program did not say its checksum"
    entries = assert_outputs_verified(broker, run_id, ["large"])
    [entry] = [entry for entry in entries if entry["path"] == "outputs/data.bin"]
    assert (entry["sha256"], entry["size"]) == (said[1], mib << 20)
    assert max(growth.values()) < GROWTH_LIMIT_MIB, growth
    [job] = run["jobs"]
    assert job["stored_bytes"] >= mib << 20
    grew = ", ".join(f"{name} {value:.0f}" for name, value in growth.items())
    return f"{mib} MiB stored and verified; memory grew by (MiB): {grew}"
