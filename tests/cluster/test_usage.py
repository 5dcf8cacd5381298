"""What a real job uses, against what Slurm itself says of it; its GPUs by the sampler in its script.

The nodes have no GPU: the `nvidia-smi` on their PATH is ours, in the form that NVIDIA documents
(tests/samples/nvidia-smi). All else is real: Slurm, sstat, the job's script, the broker.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import datetime

import pytest

from tests.cluster.conftest import DevCluster
from tests.harness.client import Client, Json, of
from tests.harness.cluster import Cluster
from tests.harness.processes import until
from tests.harness.product import Broker
from tests.harness.specs import WAIT, component, pipeline

pytestmark = pytest.mark.cluster

MIB = 200
# `tail` keeps what has no end of line; one process computes.
WORK = f"(head -c {MIB}m /dev/zero; sleep 300) | tail -n 1 >/dev/null & while :; do :; done & echo up; {WAIT}"
NVIDIA_SMI = """#!/bin/bash
case $* in
-L) for i in 0 1 2 3; do echo "GPU $i: NVIDIA RTX A5000 (UUID: GPU-$i)"; done ;;
*--query-gpu=*)
  ours=0,1,2,3 now=$(date -u '+%Y/%m/%d %H:%M:%S.%3N')
  [[ $1 == -i ]] && ours=$2
  for i in ${ours//,/ }; do
    echo "$now, $i, GPU-$i, $((i % 2 ? 0 : 50 + 10 * i)), 0, 20000, 24000, 30, 20.50, [N/A]"
  done ;;
esac
"""
BUSY = {"0": 50, "1": 0, "2": 70, "3": 0}
"""Per cent: the second GPU of each pair idles."""


@pytest.fixture(scope="module")
def broker(cluster: DevCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    on = Cluster(cluster.name)
    folder = on.shared / f"smi-{tmp_path_factory.getbasetemp().name}"
    folder.mkdir()
    program = folder / "nvidia-smi"
    program.write_text(NVIDIA_SMI)
    for path, mode in ((folder, 0o755), (program, 0o755)):
        path.chmod(mode)
    settings = {
        "usage_interval_s": 2,
        "gpu_sample_interval_s": 1,
        "path": f"{on.info['shared']}/{folder.name}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    idle = {"gpu_idle_after_s": 8}  # two spans of two looks
    with Broker(tmp_path_factory.mktemp("broker"), on, cluster_settings=settings, resources=idle) as started:
        yield started
    shutil.rmtree(folder)


def usage(client: Client, run_id: str) -> Json:
    (job,) = client.get(f"/runs/{run_id}/usage")["jobs"]
    return dict(job)


def test_a_real_job_is_shown_with_what_slurm_says_and_its_gpus_with_what_its_sampler_says(
    cluster: DevCluster, broker: Broker
) -> None:
    client = broker.client
    asked = {"gpu_type": "A100", "gpu_count": 2, "cpus": 2, "memory": "1GB", "time": "5m"}
    run_id = client.start(pipeline([component("busy", WORK, resources=asked)]))
    client.wait_for(run_id, of("job_started", "busy"), 60)

    def measured() -> bool:
        job = usage(client, run_id)
        memory, cpu = job["memory_mib"], job["cpu_cores"]
        enough = memory is not None and memory["used"] >= MIB
        return enough and cpu is not None and cpu["used"] > 0 and job["gpu_util"] is not None

    until(measured, 45, "memory, CPU and GPUs are known", 0.5)
    job = usage(client, run_id)
    number = job["job_id"]

    assert job["live"]
    rows = cluster.ok(
        "sstat", "-a", "-n", "-P", "--noconvert", "-j", str(number), "-o", "TRESUsageInTot"
    ).split()
    sums = [dict(part.split("=", 1) for part in row.split(",")) for row in rows]
    resident = sum(int(one["mem"]) for one in sums) / 2**20
    memory = job["memory_mib"]
    assert memory["allocated"] == 1024 and memory["source"] == "slurm"
    assert memory["used"] == pytest.approx(resident, rel=0.25)
    assert MIB <= memory["used"] < 2 * MIB + 100

    cpu = job["cpu_cores"]
    total = sum(_seconds(one["cpu"]) for one in sums)
    print(
        f"\ncores {cpu['used']} over {cpu['over_s']} s; CPU time {total} s; memory {memory['used']:.0f} MiB"
    )
    assert (cpu["allocated"], cpu["source"]) == (2, "slurm")
    assert 0.05 < cpu["used"] < 2.5, "one process computes, on a machine that others use as well"
    assert cpu["used"] * cpu["over_s"] <= total + 1, "no more than Slurm counted by now, in whole seconds"

    gpus = job["gpus"]
    assert len(gpus) == 2 and job["gpus_allocated"] == 2, "the node has 4"
    assert [gpu["util"] for gpu in gpus] == [BUSY[gpu["index"]] for gpu in gpus]
    assert job["gpu_util"]["used"] == sum(gpu["util"] for gpu in gpus) / 2
    assert (job["gpu_util"]["source"], job["gpu_memory_mib"]["used"]) == ("sampler", 2 * 20000)
    assert {gpu["node"] for gpu in gpus} == {client.jobs(run_id)["busy"]["nodes"]}
    assert job["history"]

    def shown() -> Json:
        (item,) = client.get("/resources")["items"]
        return next(gpu for gpu in item["gpus"] if gpu["type"] == "a100")

    until(lambda: shown()["source"] == "sampler", 20, "the snapshot has what the job measured", 0.5)
    assert shown()["measured"] == 2
    assert shown()["used"] == pytest.approx(job["gpu_util"]["used"] * 2 / 100)

    told = client.wait_for(run_id, of("gpu_idle", "busy"), 30).data
    assert (told["gpus_idle"], told["gpus"], told["gpu_util"]) == (1, 2, 0), "of the two, one does nothing"
    assert client.jobs(run_id)["busy"]["gpu_idle"]["gpus"] == 1

    client.post(f"/runs/{run_id}/cancel")
    client.finish(run_id, 60)
    gone = ["sh", "-c", f"! pgrep -f '{run_id}/control/busy/1/[g]pu'"]
    until(lambda: cluster.exec(gone)[0] == 0, 30, "the sampler ended with its job", 0.5)
    last = usage(client, run_id)
    assert not last["live"]
    assert datetime.fromisoformat(last["taken_at"]), "what it used last is still shown"
    assert last["gpu_util_mean"] == job["gpu_util"]["used"]


def _seconds(text: str) -> int:
    hours, minutes, seconds = (int(part) for part in text.split(":"))
    return (hours * 60 + minutes) * 60 + seconds
