"""What people read, in English and Korean: one table. Pure.

Names in it are users' text and stay text: on one line, without control characters, and in a chat room without
the characters that would call everybody or make a link.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from broker.notifications.kinds import Kind

Language = Literal["en", "ko"]

TITLES: Final[Mapping[Kind, Mapping[str, str]]] = {
    Kind.RUN_APPROVAL_REQUESTED: {
        "en": "{subject} waits for approval",
        "ko": "승인 요청: {subject}",
    },
    Kind.RUN_DECIDED: {"en": "{subject}: {decision}", "ko": "승인 결과({decision}): {subject}"},
    Kind.RUN_STARTED: {"en": "{subject} has started", "ko": "실행 시작: {subject}"},
    Kind.RUN_COMPLETED: {"en": "{subject} has completed", "ko": "실행 완료: {subject}"},
    Kind.RUN_FAILED: {"en": "{subject} has failed", "ko": "실행 실패: {subject}"},
    Kind.RUN_TIMED_OUT: {
        "en": "{subject} ran out of its time limit",
        "ko": "실행 시간 초과: {subject}",
    },
    Kind.RUN_STALLED: {"en": "{subject} gives no sign of life", "ko": "진행 신호 없음: {subject}"},
    Kind.RUN_GPU_IDLE: {"en": "{subject} leaves GPUs idle", "ko": "GPU 유휴: {subject}"},
    Kind.RUN_GPU_BUSY: {"en": "{subject} uses its GPUs again", "ko": "GPU 사용 재개: {subject}"},
    Kind.QUOTA_80: {
        "en": "80 % of a quota is used: {subject}",
        "ko": "할당량 80 % 사용: {subject}",
    },
    Kind.QUOTA_100: {"en": "A quota is used up: {subject}", "ko": "할당량 소진: {subject}"},
    Kind.CLUSTER_UNREACHABLE: {
        "en": "Cluster {subject} does not answer",
        "ko": "클러스터 응답 없음: {subject}",
    },
    Kind.WEBHOOK_TEST: {"en": "A test of {subject}", "ko": "웹훅 시험: {subject}"},
}
"""The title of each kind; `subject` is what it is about, the rest comes from the notice's data."""

DETAILS: Final[Mapping[str, Mapping[str, str]]] = {
    "requested_by": {"en": "Requested by", "ko": "요청자"},
    "decided_by": {"en": "Decided by", "ko": "결정자"},
    "comment": {"en": "Comment", "ko": "의견"},
    "components": {"en": "Over the threshold", "ko": "임계값 초과"},
    "component": {"en": "Component", "ko": "컴포넌트"},
    "gpus_idle": {"en": "Idle GPUs", "ko": "유휴 GPU 수"},
    "gpus": {"en": "GPUs it holds", "ko": "할당 GPU 수"},
    "gpu_util": {"en": "Measured use (%)", "ko": "측정 사용률(%)"},
    "error": {"en": "Reason", "ko": "사유"},
    "cluster": {"en": "Cluster", "ko": "클러스터"},
    "resource": {"en": "Quota", "ko": "할당량"},
    "used": {"en": "Used", "ko": "사용량"},
    "limit": {"en": "Limit", "ko": "한도"},
    "period": {"en": "Period", "ko": "기간"},
    "since": {"en": "Since", "ko": "시작 시각"},
    "trouble": {"en": "What it said", "ko": "내용"},
    "tenant": {"en": "Tenant", "ko": "테넌트"},
    "run_id": {"en": "Run", "ko": "실행"},
}
"""The data that people are shown, in this order, with what it is called; all else is for programs."""

_WORDS: Final[Mapping[str, Mapping[str, str]]] = {
    "approved": {"en": "approved", "ko": "승인"},
    "rejected": {"en": "rejected", "ko": "반려"},
    "api_calls": {"en": "API calls", "ko": "API 호출"},
    "gpu_hours": {"en": "GPU hours", "ko": "GPU 시간"},
    "upload_gb": {"en": "uploads (GB)", "ko": "업로드(GB)"},
}
_TRANSLATED: Final = frozenset({"decision", "resource"})
_CALLS: Final = str.maketrans({"<": "‹", ">": "›", "@": "＠"})
_LONGEST: Final = 500


@dataclass(frozen=True, slots=True)
class Message:
    """A title on one line, and lines below it."""

    title: str
    body: str

    def for_chat(self) -> Message:
        """The same where `<!channel>` or `@here` would call everybody.

        >>> Message("<!here> @all", "").for_chat().title
        '‹!here› ＠all'
        """
        return Message(self.title.translate(_CALLS), self.body.translate(_CALLS))


def write(kind: Kind, subject: str, data: Mapping[str, Any], language: Language) -> Message:
    """A notice as people read it; details that it does not have are left out."""
    decision = _value("decision", data.get("decision"), language)
    title = TITLES[kind][language].format(subject=plain(subject), decision=decision)
    lines = [
        f"{label[language]}: {_value(name, data[name], language)}"
        for name, label in DETAILS.items()
        if data.get(name) not in (None, "", [])
    ]
    return Message(title, "\n".join(lines))


def _value(name: str, value: Any, language: Language) -> str:
    if name in _TRANSLATED and str(value) in _WORDS:
        return _WORDS[str(value)][language]
    if isinstance(value, list | tuple):
        return ", ".join(plain(str(item)) for item in value)
    return plain("" if value is None else str(value))


def plain(text: str) -> str:
    """The text on one line, without characters that don't print (a header would begin a new one there).

    >>> plain("a\\r\\nBcc: b")
    'a Bcc: b'
    """
    kept = "".join(" " if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} else c for c in text)
    return " ".join(kept.split())[:_LONGEST]
