"""Slurm's own reasons why a job waits, each as one plain sentence. Pure.

Words are those of Slurm 22.05 to 26.05 (squeue(1), JOB REASON CODES; slurm/src/common/job_state_reason.c).
Limits have names built from parts (`QOSGrpMemLimit`, `AssocMaxGRESPerJob`, `MaxCpuRunMinsPerUser`); their
sentences are built from the same parts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Why:
    """Why something waits. `code` is for programs; the sentences say the same in two languages."""

    code: str
    en: str
    ko: str


def of_slurm(reason: str | None) -> Why:
    """The sentence for Slurm's own reason alone; a word that is not known is shown as it is (`other`)."""
    word = reason_word(reason)
    known = REASONS.get(word) or _limit(word)
    if known is not None:
        return known
    shown = (reason or word)[:200]
    return Why("other", f"Slurm gives a reason of its own: {shown}.", f"Slurm이 밝힌 사유: {shown}.")


def reason_word(reason: str | None) -> str:
    """Slurm's word without what it adds (`ReqNodeNotAvail, UnavailableNodes:a100-1`)."""
    match = re.match(r"\(?\s*([A-Za-z_]+)", reason or "")
    return match[1] if match else "None"


def _table() -> dict[str, Why]:
    def same(why: Why, *words: str) -> dict[str, Why]:
        return dict.fromkeys(words, why)

    return {
        **same(
            Why(
                "scheduling",
                "Slurm is about to look at it for the first time.",
                "Slurm이 곧 처음으로 살펴봅니다.",
            ),
            *("None", "InvalidReason", "InvaildReason", "SchedDefer", "Constraints"),
        ),
        "Priority": Why(
            "priority",
            "Work with a higher priority comes first.",
            "우선순위가 더 높은 작업이 먼저입니다.",
        ),
        "Resources": Why(
            "resources",
            "It is next, and starts when enough GPUs, CPUs and memory are free.",
            "다음 차례이며 GPU, CPU, 메모리가 충분히 비면 시작합니다.",
        ),
        "Dependency": Why(
            "dependency",
            "It waits for another job to complete.",
            "먼저 끝나야 할 작업을 기다립니다.",
        ),
        "DependencyNeverSatisfied": Why(
            "dependency_failed",
            "It can't start any more: a job that it waited for did not complete.",
            "기다리던 작업이 완료되지 않아 더는 시작할 수 없습니다.",
        ),
        "JobHeldAdmin": Why(
            "held",
            "An administrator holds it in Slurm, not through the broker.",
            "관리자가 Slurm에서 직접 보류했습니다.",
        ),
        "JobHeldUser": Why(
            "held",
            "Its owner's account holds it in Slurm, not through the broker.",
            "소유자 계정이 Slurm에서 직접 보류했습니다.",
        ),
        "JobHoldMaxRequeue": Why(
            "held",
            "It was put back into the queue too often and Slurm holds it now: an administrator looks at it.",
            "너무 여러 번 되돌려져 Slurm이 보류했습니다. 관리자의 확인이 필요합니다.",
        ),
        "BeginTime": Why(
            "begin_time",
            "It may not start before a set time.",
            "정해진 시각 전에는 시작할 수 없습니다.",
        ),
        "Licenses": Why(
            "licenses", "All licences that it needs are in use.", "필요한 라이선스가 모두 사용 중입니다."
        ),
        **same(
            Why(
                "nodes",
                "Nodes that it needs are down, drained or reserved.",
                "필요한 노드가 고장이거나 비우는 중이거나 예약되어 있습니다.",
            ),
            *("ReqNodeNotAvail", "NodeDown", "FrontEndDown"),
        ),
        **same(
            Why(
                "partition",
                "Its partition takes no work just now: an administrator has closed it.",
                "파티션이 지금 작업을 받지 않습니다. 관리자가 닫았습니다.",
            ),
            *("PartitionDown", "PartitionInactive"),
        ),
        **same(
            Why(
                "never",
                "It asks for more nodes or time than its partition allows: ask for less, or for another one.",
                "파티션이 허용하는 노드 수나 시간을 넘습니다. 요청을 줄이십시오.",
            ),
            *("PartitionNodeLimit", "PartitionTimeLimit", "PartitionConfig"),
        ),
        "BadConstraints": Why(
            "never",
            "No node of the cluster has what it asks for: ask for less.",
            "요청한 자원을 갖춘 노드가 없습니다. 요청을 줄이십시오.",
        ),
        **same(
            Why(
                "reservation",
                "It waits for its reservation to begin.",
                "예약이 시작되기를 기다립니다.",
            ),
            "Reservation",
        ),
        **same(
            Why(
                "never",
                "Its reservation is gone: an administrator looks at it.",
                "예약이 없어졌습니다. 관리자의 확인이 필요합니다.",
            ),
            *("ReservationDeleted", "ReservationInvalid"),
        ),
        **same(
            Why(
                "account",
                "The tenant or the priority class is not allowed here, or unknown to Slurm: an administrator "
                "puts it right.",
                "테넌트나 우선순위 등급을 Slurm이 모르거나 허용하지 않습니다. 관리자가 바로잡아야 합니다.",
            ),
            *("InvalidAccount", "InvalidQOS", "QOSNotAllowed", "AccountNotAllowed", "AccountingPolicy"),
        ),
        **same(
            Why(
                "limit_tenant",
                "A limit of the tenant is reached; it starts when other work of the tenant ends.",
                "테넌트의 한도에 이르렀습니다. 테넌트의 다른 작업이 끝나면 시작합니다.",
            ),
            *("AssociationJobLimit", "AssociationResourceLimit", "AssociationTimeLimit"),
        ),
        **same(
            Why(
                "limit_class",
                "A limit of its priority class is reached; it starts when other work of the class ends.",
                "우선순위 등급의 한도에 이르렀습니다. 같은 등급의 다른 작업이 끝나면 시작합니다.",
            ),
            *("QOSJobLimit", "QOSResourceLimit", "QOSTimeLimit", "QOSUsageThreshold"),
        ),
        "JobArrayTaskLimit": Why(
            "array",
            "As many elements of its array run as may run at once.",
            "배열 작업이 동시에 실행할 수 있는 만큼 실행 중입니다.",
        ),
        **same(
            Why(
                "cleaning",
                "Its last start is still being cleaned up on the nodes.",
                "이전 시작을 노드에서 정리하고 있습니다.",
            ),
            "Cleaning",
        ),
        "Prolog": Why(
            "preparing",
            "Its nodes are being prepared (prolog).",
            "노드를 준비하고 있습니다(프롤로그).",
        ),
        **same(
            Why(
                "burst_buffer",
                "Its burst buffer has no room, or is being filled.",
                "버스트 버퍼에 자리가 없거나 채우는 중입니다.",
            ),
            *("BurstBufferResources", "BurstBufferStageIn", "BurstBufferOperation"),
        ),
        **same(
            Why(
                "power",
                "There is not enough power, or not enough nodes may be switched on.",
                "전력이 부족하거나 켤 수 있는 노드가 부족합니다.",
            ),
            *("PowerNotAvail", "PowerReserved", "MaxPoweredUpNodes"),
        ),
        **same(
            Why(
                "ports",
                "Communication channels or ports that it needs are all in use.",
                "필요한 통신 채널이나 포트가 모두 사용 중입니다.",
            ),
            *("MpiPortsBusy", "NvidiaImexChannels"),
        ),
        **same(
            Why(
                "never",
                "It asks for more memory on one node than is allowed: ask for less.",
                "노드 하나에 허용된 메모리보다 많이 요청했습니다. 요청을 줄이십시오.",
            ),
            "MaxMemPerLimit",
        ),
        "FedJobLock": Why(
            "federation",
            "Another cluster of the federation is looking at it.",
            "연합의 다른 클러스터가 살펴보고 있습니다.",
        ),
        **same(
            Why(
                "federation",
                "The cluster's block layout is being changed.",
                "클러스터의 블록 배치를 바꾸고 있습니다.",
            ),
            *("BlockMaxError", "BlockFreeAction"),
        ),
        **same(
            Why(
                "failed",
                "Its last start failed; Slurm has not yet decided what becomes of it.",
                "이전 시작이 실패했고 Slurm이 아직 처리를 정하지 않았습니다.",
            ),
            *("SystemFailure", "JobLaunchFailure", "NonZeroExitCode", "RaisedSignal", "TimeLimit"),
            *("InactiveLimit", "OutOfMemory", "DeadLine"),
        ),
    }


