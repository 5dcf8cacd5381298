"""What a report says around its figures, in both languages; its figures bring their own titles."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import typer

Language = Literal["en", "ko"]
Lang = Annotated[Language, typer.Option("--lang", help="Language of headings and meanings.")]
TITLE: Final = {"en": "title", "ko": "title_ko"}
DEFINITION: Final = {"en": "definition", "ko": "definition_ko"}
WORDS: Final = {
    "en": {
        "total": "total",
        "empty": "Nothing in this period, or nothing that you may see.",
        "figure": "FIGURE",
        "meaning": "WHAT IT MEANS",
        "hour": "HOUR",
        "now": "as it is now",
        "all": "all",
        "tenant": "tenant",
        "user": "user",
        "period": "{} to {} (UTC)",
        "age": "{cluster}: complete up to {age} ago",
        "late": "; the last look failed",
        "more": "{} more lines; see --limit",
        "unread": "Of this, nothing was read from Slurm yet",
        "no_jobs": "No jobs",
        "newest": "The newest {}; there are more: see --limit, or write all of them with --output FILE",
    },
    "ko": {
        "total": "합계",
        "empty": "이 기간에는 없거나, 볼 수 있는 것이 없습니다.",
        "figure": "항목",
        "meaning": "뜻",
        "hour": "시간",
        "now": "현재",
        "all": "전체",
        "tenant": "테넌트",
        "user": "사용자",
        "period": "{}부터 {} 전까지 (UTC)",
        "age": "{cluster}: {age} 전까지 모두 반영됨",
        "late": "; 마지막 조회는 실패",
        "more": "{}줄 더 있음; --limit 참조",
        "unread": "아직 Slurm에서 읽은 것이 없습니다",
        "no_jobs": "작업 없음",
        "newest": "가장 최근 {}개이며 더 있음: --limit 참조, 또는 --output FILE로 모두 저장",
    },
}
JOB_HEADS: Final = {
    "en": (
        *("JOB", "USER", "TENANT?", "PARTITION?", "STATE", "SUBMITTED?", "WAITED>", "SLOWDOWN>", "CORE H>"),
        *("GPU H>", "CPU>", "MEM>", "NEXT TIME"),
    ),
    "ko": (
        *("작업", "사용자", "테넌트?", "파티션?", "상태", "제출?", "대기>", "지연 배수>", "코어 시간>"),
        *("GPU 시간>", "CPU>", "메모리>", "다음 요청"),
    ),
}
