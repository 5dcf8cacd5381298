"""`python -m benchmarks [submit] [graph] [reads]`: print the ratios; without names, all of them.

A cluster of its own (`bench`) is started and ended. Both sides of a ratio are measured in the same minute on
the same cluster; on a busy machine both are slower, and the ratio is what remains comparable. Accounting and
its reports need no cluster: `python -m benchmarks.accounting`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.harness import timing
from tests.harness.cluster import Cluster
from tests.harness.product import Broker


def submit(broker: Broker) -> str:
    return f"submit 4 components: {timing.submission_ratio(broker)}"


def graph(broker: Broker) -> str:
    return f"submit a graph: {timing.graph_rate(broker)}"


def reads(broker: Broker) -> str:
    paced, closed = timing.reads_of_a_live_run(broker)
    return f"GET run, 50 clients: once a second {paced}; closed loop {closed}"


BENCHMARKS: dict[str, Callable[[Broker], str]] = {"submit": submit, "graph": graph, "reads": reads}


def main(names: list[str]) -> int:
    if unknown := set(names) - set(BENCHMARKS):
        print(
            f"no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(BENCHMARKS)}", file=sys.stderr
        )
        return 2
    print("load average: {:.1f} {:.1f} {:.1f}, {} CPUs".format(*os.getloadavg(), os.cpu_count()), flush=True)
    cluster = Cluster("bench").up()
    try:
        for name in names or BENCHMARKS:
            with (
                tempfile.TemporaryDirectory(prefix="broker-bench-") as home,
                Broker(Path(home), cluster, cluster_settings=timing.CALM) as broker,
            ):
                print(BENCHMARKS[name](broker), flush=True)
    finally:
        cluster.control("down")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