REASONS: Final = _table()
"""Every reason of one word; the limits (some 150) are read by `_limit`."""

_WHAT: Final = {
    "cpu": ("CPUs", "CPU"),
    "mem": ("memory", "메모리"),
    "memory": ("memory", "메모리"),
    "node": ("nodes", "노드"),
    "gres": ("GPUs", "GPU"),
    "billing": ("billing units", "과금 단위"),
    "bb": ("burst buffer", "버스트 버퍼"),
    "energy": ("energy", "에너지"),
    "license": ("licences", "라이선스"),
    "unknown": ("a resource", "자원"),
    "jobs": ("jobs at once", "동시 작업"),
    "submitjobs": ("submitted jobs", "제출 작업"),
    "submitjob": ("submitted jobs", "제출 작업"),
    "wall": ("run time", "실행 시간"),
    "wallduration": ("run time", "실행 시간"),
}
_NAME: Final = re.compile(
    r"(?P<of>Assoc|QOS|)(?P<kind>Grp|Max|Min)(?P<what>"
    + "|".join(sorted(_WHAT, key=len, reverse=True))
    + r")"
    r"(?P<time>RunMinutes|RunMins|Minutes|)(?:Per(?P<per>Job|Node|User|Account)|)(?:Limit|NotSatisfied|)",
    re.IGNORECASE,
)
_WHOSE: Final = {
    "assoc": ("limit_tenant", "the tenant", "테넌트"),
    "qos": ("limit_class", "the priority class", "우선순위 등급"),
    "account": ("limit_tenant", "the tenant", "테넌트"),
    "user": ("limit_user", "one account", "계정 하나"),
}


