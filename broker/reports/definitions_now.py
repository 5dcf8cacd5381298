"""The reports on how things stand now: quotas and their forecast, and what waits. Pure.

Their lines are made by `quota_report` and `waiting_report`.
"""

from __future__ import annotations

from typing import Final

from broker.reports.measures import Compute, Measure, Report, Sums, Value, ratio, text

LINE: Final = "line"
"""Counts the lines that were added up: of several, amounts of different things are no amount."""


def _amount(name: str, title: str, title_ko: str, meaning: str, meaning_ko: str) -> Measure:
    def compute(sums: Sums, _: Sums) -> Value:
        return sums.numbers.get(name) if sums[LINE] == 1 else None

    return Measure(name, "amount", title, title_ko, meaning, meaning_ko, compute, (name, LINE))


def _part(sums: Sums, _: Sums) -> Value:
    return ratio(sums["used"] + sums["reserved"], sums["limit"]) if sums[LINE] == 1 else None


def _words(name: str, unit: str, title: str, title_ko: str, meaning: str, meaning_ko: str) -> Measure:
    return Measure(name, unit, title, title_ko, meaning, meaning_ko, text(name))


QUOTAS: Final = Report(
    "quotas",
    "Tenants against their quotas",
    "테넌트별 할당량 현황과 소진 예측",
    ("tenant", "resource"),
    (
        Measure(
            "taken",
            "ratio",
            "Taken",
            "소진율",
            "(Used + set aside) / quota in the present period (UTC): the month of GPU hours and uploads, "
            "the day of API calls. Everybody sees the own tenant's",
            "(사용 + 예약) / 할당량. 현재 기간(UTC) 기준: GPU 시간과 업로드는 이번 달, API 호출은 오늘. "
            "누구나 자기 테넌트의 것을 봄",
            _part,
            ("used", "reserved", "limit", LINE),
        ),
        _amount(
            "limit",
            "Quota",
            "할당량",
            "What may be used in the period: GPU hours (gpu_hours), GiB (upload_gb) or calls (api_calls)",
            "기간 안에 쓸 수 있는 양: GPU 시간(gpu_hours), GiB(upload_gb), 호출 수(api_calls)",
        ),
        _amount(
            "used",
            "Used",
            "사용",
            "What the quotas' ledger has charged in the period; GPU hours of attempts that have ended, from "
            "accounting (ElapsedRaw × GPUs). Slurm's RawUsage decays and is never used",
            "할당량 원장이 이 기간에 기록한 사용량. GPU 시간은 끝난 시도의 회계값(ElapsedRaw × GPU 수). "
            "감쇠하는 Slurm RawUsage는 쓰지 않음",
        ),
        _amount(
            "reserved",
            "Set aside",
            "예약",
            "GPU hours that released jobs may still use, up to their time limits",
            "풀린 작업이 시간 한도까지 더 쓸 수 있는 GPU 시간",
        ),
        _amount(
            "rate_recent",
            "Per day, last 7 days",
            "하루 평균(최근 7일)",
            "Mean use per day over the last 7 days (since the first use where that is younger, a day at "
            "least); running jobs count up to now. Uploads: over this month. API calls: over whole days. "
            "Unknown: nothing was used yet",
            "최근 7일의 하루 평균 사용량(첫 사용이 더 늦으면 그때부터, 최소 하루). 실행 중인 작업은 "
            "지금까지만 포함. 업로드는 이번 달 평균, API 호출은 지난 날들만. 아직 사용이 없으면 알 수 없음",
        ),
        _amount(
            "rate_longer",
            "Per day, last 28 days",
            "하루 평균(최근 28일)",
            "The same over the last 28 days. Uploads: over this month and the last",
            "최근 28일의 하루 평균 사용량. 업로드는 지난달과 이번 달 평균",
        ),
        _words(
            "runs_out",
            "text",
            "Runs out",
            "소진 예상일",
            "The day (UTC) on which used + set aside comes to the quota, going on in a straight line at the "
            "higher of the two means; 'not before' the period's end, when it begins anew. Empty without use",
            "두 평균 중 큰 값으로 직선 연장할 때 사용 + 예약이 할당량에 이르는 날(UTC). 기간이 끝나 "
            "새로 시작할 때까지 이르지 않으면 'not before'. 사용이 없으면 비어 있음",
        ),
        _words(
            "runs_out_latest",
            "text",
            "At the latest",
            "늦어도",
            "The same at the lower of the two means: the two days are the range of the forecast",
            "두 평균 중 작은 값으로 계산한 날. 두 날짜가 예측 범위",
        ),
    ),
    source="quotas",
    dimensions=("tenant", "resource"),
    jobs=False,
    now=True,
)


