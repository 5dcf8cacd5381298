"""What the figures of reports mean: every measure with its definition, every report with its measures. Pure.

A measure is computed from sums over jobs (`Sums`), never from other figures: an efficiency is a ratio of
sums, not a mean of ratios. What nobody measured is unknown (None), and `coverage` says of how many jobs it is
known. The definitions are shown to readers as they stand here (sacct(1) has the fields).
"""

from __future__ import annotations

from typing import Final

from broker.reports.definitions_cluster import CORE_UTILISATION, FAIR_SHARE, NODE_DOWNTIME, UTILISATION
from broker.reports.definitions_now import QUOTAS, WAITING
from broker.reports.definitions_waits import MEAN_WAIT, SLOWDOWN, WAITS
from broker.reports.measures import HOUR, Compute, Measure, Report, ratio

LOST: Final = (
    "BOOT_FAIL",
    "DEADLINE",
    "FAILED",
    "LAUNCH_FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
)
"""Ends (Slurm's words) whose hours count as lost. CANCELLED is not among them: somebody wanted it. What the
broker ended, for its silence say, is CANCELLED to Slurm as well: others' jobs and runs count alike.
"""


def _hours(name: str) -> Compute:
    return lambda sums, _: sums[name] / HOUR


def _count(name: str) -> Compute:
    return lambda sums, _: sums[name]


def _ratio(above: str, below: str) -> Compute:
    return lambda sums, _: ratio(sums[above], sums[below])


def _share(name: str) -> Compute:
    return lambda sums, whole: ratio(sums[name], whole[name])


def _unused(used: str, allocated: str, unit: float) -> Compute:
    return lambda sums, _: (sums[allocated] - sums[used]) / unit if sums[allocated] else None


JOBS = Measure(
    "jobs",
    "jobs",
    "Jobs",
    "작업 수",
    "Jobs that ended in the period; every attempt of a requeued job is one (sacct -D)",
    "기간 안에 끝난 작업 수. 다시 대기열에 들어간 작업은 시도마다 한 건 (sacct -D)",
    _count("ended"),
    ("ended",),
)
CORE_HOURS = Measure(
    "core_hours",
    "h",
    "Core hours",
    "코어 시간",
    "Allocated cores × elapsed time (End − Start − Suspended), cut at the period's ends",
    "할당된 코어 수 × 경과 시간(End − Start − Suspended). 기간의 경계에서 자름",
    _hours("core_s"),
    ("core_s",),
)
GPU_HOURS = Measure(
    "gpu_hours",
    "h",
    "GPU hours",
    "GPU 시간",
    "Allocated GPUs (AllocTRES gres/gpu, typed entries not added) × elapsed time, cut at the period's ends. "
    "By GPU type, each GPU under its own (the typed entry, else the type its node has); all else of a job "
    "with several types counts once, under that of most of its GPUs",
    "할당된 GPU 수(AllocTRES gres/gpu, 종류별 항목을 더하지 않음) × 경과 시간. 기간의 경계에서 자름. GPU "
    "종류별로는 GPU마다 자기 종류에 셈(종류별 항목, 없으면 노드의 종류). 여러 종류를 쓴 작업의 나머지는 가장 "
    "많은 종류에 한 번만 셈",
    _hours("gpu_s"),
    ("gpu_s",),
)
CORE_SHARE = Measure(
    "core_share",
    "ratio",
    "Share of core hours",
    "코어 시간 비율",
    "Core hours / those of the whole report",
    "코어 시간 / 보고서 전체의 코어 시간",
    _share("core_s"),
    ("core_s",),
)
GPU_SHARE = Measure(
    "gpu_share",
    "ratio",
    "Share of GPU hours",
    "GPU 시간 비율",
    "GPU hours / those of the whole report",
    "GPU 시간 / 보고서 전체의 GPU 시간",
    _share("gpu_s"),
    ("gpu_s",),
)

