"""The chain gives away whatever was changed, removed, inserted, rewritten or cut off."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.audit.chain import EMPTY, FIELDS, LATE, Breach, Head, Link, digest, examine
from broker.audit.tables import AuditRow

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
LENGTH = 6


def row(number: int, at: datetime | None = None) -> dict[str, Any]:
    return dict.fromkeys(FIELDS, "") | {
        "id": f"au-{number}",
        "at": at or NOON + timedelta(seconds=number),
        "before": None,
        "after": {"b": [1, 2.5], "a": "값"},
        "tenant": None,
    }


def chain(rows: list[dict[str, Any]]) -> list[Link]:
    links, head = [], EMPTY
    for fields in rows:
        sealed_at = NOON + timedelta(minutes=1)
        head = Head(head.number + 1, digest(head, sealed_at, fields))
        links.append(Link(head.number, fields["id"], sealed_at, head.hash, fields))
    return links


LINKS = chain([row(n) for n in range(1, LENGTH + 1)])


def breach(links: list[Link], known: tuple[Head, ...] = ()) -> tuple[Breach, int | None]:
    broken = examine(links, known).broken
    assert broken is not None
    return broken.breach, broken.number


def test_a_whole_chain_holds_to_its_end() -> None:
    found = examine(LINKS)
    assert found.broken is None
    assert (found.head.number, found.last_at) == (LENGTH, NOON + timedelta(seconds=LENGTH))


def test_an_empty_chain_holds() -> None:
    assert examine([]).head == EMPTY and examine([]).broken is None


def test_every_column_is_covered() -> None:
    assert set(FIELDS) == set(AuditRow.__table__.columns.keys())


@given(st.integers(0, LENGTH - 1), st.sampled_from(FIELDS))
def test_any_changed_field_is_found_where_it_was_changed(index: int, field: str) -> None:
    fields = dict(LINKS[index].fields or {})
    fields[field] = fields["at"] + timedelta(microseconds=1) if field == "at" else "changed"
    links = [*LINKS[:index], replace(LINKS[index], fields=fields), *LINKS[index + 1 :]]
    assert breach(links) == (Breach.CHANGED, index + 1)


@given(st.integers(0, LENGTH - 1))
def test_a_changed_seal_is_found(index: int) -> None:
    for forged in (
        replace(LINKS[index], hash="0" * 64),
        replace(LINKS[index], sealed_at=LINKS[index].sealed_at + timedelta(seconds=1)),
    ):
        assert breach([*LINKS[:index], forged, *LINKS[index + 1 :]]) == (Breach.CHANGED, index + 1)


@given(st.integers(0, LENGTH - 2))
def test_a_removed_row_is_found_with_and_without_its_link(index: int) -> None:
    gone = replace(LINKS[index], fields=None)
    assert breach([*LINKS[:index], gone, *LINKS[index + 1 :]]) == (Breach.REMOVED, index + 1)
    assert breach([*LINKS[:index], *LINKS[index + 1 :]]) == (Breach.REMOVED, index + 1)


@given(st.integers(0, LENGTH - 2))
def test_numbers_closed_up_behind_a_removed_link_are_found(index: int) -> None:
    later = [replace(link, number=link.number - 1) for link in LINKS[index + 1 :]]
    assert breach([*LINKS[:index], *later]) == (Breach.CHANGED, index + 1)


@given(st.integers(0, LENGTH - 2))
def test_exchanged_rows_are_found(index: int) -> None:
    one, two = LINKS[index], LINKS[index + 1]
    swapped = [replace(one, audit_id=two.audit_id, fields=two.fields), replace(two, fields=one.fields)]
    assert breach([*LINKS[:index], *swapped, *LINKS[index + 2 :]]) == (Breach.CHANGED, index + 1)


@given(st.integers(1, LENGTH - 1))
def test_a_row_inserted_between_sealed_ones_is_found(index: int) -> None:
    head = Head(index, LINKS[index - 1].hash)
    fields, sealed_at = row(99, NOON), LINKS[0].sealed_at
    slipped = Link(index + 1, fields["id"], sealed_at, digest(head, sealed_at, fields), fields)
    later = [replace(link, number=link.number + 1) for link in LINKS[index:]]
    assert breach([*LINKS[:index], slipped, *later]) == (Breach.CHANGED, index + 2)


def test_a_row_of_the_past_at_the_end_is_found() -> None:
    forged = chain([*(row(n) for n in range(1, LENGTH + 1)), row(99, NOON - LATE)])
    assert breach(forged) == (Breach.INSERTED, LENGTH + 1)


def test_no_small_steps_lead_into_the_past() -> None:
    steps = [row(100 + n, NOON - n * (LATE - timedelta(minutes=1))) for n in range(1, 4)]
    forged = chain([*(row(n) for n in range(1, LENGTH + 1)), *steps])
    assert breach(forged) == (Breach.INSERTED, LENGTH + 2)


def test_a_row_that_was_committed_a_little_late_is_none_of_the_past() -> None:
    late = chain([*(row(n) for n in range(1, LENGTH + 1)), row(99, NOON - LATE / 2), row(100)])
    assert examine(late).broken is None


def test_a_chain_computed_anew_is_found_by_a_head_that_was_kept() -> None:
    kept = Head(LENGTH, LINKS[-1].hash)
    forged = chain([row(n) | {"note": "forged"} for n in range(1, LENGTH + 1)])
    assert examine(forged).broken is None
    assert breach(forged, (kept,)) == (Breach.REWRITTEN, LENGTH)


def test_every_head_that_was_kept_counts() -> None:
    good, bad = Head(3, LINKS[2].hash), Head(3, "0" * 64)
    for known in ((good, bad), (bad, good)):
        assert breach(LINKS, known) == (Breach.REWRITTEN, 3)


def test_a_chain_whose_end_was_cut_off_is_found_by_a_head_that_was_kept() -> None:
    kept = Head(LENGTH, LINKS[-1].hash)
    assert examine(LINKS[:-2]).broken is None
    assert breach(LINKS[:-2], (kept,)) == (Breach.CUT_OFF, LENGTH - 1)


@pytest.mark.parametrize("number", range(1, LENGTH + 1))
def test_a_chain_that_grew_still_has_every_older_head(number: int) -> None:
    assert examine(LINKS, (Head(number, LINKS[number - 1].hash),)).broken is None


def test_the_order_of_keys_in_a_value_does_not_matter() -> None:
    fields = row(1)
    turned = fields | {"after": dict(reversed(fields["after"].items()))}
    assert digest(EMPTY, NOON, fields) == digest(EMPTY, NOON, turned)
