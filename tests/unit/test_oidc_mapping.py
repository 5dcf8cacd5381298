"""What a provider says about somebody, as an account of this broker."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from broker.errors import Denied
from broker.identity import Role
from broker.identity.oidc_mapping import lookup, person_of
from broker.settings import OidcSettings

GROUPS = {"/ml/admins": "admin", "/ml/leads": "tenant_admin", "/ml/people": "researcher", "/all": "viewer"}
SETTINGS = OidcSettings(
    issuer="https://id.example.org/realms/ml",
    roles=GROUPS,
    tenants={"/team-a": "team-a", "/team-b": "team-b"},
)


def claims(**more: Any) -> dict[str, Any]:
    return {"sub": "f81d", "preferred_username": "kim", "name": "김 Kim"} | more


@pytest.mark.parametrize(
    ("groups", "role", "tenant"),
    [
        (["/ml/people"], Role.RESEARCHER, "default"),
        (["/all", "/ml/people", "/ml/leads"], Role.TENANT_ADMIN, "default"),
        (["/ml/people", "/ml/admins"], Role.ADMIN, "default"),
        (["/all", "/team-b"], Role.VIEWER, "team-b"),
        (["/team-b", "/team-a", "/all"], Role.VIEWER, "team-a"),
        (["/others"], None, "default"),
        ([], None, "default"),
        ("/all", Role.VIEWER, "default"),
        (None, None, "default"),
        ({"x": 1}, None, "default"),
        ([["/all"], 7, None], None, "default"),
        (["/ALL", "all", "/all/below"], None, "default"),
    ],
)
def test_groups_become_a_role_and_a_tenant(groups: Any, role: Role | None, tenant: str) -> None:
    person = person_of(claims(groups=groups), SETTINGS)
    assert (person.role, person.tenant, person.subject, person.username) == (role, tenant, "f81d", "kim")


def test_without_a_group_the_default_role_counts() -> None:
    settings = SETTINGS.model_copy(update={"default_role": "viewer", "default_tenant": "guests"})
    person = person_of(claims(), settings)
    assert (person.role, person.tenant) == (Role.VIEWER, "guests")


def test_nested_claims_are_found_by_a_path_and_a_claim_with_dots_by_its_name() -> None:
    nested = {"realm_access": {"roles": ["a"]}, "https://x.org/groups": ["b"]}
    assert lookup(nested, "realm_access.roles") == ["a"]
    assert lookup(nested, "https://x.org/groups") == ["b"]
    assert lookup(nested, "realm_access.roles.a") is None and lookup(nested, "nothing.here") is None


@pytest.mark.parametrize("name", [None, "", "-kim", "kim lee", "김", "k" * 64, 7, ["kim"], "kim\n", "../x"])
def test_a_name_that_is_no_user_name_is_refused_with_the_setting_to_change(name: Any) -> None:
    with pytest.raises(Denied, match=r"oidc\.username_claim"):
        person_of(claims(preferred_username=name), SETTINGS)


@pytest.mark.parametrize("sub", [None, "", 7, "x" * 256])
def test_a_person_without_a_subject_is_refused(sub: Any) -> None:
    with pytest.raises(Denied, match="sub"):
        person_of(claims(sub=sub), SETTINGS)


def test_names_are_folded_and_what_does_not_print_is_left_out() -> None:
    person = person_of(
        claims(preferred_username="Kim@Example.org", name="Kim\u202e\x1b[2J " + "x" * 200), SETTINGS
    )
    assert person.username == "kim@example.org"
    assert person.display_name.startswith("Kim[2J") and len(person.display_name) == 128
    assert person_of(claims(name=7), SETTINGS).display_name == ""


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("issuer", "http://id.example.org"),
        ("issuer", "http://127.0.0.1.example.org"),
        ("issuer", "id.example.org"),
        ("public_url", "https://broker.example.org/"),
        ("roles", {"/ml": "root"}),
        ("default_role", "root"),
    ],
)
def test_unsafe_settings_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        OidcSettings.model_validate({field: value})
