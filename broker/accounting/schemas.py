"""What the API says about accounting itself."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, Field


class Source(BaseModel):
    """How far one cluster's accounting was read: what ended later is not in the report."""

    cluster: str
    complete_until: datetime = Field(description="Everything that ended before is counted")
    read_until: datetime
    trouble: bool = Field(description="The last look failed")
