"""The sentences of advice, in English and Korean, and amounts as a spec and sbatch(1) write them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from broker.advice.rules import (
    CPU_MARGIN,
    GPU_TARGET,
    KILLED_MARGIN,
    MEMORY_MARGIN,
    SAMPLES,
    TIME_MARGIN,
    Finding,
    Resource,
    Rule,
)
from broker.spec.quantities import Memory, format_time

UNITS: Final[Mapping[Resource, str]] = {"memory": "GiB h", "gpu_count": "GPU h", "cpus": "core h"}
"""What `saves` is counted in; time that is not used is not taken from anybody."""

TEXTS: Final[Mapping[Rule, tuple[str, str]]] = {
    Rule.MEMORY_LOWER: (
        "The largest peak of {measured} measured jobs (of {jobs}) was {peak_mib} of {asked_mib}: "
        f"that times {MEMORY_MARGIN:g} is enough.",
        "측정된 작업 {measured}개(전체 {jobs}개)의 최대 메모리는 {asked_mib} 중 {peak_mib}입니다. "
        f"그 {MEMORY_MARGIN:g}배면 충분합니다.",
    ),
    Rule.MEMORY_KILLED: (
        "{killed} of {jobs} jobs ran out of memory, with up to {killed_mib}: "
        f"ask for at least {KILLED_MARGIN:g} times as much.",
        "작업 {jobs}개 중 {killed}개가 메모리 부족으로 끝났습니다(최대 {killed_mib}). "
        f"그 {KILLED_MARGIN:g}배 이상을 요청하세요.",
    ),
    Rule.MEMORY_CLOSE: (
        "A job that succeeded had a peak of {peak_mib}, and {asked_mib} is asked for: the next may run out.",
        "성공한 작업의 최대 메모리가 {peak_mib}인데 요청은 {asked_mib}입니다. 다음에는 모자랄 수 있습니다.",
    ),
    Rule.TIME_LOWER: (
        "The longest run took {longest_s} of {asked_s}: "
        f"that times {TIME_MARGIN:g} is enough, and a shorter job starts earlier.",
        "가장 오래 걸린 실행이 {asked_s} 중 {longest_s}입니다. "
        f"그 {TIME_MARGIN:g}배면 충분하고, 짧은 작업은 더 일찍 시작합니다.",
    ),
    Rule.TIME_OUT: (
        "{ended} of {jobs} jobs reached their time limit, of up to {ended_s}: "
        f"ask for at least {KILLED_MARGIN:g} times as much.",
        "작업 {jobs}개 중 {ended}개가 제한 시간(최대 {ended_s})에 걸렸습니다. "
        f"그 {KILLED_MARGIN:g}배 이상을 요청하세요.",
    ),
    Rule.TIME_CLOSE: (
        "A run that succeeded took {longest_s}, and {asked_s} is asked for: the next may reach its limit.",
        "성공한 실행이 {longest_s} 걸렸는데 요청은 {asked_s}입니다. 다음에는 제한 시간에 걸릴 수 있습니다.",
    ),
    Rule.GPUS_LOWER: (
        "Of {asked_gpus} GPUs {busy_gpus} were busy on average, in the job that used them most "
        f"({{util_share}}): fewer would be busy to {GPU_TARGET:.0%} at most. See that the model fits into "
        "their memory; it may take longer.",
        "GPU {asked_gpus}개 중 평균 {busy_gpus}개만 사용되었습니다(가장 많이 쓴 작업, {util_share}). "
        f"줄여도 사용률은 {GPU_TARGET:.0%} 이하입니다. 모델이 GPU 메모리에 맞는지 확인하세요. "
        "더 오래 걸릴 수 있습니다.",
    ),
    Rule.GPUS_UNUSED: (
        "All {jobs} jobs asked for GPUs that were never used.",
        "작업 {jobs}개 모두 요청한 GPU를 전혀 사용하지 않았습니다.",
    ),
    Rule.CPUS_LOWER: (
        "Of {asked_cores} cores {busy_cores} were busy on average, in the job that used them most: "
        f"that times {CPU_MARGIN:g} is enough.",
        "코어 {asked_cores}개 중 평균 {busy_cores}개만 사용되었습니다(가장 많이 쓴 작업). "
        f"그 {CPU_MARGIN:g}배면 충분합니다.",
    ),
    Rule.FITS: ("What is asked for fits what was used.", "요청한 자원이 사용량에 맞습니다."),
    Rule.NO_JOBS: (
        "No job that this can be told from has ended and is in accounting.",
        "판단에 쓸 수 있는, 끝나고 회계에 기록된 작업이 없습니다.",
    ),
    Rule.NO_SUCCESS: (
        "None of {jobs} jobs has succeeded: what success needs is not known.",
        "작업 {jobs}개 중 성공한 것이 없어 필요한 양을 알 수 없습니다.",
    ),
    Rule.NOT_MEASURED: (
        "Nobody measured it in any of {jobs} jobs: unknown, which is not 0.",
        "작업 {jobs}개 모두 측정값이 없습니다. 알 수 없음은 0이 아닙니다.",
    ),
    Rule.PARTLY_MEASURED: (
        "The GPUs were never used in {measured} of {jobs} jobs; nobody measured the others.",
        "작업 {jobs}개 중 {measured}개는 GPU를 전혀 쓰지 않았고, 나머지는 측정값이 없습니다.",
    ),
    Rule.TOO_SHORT: (
        f"All jobs that succeeded were shorter than {SAMPLES} looks at their use: peaks may be missed.",
        f"성공한 작업이 모두 Slurm의 측정 {SAMPLES}회보다 짧아 최대값을 놓쳤을 수 있습니다.",
    ),
    Rule.NOT_ASKED: ("None is asked for by number.", "수량을 지정해 요청하지 않았습니다."),
    Rule.TIME_WAITS: (
        "Less time would do now, but with fewer GPUs or cores it may take longer: ask again after some runs.",
        "지금은 더 짧아도 되지만 GPU나 코어를 줄이면 오래 걸릴 수 있습니다. 몇 번 실행한 뒤 다시 보세요.",
    ),
}

ALSO: Final[Mapping[tuple[Rule, str], tuple[str, str]]] = {
    (Rule.MEMORY_LOWER, "killed_mib"): (
        f" But a job ran out of {{killed_mib}}, and {KILLED_MARGIN:g} times that is more.",
        f" 다만 메모리 부족으로 끝난 작업이 있어 그 {{killed_mib}}의 {KILLED_MARGIN:g}배를 권합니다.",
    ),
    (Rule.TIME_LOWER, "ended_s"): (
        f" But a job reached a limit of {{ended_s}}, and {KILLED_MARGIN:g} times that is more.",
        f" 다만 제한 시간에 걸린 작업이 있어 그 {{ended_s}}의 {KILLED_MARGIN:g}배를 권합니다.",
    ),
}
"""What is added where another number than the rule's own decides."""