def _limit(word: str) -> Why | None:
    """The sentence for a limit by its name; None if it is no limit."""
    match = _NAME.fullmatch(word)
    if match is None:
        return None
    per, time = (match["per"] or "").lower(), match["time"].lower()
    en_what, ko_what = _WHAT[match["what"].lower()]
    code, en_whose, ko_whose = _WHOSE[per if per in {"user", "account"} else match["of"].lower() or "qos"]
    single = per in {"job", "node"} or match["what"].lower() == "wallduration"
    if match["kind"] == "Min":
        return Why(
            "never",
            f"It asks for less {en_what} than {en_whose} demands of a job: ask for more.",
            f"{ko_whose}의 작업당 최소 {ko_what} 요건보다 적게 요청했습니다. 요청을 늘리십시오.",
        )
    if single:
        where, ko_where = ("one node", "노드당") if per == "node" else ("one job", "작업당")
        return Why(
            "never",
            f"It asks for more {_over_time(en_what, time)} than {en_whose} allows {where}: ask for less.",
            f"{ko_whose}의 {ko_where} {_ko_over_time(ko_what, time)} 한도를 넘습니다. 요청을 줄이십시오.",
        )
    return Why(
        code,
        f"The limit of {en_whose} on {_over_time(en_what, time)} is reached; it starts when there is room.",
        f"{ko_whose}의 {_ko_over_time(ko_what, time)} 한도에 이르렀습니다. 여유가 생기면 시작합니다.",
    )


def _over_time(what: str, time: str) -> str:
    if time == "minutes":
        return f"{what} over time"
    return f"{what} promised to running jobs" if time else what


def _ko_over_time(what: str, time: str) -> str:
    if time == "minutes":
        return f"{what} 누적 사용"
    return f"{what} 실행 예정" if time else what
