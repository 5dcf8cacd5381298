"""The reports on what the clusters had and lacked, and on fair shares. Pure.

Their lines are made by `capacity` (utilisation, down time) and `fair_share`.
"""

from __future__ import annotations

from typing import Final

from broker.reports.measures import HOUR, Compute, Measure, Report, Sums, Value, ratio, text

PERIODS: Final = ("day", "week", "month", "quarter", "year")
LINE: Final = "line"
"""Counts the lines that were added up: what is one's alone (a factor, a reason) is nobody's of several."""
AVAILABLE: Final = ("down_s", "drained_s", "planned_s")
"""What is taken off the capacity before it is compared with what was allocated."""


def available_s(sums: Sums) -> float:
    """Reported − down − drained − planned, in seconds."""
    return max(0.0, sums["total_s"] - sum(sums[name] for name in AVAILABLE))


def _idle(sums: Sums, _: Sums) -> Value:
    if not sums["total_s"]:
        return None
    return max(0.0, available_s(sums) - sums["reserved_s"] - sums["known_allocated_s"]) / HOUR


def _known(name: str, unit: str, title: tuple[str, str], meaning: tuple[str, str], made: Compute) -> Measure:
    """A figure for which the capacity has to be known; coverage says for how many hours it is."""
    return Measure(name, unit, *title, *meaning, made, covered="known_h", of="period_h", counted="hours")


def _hours(name: str, title: str, title_ko: str, meaning: str, meaning_ko: str) -> Measure:
    made: Compute = lambda sums, _: sums[name] / HOUR if sums["total_s"] else None  # noqa: E731
    return _known(name.replace("_s", "_hours"), "h", (title, title_ko), (meaning, meaning_ko), made)


def _utilisation(unit: str, unit_ko: str) -> tuple[Measure, ...]:
    return (
        _known(
            "utilisation",
            "ratio",
            ("Utilisation", "가동률"),
            (
                f"Allocated / (reported − down − drained − planned) {unit} hours, of the days of which it is "
                "known what was reported. Over 1 where jobs still ran on what was under maintenance",
                f"할당 / (등록 − 고장 − 배제 − 계획 정지) {unit_ko} 시간. 등록을 아는 날만. 유지보수 중인 "
                "노드에서 작업이 계속 돌면 1을 넘을 수 있음",
            ),
            lambda sums, _: ratio(sums["known_allocated_s"], available_s(sums)),
        ),
        _known(
            "raw_utilisation",
            "ratio",
            ("Raw utilisation", "총 가동률"),
            (
                f"Allocated / reported {unit} hours of those days, whatever was down",
                f"그 날들의 할당 / 등록 {unit_ko} 시간. 고장을 빼지 않음",
            ),
            lambda sums, _: ratio(sums["known_allocated_s"], sums["total_s"]),
        ),
        Measure(
            "allocated_hours",
            "h",
            "Allocated",
            "할당",
            f"{unit} hours of jobs, from accounting (sacct), by the day; of all jobs, whoever reads this",
            f"작업에 할당된 {unit_ko} 시간(sacct), 일별. 보는 사람과 무관하게 전체 작업",
            lambda sums, _: sums["allocated_s"] / HOUR,
        ),
        _known(
            "idle_hours",
            "h",
            ("Idle", "유휴"),
            (
                "Reported − down − drained − planned − reserved − allocated, 0 at least. What is free on a "
                "node that is being drained is among it: slurmdbd knows a drained node from its last job's "
                "end on",
                "등록 − 고장 − 배제 − 계획 정지 − 예약 − 할당(최소 0). 배제 중인 노드의 남는 부분도 포함: "
                "slurmdbd는 마지막 작업이 끝난 때부터 배제로 기록함",
            ),
            _idle,
        ),
        _hours(
            "reserved_s",
            "Reserved, unused",
            "예약(미사용)",
            "Reservations that are not for maintenance, as far as no job ran in them (UnusedWall, spread "
            "evenly; slurmdbd brings it up to date by the hour)",
            "유지보수가 아닌 예약 중 작업이 없던 부분의 시간(UnusedWall을 고르게 나눔, 매시 갱신)",
        ),
        _hours(
            "down_s",
            "Down",
            "고장",
            "Nodes in DOWN, not responding or failed (sacctmgr show event); all of the cluster while "
            "slurmctld was away. sreport's Down is down + drained",
            "노드가 DOWN, 무응답, 실패한 시간(sacctmgr show event). slurmctld가 없던 동안은 전체. "
            "sreport의 Down은 고장 + 배제",
        ),
        _hours(
            "drained_s",
            "Drained",
            "배제",
            "Nodes that somebody or a health check took away (DRAIN and not DOWN), from their last job's "
            "end on",
            "사람이나 점검이 뺀 노드(DRAIN이며 DOWN이 아님)의 시간. 마지막 작업이 끝난 때부터",
        ),
        _hours(
            "planned_s",
            "Planned down",
            "계획 정지",
            "Maintenance reservations (MAINT); events of their nodes meanwhile count here only. sreport "
            "leaves out their GPUs, and those with IGNORE_JOBS altogether: idle there",
            "유지보수 예약(MAINT) 시간. 그동안의 노드 고장은 여기에만 셈. sreport는 예약의 GPU와 "
            "IGNORE_JOBS 예약을 빼고 유휴로 셈",
        ),
        _hours(
            "total_s",
            "Reported",
            "등록",
            "What the cluster had, as slurmctld registered it with slurmdbd, times the hours up to the age "
            "of this report. Unknown before the first registration that was read",
            "slurmctld가 slurmdbd에 등록한 양 × 이 보고서의 기준 시각까지의 시간. 처음 읽은 등록 이전은 알 "
            "수 없음",
        ),
    )