CPU_EFFICIENCY = Measure(
    "cpu_efficiency",
    "ratio",
    "CPU efficiency",
    "CPU 효율",
    "Σ TotalCPU / Σ (allocated cores × elapsed) of jobs that ended in the period: a ratio of sums, never a "
    "mean of ratios. Killed and timed-out jobs are left out: TotalCPU lacks what their last processes used",
    "기간 안에 끝난 작업의 Σ TotalCPU / Σ (할당 코어 × 경과 시간). 비율의 평균이 아니라 합의 비율. "
    "강제로 끝난 작업은 TotalCPU가 일부뿐이므로 제외",
    _ratio("cpu_used_s", "cpu_alloc_s"),
    ("cpu_used_s", "cpu_alloc_s", "cpu_jobs", "ended"),
    covered="cpu_jobs",
)
MEMORY_EFFICIENCY = Measure(
    "memory_efficiency",
    "ratio",
    "Memory efficiency",
    "메모리 효율",
    "Σ (peak memory × elapsed) / Σ (allocated memory × elapsed) of jobs that ended in the period. The peak "
    "is the largest step's TRESUsageInTot[mem], tasks added up as if they peaked together: an upper bound",
    "기간 안에 끝난 작업의 Σ (최대 메모리 × 경과) / Σ (할당 메모리 × 경과). 최대 메모리는 가장 큰 스텝의 "
    "TRESUsageInTot[mem]이므로 상한값",
    _ratio("mem_used_mib_s", "mem_alloc_mib_s"),
    ("mem_used_mib_s", "mem_alloc_mib_s", "mem_jobs", "ended"),
    covered="mem_jobs",
)
GPU_EFFICIENCY = Measure(
    "gpu_efficiency",
    "ratio",
    "GPU efficiency",
    "GPU 효율",
    "Σ (mean GPU utilisation × GPU seconds) / Σ GPU seconds of measured jobs that ended in the period. The "
    "mean is over all GPUs of a job: by GPU type it is the job's, under the type of most of its GPUs",
    "기간 안에 끝나고 측정된 작업의 Σ (평균 GPU 사용률 × GPU 초) / Σ GPU 초. 사용률은 작업의 모든 GPU의 "
    "평균이므로, GPU 종류별로는 작업의 GPU 중 가장 많은 종류에 셈",
    _ratio("gpu_used_s", "gpu_alloc_s"),
    ("gpu_used_s", "gpu_alloc_s", "gpu_jobs", "gpu_ended"),
    covered="gpu_jobs",
    of="gpu_ended",
)
TIME_ACCURACY = Measure(
    "time_accuracy",
    "ratio",
    "Time accuracy",
    "시간 정확도",
    "Σ elapsed / Σ time limit of jobs that ended in the period; UNLIMITED left out",
    "기간 안에 끝난 작업의 Σ 경과 시간 / Σ 제한 시간. UNLIMITED 제외",
    _ratio("limit_used_s", "limit_s"),
    ("limit_used_s", "limit_s", "limit_jobs", "ended"),
    covered="limit_jobs",
)
LOST_JOBS = Measure(
    "lost_jobs",
    "jobs",
    "Jobs lost",
    "실패한 작업 수",
    f"Jobs that ended in the period as {', '.join(LOST)} (a cancellation is wanted, so it is no loss; Slurm "
    "calls CANCELLED as well what the broker ended, for its silence or since another component had failed)",
    f"기간 안에 {', '.join(LOST)} 상태로 끝난 작업 수 (취소는 포함하지 않음. 진행 신호가 없거나 "
    "다른 구성 요소가 실패하여 브로커가 끝낸 작업도 Slurm에서는 CANCELLED)",
    _count("lost_jobs"),
    ("lost_jobs",),
)
LOST_CORE_HOURS = Measure(
    "lost_core_hours",
    "h",
    "Core hours lost",
    "손실된 코어 시간",
    "Core hours, cut at the period's ends, of the jobs that ended in one of the states of `lost_jobs`",
    "`lost_jobs`의 상태로 끝난 작업의 코어 시간 (기간의 경계에서 자름)",
    _hours("lost_core_s"),
    ("lost_core_s",),
)
LOST_GPU_HOURS = Measure(
    "lost_gpu_hours",
    "h",
    "GPU hours lost",
    "손실된 GPU 시간",
    "GPU hours, cut at the period's ends, of the jobs that ended in one of the states of `lost_jobs`",
    "`lost_jobs`의 상태로 끝난 작업의 GPU 시간 (기간의 경계에서 자름)",
    _hours("lost_gpu_s"),
    ("lost_gpu_s",),
)

