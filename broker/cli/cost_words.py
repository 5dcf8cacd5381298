"""What `broker costs` and `broker prices list` say around their figures, in both languages."""

from __future__ import annotations

from typing import Final

RESOURCES: Final = {
    "en": {"core_hour": "core h", "gpu_hour": "GPU h", "gib_hour": "GiB h", "billing_hour": "billing h"},
    "ko": {
        "core_hour": "코어 시간",
        "gpu_hour": "GPU 시간",
        "gib_hour": "메모리 GiB 시간",
        "billing_hour": "Slurm billing 시간",
    },
}
HEADS: Final = {
    "en": ("FAULTS>", "EXEMPT>", "HOURS", "UNPRICED"),
    "ko": ("클러스터 잘못>", "미청구>", "시간", "단가 없음"),
}
RUN_HEADS: Final = {
    "en": ("COMPONENT", "ATTEMPT", "JOB", "STATE", "STARTED"),
    "ko": ("구성 요소", "시도", "작업", "상태", "시작"),
}
PRICE_HEADS: Final = {
    "en": ("ID", "RESOURCE", "WHERE", "PRICE>", "FROM", "UNTIL?", "STATE"),
    "ko": ("ID", "자원", "적용 범위", "단가>", "시작일", "종료일?", "상태"),
}
WITHDRAWN_HEADS: Final = {"en": ("WITHDRAWN?", "INSTEAD?"), "ko": ("철회?", "대체?")}
PRICE_STATES: Final = {
    "en": {"future": "future", "holds": "holds", "past": "past", "withdrawn": "withdrawn"},
    "ko": {"future": "예정", "holds": "적용 중", "past": "종료", "withdrawn": "철회"},
}
"""What becomes of a price (`costs.schemas.PriceView`)."""
COST_WORDS: Final = {
    "en": {
        "title": "Costs",
        "rounding": "rounding",
        "empty": "No use in this period, or none that you may see.",
        "no_jobs": "Accounting knows none of its jobs yet.",
        "partly": "Not all of it is counted yet",
        "unpriced": "Unpriced hours are in no amount: an admin enters prices with `broker prices set`. {}",
        "amount": "{}",
        "corrected": "Corrected {at} by {by}: {resource}, {place}, {since} to {until}: "
        "{was} → {now} ({ids}): {why}",
        "everywhere": "everywhere",
        "no_price": "no price of its own",
        "withdrawn": "withdrawn",
        "no_prices": "No prices: all use is unpriced",
        "ends": "ends",
        "withdrawn_by": "{at} by {by}",
    },
    "ko": {
        "title": "비용",
        "rounding": "반올림 차이",
        "empty": "이 기간에 사용이 없거나, 볼 수 있는 것이 없습니다.",
        "no_jobs": "아직 회계 기록에 이 실행의 작업이 없습니다.",
        "partly": "아직 모두 집계되지 않았습니다",
        "unpriced": "단가가 없는 시간은 금액에 들어가지 않습니다. 관리자가 `broker prices set`으로 단가를 "
        "등록합니다. {}",
        "amount": "금액({})",
        "corrected": "정정 {at}, {by}: {resource}, {place}, {since}부터 {until} 전까지: "
        "{was} → {now} ({ids}): {why}",
        "everywhere": "전체",
        "no_price": "자체 단가 없음",
        "withdrawn": "철회",
        "no_prices": "단가 없음: 모든 사용에 단가가 없습니다",
        "ends": "끝",
        "withdrawn_by": "{at}, {by}",
    },
}