UTILISATION: Final = Report(
    "utilisation",
    "GPU utilisation of the clusters",
    "클러스터 GPU 가동률",
    ("day", "gpu_type"),
    _utilisation("GPU", "GPU"),
    "gpu_capacity",
    ("cluster", "gpu_type", *PERIODS),
    public=True,
)
CORE_UTILISATION: Final = Report(
    "core_utilisation",
    "Core utilisation of the clusters",
    "클러스터 코어 가동률",
    ("day",),
    _utilisation("Core", "코어"),
    "core_capacity",
    ("cluster", *PERIODS),
    public=True,
)


def _one(name: str, unit: str, title: tuple[str, str], meaning: tuple[str, str]) -> Measure:
    """A number of one association; several have none together."""

    def compute(sums: Sums, _: Sums) -> Value:
        return sums.numbers.get(name) if sums[LINE] == 1 else None

    return Measure(name, unit, *title, *meaning, compute, (name, LINE))


def _words(name: str, unit: str, title: tuple[str, str], meaning: tuple[str, str]) -> Measure:
    return Measure(name, unit, *title, *meaning, text(name))


def _sum(name: str, title: tuple[str, str], meaning: tuple[str, str], scale: int, unit: str = "h") -> Measure:
    compute: Compute = lambda sums, _: sums[name] / scale  # noqa: E731
    return Measure(name.replace("_s", "_hours"), unit, *title, *meaning, compute, (name,))