_OF_JOBS: Final = (
    *("job", "cluster", "tenant", "user", "partition", "qos", "gpu_type", "gpu_count", "reason"),
)


def _mean(above: str, below: str) -> Compute:
    return lambda sums, _: ratio(sums[above], sums[below])


def _sum(name: str) -> Compute:
    return lambda sums, _: sums[name]


def _asked(name: str, unit: str, title: str, title_ko: str, meaning: str, meaning_ko: str) -> Measure:
    return Measure(name, unit, title, title_ko, meaning, meaning_ko, _sum(name), (name,))


WAITING: Final = Report(
    "waiting",
    "Longest waiting jobs and why",
    "가장 오래 기다리는 작업과 그 이유",
    ("job", "cluster", "user", "partition"),
    (
        Measure(
            "waited",
            "s",
            "Waited",
            "대기 시간",
            "From submission up to now, of jobs that wait in the queue (squeue, held ones too); of several "
            "jobs the mean",
            "대기열에 있는 작업(squeue, 보류된 것 포함)의 제출부터 지금까지. 여러 작업이면 평균",
            _mean("waited_s", "jobs"),
            ("waited_s", "jobs"),
        ),
        Measure(
            "to_eligible",
            "s",
            "Before eligible",
            "자격까지",
            "The part of it in which it could not be started at all (approval, dependency, hold, begin "
            "time): submit to eligible, up to now where it is not eligible. Unknown where accounting has no "
            "such time",
            "그중 시작할 자격이 없던 시간(승인, 의존, 보류, 시작 시각): 제출에서 자격까지, 아직이면 "
            "지금까지. 회계에 시각이 없으면 알 수 없음",
            _mean("to_eligible_s", "eligible_known"),
            ("to_eligible_s", "eligible_known"),
            covered="eligible_known",
            of="jobs",
        ),
        Measure(
            "since_eligible",
            "s",
            "Since eligible",
            "자격 이후",
            "The other part: eligible up to now (contention; Slurm calls it Planned)",
            "나머지: 자격에서 지금까지(자원 경합, Slurm의 Planned)",
            _mean("since_eligible_s", "eligible_known"),
            ("since_eligible_s", "eligible_known"),
            covered="eligible_known",
            of="jobs",
        ),
        _asked(
            "jobs",
            "jobs",
            "Jobs",
            "작업 수",
            "Jobs that wait; elements of an array that wait together are one",
            "기다리는 작업 수. 함께 기다리는 배열 작업은 한 건",
        ),
        _asked("gpus", "count", "GPUs", "GPU", "GPUs that they ask for", "요청한 GPU 수"),
        _asked("cpus", "count", "CPUs", "CPU", "CPUs that they ask for", "요청한 CPU 수"),
        _words(
            "asks_for",
            "text",
            "Asks for",
            "요청 자원",
            "What the job asks for over all its nodes, and its time limit",
            "모든 노드에 걸쳐 요청한 자원과 시간 한도",
        ),
        _words(
            "expected_start",
            "time",
            "Expected start",
            "예상 시작",
            "Slurm's own estimate (backfill), where it gives one",
            "Slurm이 추정한 시작 시각(backfill). 없으면 비어 있음",
        ),
        _words(
            "why",
            "text",
            "Why",
            "이유",
            "Of the broker's own jobs what the queue says of them (holds, what they wait for, jobs before "
            "them), of others Slurm's reason in words",
            "브로커의 작업은 대기열이 밝힌 이유(보류, 먼저 끝나야 할 작업, 앞선 작업), 그 밖의 작업은 "
            "Slurm의 사유를 풀어 쓴 것",
        ),
        _words("why_ko", "text", "Why (ko)", "이유(한국어)", "The same in Korean", "한국어로 쓴 이유"),
    ),
    source="waiting",
    dimensions=_OF_JOBS,
    jobs=False,
    now=True,
)