UNUSED_CORE_HOURS = Measure(
    "unused_core_hours",
    "h",
    "Core hours not used",
    "쓰지 않은 코어 시간",
    "Allocated cores × elapsed − TotalCPU, of the jobs that `cpu_efficiency` knows; all their hours, before "
    "the period too",
    "할당 코어 × 경과 − TotalCPU (CPU 효율을 아는 작업만). 기간 이전의 시간도 포함",
    _unused("cpu_used_s", "cpu_alloc_s", HOUR),
    CPU_EFFICIENCY.numbers,
    covered="cpu_jobs",
)
UNTOUCHED_MEMORY = Measure(
    "untouched_memory_gib_hours",
    "GiB h",
    "Memory never touched",
    "쓰지 않은 메모리",
    "(Allocated memory − peak memory) × elapsed, in GiB hours, of measured jobs that ended in the period. "
    "The peak is an upper bound, this a lower one",
    "기간 안에 끝나고 측정된 작업의 (할당 메모리 − 최대 메모리) × 경과, GiB 시간. 최대 메모리가 상한값이므로 "
    "하한값",
    _unused("mem_used_mib_s", "mem_alloc_mib_s", HOUR * 1024),
    MEMORY_EFFICIENCY.numbers,
    covered="mem_jobs",
)
IDLE_GPU_HOURS = Measure(
    "idle_gpu_hours",
    "h",
    "GPU hours idle",
    "유휴 GPU 시간",
    "GPU hours × (1 − mean GPU utilisation), of measured jobs that ended in the period; all their hours, "
    "before it too. By GPU type they are the job's, under the type of most of its GPUs",
    "기간 안에 끝나고 측정된 작업의 GPU 시간 × (1 − 평균 GPU 사용률). 기간 이전의 시간도 포함. GPU "
    "종류별로는 작업의 GPU 중 가장 많은 종류에 셈",
    _unused("gpu_used_s", "gpu_alloc_s", HOUR),
    GPU_EFFICIENCY.numbers,
    covered="gpu_jobs",
    of="gpu_ended",
)
CORES_PER_GPU = Measure(
    "cores_per_gpu",
    "count",
    "Cores per GPU",
    "GPU당 코어 수",
    "Σ core hours of jobs with GPUs / Σ their GPU hours. By GPU type, unknown where no job has most of its "
    "GPUs of that type: cores count there",
    "GPU 작업의 Σ 코어 시간 / Σ GPU 시간. GPU 종류별로는, 그 종류가 가장 많은 작업이 없으면 알 수 없음"
    "(코어는 그쪽에 셈)",
    lambda sums, _: ratio(sums["gpu_core_s"], sums["gpu_s"]) if sums["gpu_core_s"] else None,
    ("gpu_core_s", "gpu_s"),
)

_USAGE: Final = (CORE_HOURS, GPU_HOURS, JOBS, CORE_SHARE, GPU_SHARE, MEAN_WAIT)
REPORTS: Final = {
    report.name: report
    for report in (
        Report("usage", "Usage", "사용량", ("tenant",), _USAGE),
        Report("top", "Top consumers", "최다 사용자", ("user",), _USAGE),
        WAITS,
        SLOWDOWN,
        Report("sizes", "Job sizes", "작업 크기", ("size",), (CORE_HOURS, CORE_SHARE, GPU_HOURS, JOBS)),
        Report(
            "outcomes",
            "Outcomes, and the hours lost to them",
            "결과와 손실된 시간",
            ("outcome",),
            (JOBS, CORE_HOURS, GPU_HOURS, LOST_JOBS, LOST_CORE_HOURS, LOST_GPU_HOURS),
        ),
        Report(
            "efficiency",
            "Efficiency",
            "효율",
            ("user",),
            (CPU_EFFICIENCY, MEMORY_EFFICIENCY, GPU_EFFICIENCY, TIME_ACCURACY, CORE_HOURS, JOBS),
        ),
        Report(
            "waste",
            "Waste",
            "낭비",
            ("user",),
            (UNUSED_CORE_HOURS, UNTOUCHED_MEMORY, IDLE_GPU_HOURS, CORES_PER_GPU, CORE_HOURS, GPU_HOURS),
        ),
        UTILISATION,
        CORE_UTILISATION,
        NODE_DOWNTIME,
        FAIR_SHARE,
        QUOTAS,
        WAITING,
    )
}
"""Every report by its name, in the order in which they are listed."""