NODE_DOWNTIME: Final = Report(
    "node_downtime",
    "Node down time",
    "노드 정지 시간",
    ("node", "began", "state"),
    (
        _sum(
            "node_s",
            ("Node hours down", "노드 정지 시간"),
            (
                "Hours within the period that a node was down, drained or under maintenance, each once: "
                "under maintenance it is nothing else. A drained node counts from its last job's end on. "
                "What has not ended counts up to the age of this report",
                "기간 안에서 노드가 고장, 배제 또는 유지보수 중이던 시간. 한 번만 셈: 유지보수 중에는 "
                "유지보수로만. 배제는 마지막 작업이 끝난 때부터. 끝나지 않은 것은 이 보고서의 기준 시각까지",
            ),
            HOUR,
        ),
        _sum(
            "gpu_s",
            ("GPU hours lost", "손실 GPU 시간"),
            ("The nodes' GPUs × those hours", "노드의 GPU 수 × 그 시간"),
            HOUR,
        ),
        _sum(
            "core_s",
            ("Core hours lost", "손실 코어 시간"),
            ("The nodes' cores × those hours", "노드의 코어 수 × 그 시간"),
            HOUR,
        ),
        _sum(
            "events",
            ("Times", "횟수"),
            (
                "How often it began in the period, or had begun before and went on",
                "기간 안에 시작했거나 그 전부터 이어진 횟수",
            ),
            1,
            "count",
        ),
        _words(
            "ended",
            "time",
            ("Ended", "끝"),
            ("When it ended; unknown while it goes on", "끝난 때. 계속되는 동안은 알 수 없음"),
        ),
        _words(
            "slurm_state",
            "text",
            ("Slurm's word", "Slurm 상태"),
            (
                "State of the event, or the name of the maintenance reservation. DRAIN hides a DOWN, "
                "`state` does not",
                "이벤트의 상태 또는 유지보수 예약의 이름. DRAIN은 DOWN을 가리지만 `state`는 가리지 않음",
            ),
        ),
        _words(
            "reason",
            "text",
            ("Reason", "사유"),
            (
                "As it was given to Slurm; everybody on the cluster can read it there too",
                "Slurm에 적힌 그대로. 클러스터에서도 누구나 볼 수 있음",
            ),
        ),
        _words(
            "who",
            "text",
            ("By", "담당"),
            (
                "Who set the state, for admins; slurm: it did itself",
                "상태를 바꾼 계정(관리자에게만). slurm: 스스로",
            ),
        ),
    ),
    "node_events",
    ("cluster", "node", "began", "state", "reason", *PERIODS),
    jobs=False,
    public=True,
)

FAIR_SHARE: Final = Report(
    "fairshare",
    "Fair shares",
    "공정 배분",
    ("tenant",),
    (
        _one(
            "level_fs",
            "count",
            ("LevelFS", "LevelFS"),
            (
                "Shares / use among the siblings in the tree (sshare LevelFS): over 1 less was used than "
                "is due. Infinite (`Infinity`) for who has shares and used nothing: due most. Each figure is "
                "of one association at one look: a line of several has none",
                "같은 층에서의 지분 / 사용(sshare LevelFS). 1보다 크면 몫보다 덜 씀. 지분이 있고 사용이 "
                "없으면 무한(`Infinity`)으로, 가장 먼저 받을 차례. 모든 항목은 한 association의 한 시점 "
                "값이며, 여럿을 합친 줄에는 없음",
            ),
        ),
        _one(
            "fair_share",
            "count",
            ("Factor", "계수"),
            (
                "sshare FairShare, 0 to 1, of people only: what their jobs' priority gets",
                "sshare FairShare(0~1). 사람에게만 있으며 작업 우선순위에 들어감",
            ),
        ),
        _one(
            "norm_shares",
            "ratio",
            ("Shares", "지분"),
            ("Part of the siblings' shares (NormShares)", "같은 층의 지분 중 비율(NormShares)"),
        ),
        _one(
            "effective_usage",
            "ratio",
            ("Use", "사용"),
            (
                "Part of the siblings' decayed use (EffectvUsage)",
                "같은 층의 감쇠된 사용 중 비율(EffectvUsage)",
            ),
        ),
        _one(
            "raw_usage",
            "s",
            ("RawUsage", "RawUsage"),
            (
                "TRES-weighted seconds as the scheduler remembers them. They decay (PriorityDecayHalfLife) "
                "and can be reset: never bill from it",
                "스케줄러가 기억하는 TRES 가중 초. 감쇠하고 초기화될 수 있으므로 과금에 쓰지 않음",
            ),
        ),
        _words(
            "seen",
            "time",
            ("Seen", "확인"),
            (
                "The last look (sshare) in the period; split by time, the last in each day, week, month, … "
                "One is kept of each day",
                "기간의 마지막 확인 시각(sshare). 시간별로 나누면 각 일, 주, 월 등의 마지막. "
                "하루 하나씩 보관",
            ),
        ),
    ),
    "shares",
    ("cluster", "tenant", "account", "user", *PERIODS),
    jobs=False,
)
