"""What the figures of waits and slowdowns mean, and the reports that show them. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from broker.accounting.buckets import SHORTEST_S, THOUSANDTHS
from broker.accounting.histograms import ERROR, quantile
from broker.reports.measures import Compute, Measure, Report, Sums, ratio

_EACH: Final = f"max(1, (wait + elapsed) / max(elapsed, {SHORTEST_S} s))"
_EACH_KO: Final = f"max(1, (대기 + 경과) / max(경과, {SHORTEST_S}초))"
_OFF: Final = f"nearest rank, from log buckets per day: at most {ERROR:.1%} off"
_OFF_KO: Final = f"일별 로그 구간에서 계산, 오차 {ERROR:.1%} 이내"


def _mean(sums: str, name: str, title: tuple[str, str], meaning: tuple[str, str]) -> Measure:
    def compute(line: Sums, _: Sums) -> float | None:
        return ratio(line[sums], line["started"])

    return Measure(name, "s", *title, *meaning, compute, (sums, "started"))


WAITED: Final = Measure(
    "waited",
    "jobs",
    "Jobs begun",
    "시작한 작업 수",
    "Jobs that began in the period; one that was cancelled before it had a node did not begin",
    "기간 안에 시작한 작업 수. 노드를 받기 전에 취소된 작업은 제외",
    lambda sums, _: sums["started"],
    ("started",),
)
MEAN_WAIT: Final = _mean(
    "wait_s",
    "mean_wait",
    ("Mean wait", "평균 대기"),
    (
        "Contention: Σ (start − eligible) / jobs that began in the period. Slurm calls it Planned",
        "자원 경합: Σ (시작 − 자격) / 기간 안에 시작한 작업 수. Slurm의 Planned",
    ),
)
MEAN_HOLD: Final = _mean(
    "hold_s",
    "mean_hold",
    ("Mean time to eligible", "자격까지 평균"),
    (
        "Before it could be started at all (approval, dependency, hold): Σ (eligible − submit) / jobs begun",
        "시작할 자격을 얻기까지(승인, 의존, 보류): Σ (자격 − 제출) / 시작한 작업 수",
    ),
)


def _wait(name: str, share: float, title: str, title_ko: str) -> Measure:
    return Measure(
        name,
        "s",
        title,
        title_ko,
        f"Eligible to start (contention): {title.lower()}, {_OFF}",
        f"자격에서 시작까지(자원 경합)의 {title_ko}. {_OFF_KO}",
        lambda sums, _: quantile(sums.histograms.get("wait", {}), share),
        histograms=("wait",),
        quantile=share,
    )


def _slow(
    name: str, title: tuple[str, str], meaning: tuple[str, str], compute: Compute, *sums: str
) -> Measure:
    """A figure of slowdowns: known once a job has ended."""
    numbers = (*sums, "slowdown_jobs", "started")
    return Measure(name, "count", *title, *meaning, compute, numbers, covered="slowdown_jobs", of="started")


def _slowdown(name: str, share: float, title: str, title_ko: str) -> Measure:
    def compute(line: Sums, _: Sums) -> float | None:
        found = quantile(line.histograms.get("slowdown", {}), share)
        return None if found is None else max(1.0, found)

    meaning = (
        f"{_EACH} of each job that began in the period and has ended; wait: eligible to start (contention). "
        f"{title}, {_OFF}",
        f"기간 안에 시작해 끝난 작업마다 {_EACH_KO}. 대기는 자격에서 시작까지(자원 경합). {title_ko}, "
        f"{_OFF_KO}",
    )
    made = _slow(name, (title, title_ko), meaning, compute)
    return replace(made, histograms=("slowdown",), quantile=share)


def _mean_slowdown(name: str, sums: str, title: tuple[str, str], meaning: tuple[str, str]) -> Measure:
    def compute(line: Sums, _: Sums) -> float | None:
        return ratio(line[sums] / THOUSANDTHS, line["slowdown_jobs"])

    return _slow(name, title, meaning, compute, sums)


MEAN_SLOWDOWN: Final = _mean_slowdown(
    "mean_slowdown",
    "slowdowns",
    ("Mean slowdown", "평균 지연 배율"),
    (
        f"Mean of {_EACH} over the jobs that began in the period and have ended; wait: eligible to start "
        "(contention). A few short jobs that waited long make most of it: median and percentiles (report "
        "`slowdown`) say more",
        f"기간 안에 시작해 끝난 작업의 {_EACH_KO} 평균. 대기는 자격에서 시작까지(자원 경합). 오래 기다린 "
        "짧은 작업 몇 개에 크게 좌우되므로 중앙값과 백분위(`slowdown` 보고서)를 함께 볼 것",
    ),
)
MEAN_SLOWDOWN_FROM_SUBMIT: Final = _mean_slowdown(
    "mean_slowdown_from_submit",
    "submit_slowdowns",
    ("Mean slowdown from submission", "제출 기준 평균 지연 배율"),
    (
        "The same of the wait from submission to start, as the literature has it (Feitelson and Rudolph "
        "1998): approval, dependencies and holds are in it",
        "제출에서 시작까지의 대기로 계산한 같은 값(Feitelson, Rudolph 1998). 승인, 의존, 보류 시간을 포함",
    ),
)
WAITS: Final = Report(
    "waits",
    "Waits",
    "대기 시간",
    ("partition",),
    (
        _wait("wait_median", 0.5, "Median wait", "중앙값"),
        _wait("wait_p90", 0.9, "90th percentile of waits", "90 백분위"),
        _wait("wait_p95", 0.95, "95th percentile of waits", "95 백분위"),
        *(MEAN_WAIT, MEAN_HOLD, MEAN_SLOWDOWN, WAITED),
    ),
)
SLOWDOWN: Final = Report(
    "slowdown",
    "Bounded slowdown",
    "지연 배율",
    ("size",),
    (
        _slowdown("slowdown_median", 0.5, "Median slowdown", "지연 배율 중앙값"),
        _slowdown("slowdown_p90", 0.9, "90th percentile of slowdowns", "지연 배율 90 백분위"),
        _slowdown("slowdown_p95", 0.95, "95th percentile of slowdowns", "지연 배율 95 백분위"),
        *(MEAN_SLOWDOWN, MEAN_SLOWDOWN_FROM_SUBMIT, WAITED),
    ),
)