def sentence(finding: Finding) -> tuple[str, str]:
    """What a finding says, in English and Korean."""
    words = {name: said(name, value) for name, value in finding.because.items()}
    words |= {"jobs": str(finding.jobs), "measured": str(finding.measured)}
    en, ko = TEXTS[finding.rule]
    for name in finding.because:
        more = ALSO.get((finding.rule, name), ("", ""))
        en, ko = en + more[0], ko + more[1]
    return en.format(**words), ko.format(**words)


def said(name: str, value: float) -> str:
    """A number for people; its name tells the unit.

    >>> said("peak_mib", 1536), said("longest_s", 5), said("util_share", 0.123), said("busy_gpus", 0.52)
    ('1.5 GiB', '5s', '12 %', '0.5')
    """
    if name.endswith("_mib"):
        return f"{short(value / 1024)} GiB" if value >= 1024 else f"{value:.0f} MiB"
    if name.endswith("_s"):
        return span(round(value))
    return f"{value:.0%}".replace("%", " %") if name.endswith("_share") else f"{round(value, 1):g}"


def short(amount: float) -> str:
    """An amount in four digits, or whole; never with an exponent.

    >>> short(8.78906), short(0.5), short(10_240.3)
    ('8.789', '0.5', '10,240')
    """
    return f"{amount:,.0f}" if amount >= 1000 else f"{amount:.4g}"


def span(seconds: int) -> str:
    """A span of time as a spec may write it.

    >>> span(600), span(5400), span(90_000), span(0)
    ('10m', '1h30m', '25h', '0s')
    """
    hours, minutes, rest = seconds // 3600, seconds % 3600 // 60, seconds % 60
    parts = ((hours, "h"), (minutes, "m"), (rest, "s"))
    return "".join(f"{amount}{unit}" for amount, unit in parts if amount) or "0s"


def in_spec(resource: Resource, amount: int) -> str | int:
    """An amount as the field of a spec's `resources` has it."""
    if resource == "memory":
        return str(Memory(amount))
    return span(amount) if resource == "time" else amount


def for_sbatch(resource: Resource, amount: int, nodes: int, gpu_type: str = "") -> str:
    """The option of sbatch(1) that asks for it; its numbers are per node. `gpu_type`: Slurm's own name.

    >>> for_sbatch("memory", 4096, 2), for_sbatch("time", 600, 1), for_sbatch("gpu_count", 4, 2, "a100")
    ('--mem=2048M', '--time=0-00:10:00', '--gres=gpu:a100:2')
    """
    each = amount // nodes
    if resource == "gpu_count":
        return f"--gres=gpu:{f'{gpu_type}:' if gpu_type else ''}{each}" if amount else "--gres=none"
    if resource == "time":
        return f"--time={format_time(amount)}"
    return f"--mem={each}M" if resource == "memory" else f"--cpus-per-task={each}"
