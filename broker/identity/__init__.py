"""Who asks, and what they may do: users, roles, passwords, tokens.

An account has one role and one tenant. A token (JWT) names the account and its *token version*; whatever
must end every session of an account (new password, deactivation) raises the version, and every token of
the old one is refused. Roles, tenant and state are always read from the account, never from the token.
"""

from broker.identity.permissions import SYSTEM, Permission, Principal, Role

__all__ = ["SYSTEM", "Permission", "Principal", "Role"]
