"""Who may make whom what, and what a role and a scope allow: without a database."""

from dataclasses import replace
from itertools import product

import pytest

from broker.errors import Denied
from broker.identity import Permission, Principal, Role
from broker.identity.authority import ADMIN_ONLY, check_authority, grantable
from broker.identity.permissions import ALLOWED

TENANTS_ROLES = {Role.TENANT_ADMIN, Role.RESEARCHER, Role.VIEWER}


def someone(role, scopes=None):
    return Principal("us-1", "ann", role, "red", scopes)


def allowed(principal, present, fields):
    try:
        check_authority(principal, present, fields)
    except Denied:
        return False
    return True


@pytest.mark.parametrize(("role", "given"), product(Role, Role))
def test_nobody_gives_a_role_that_may_more_than_the_giver(role, given):
    if given in grantable(someone(role)):
        assert ALLOWED[given] <= ALLOWED[role]


@pytest.mark.parametrize(("role", "present", "given"), product(Role, [None, *Role], Role))
def test_role_is_given_by_who_may_change_the_account_and_give_the_role(role, present, given):
    reach = {Role.ADMIN: set(Role), Role.TENANT_ADMIN: TENANTS_ROLES}.get(role, set())
    expected = given in reach and (present is None or present in reach)
    assert allowed(someone(role), present, {"role": given}) is expected


@pytest.mark.parametrize("field", ADMIN_ONLY)
def test_admins_fields_are_refused_even_when_they_are_emptied(field):
    boss, admin = someone(Role.TENANT_ADMIN), someone(Role.ADMIN)
    assert not allowed(boss, Role.RESEARCHER, {field: None})
    assert not allowed(boss, None, {field: "kim"}) and allowed(boss, None, {field: None})
    assert allowed(admin, Role.RESEARCHER, {field: None}) and allowed(admin, None, {field: "kim"})


def test_every_refusal_is_named_at_once():
    with pytest.raises(Denied) as caught:
        check_authority(someone(Role.TENANT_ADMIN), Role.VIEWER, {"role": "admin", "unix_account": "kim"})
    assert {problem.pointer for problem in caught.value.problems} == {"/role", "/unix_account"}


@pytest.mark.parametrize(("role", "tenant"), product(Role, ["red", "blue"]))
def test_people_are_looked_after_by_admins_and_by_the_tenants_own(role, tenant):
    expected = role is Role.ADMIN or (role is Role.TENANT_ADMIN and tenant == "red")
    assert someone(role).governs(tenant) is expected


@pytest.mark.parametrize(("role", "scope"), product(Role, Permission))
def test_scope_gives_nothing_that_the_role_lacks(role, scope):
    holder = someone(role, frozenset({scope}))
    assert holder.permissions == ALLOWED[role] & {scope}
    assert all(holder.can(one) is (one == scope and one in ALLOWED[role]) for one in Permission)


def test_a_key_makes_nobody_who_may_more_than_the_key():
    admin = Principal("us-1", "root", Role.ADMIN, "default", scopes=frozenset({Permission.USERS_MANAGE}))
    assert not grantable(admin)
    reader = (ALLOWED[Role.VIEWER] | {Permission.USERS_MANAGE}) - {Permission.KEYS_MANAGE}
    assert grantable(replace(admin, scopes=reader)) == {Role.VIEWER}
    with pytest.raises(Denied):
        check_authority(admin, Role.ADMIN, {"password": "a new one for an admin"})
