"""Where webhooks may go: not into the broker's own network (server-side request forgery).

A receiver's address is chosen by people who can't reach the broker's network; the broker can. So a name is
resolved here, *every* address it has is judged, and the connection goes to the address that was judged: a
name that answers differently a moment later ("DNS rebinding") changes nothing. Redirects are not followed and
no proxy of the environment is used (httpcore knows neither). TLS still checks the name in the URL.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final
from urllib.parse import urlsplit

import httpcore
import structlog

from broker.errors import Denied, InvalidRequest, Problem, Unreachable

log = structlog.get_logger("broker.notifications")

Address = IPv4Address | IPv6Address
_NAT64: Final = IPv6Network("64:ff9b::/96")  # RFC 6052: IPv4 in the last 32 bits
_MAX_ADDRESSES: Final = 16
_LONGEST_URL: Final = 2000


@dataclass(frozen=True, slots=True)
class Rules:
    """The private networks that are allowed all the same."""

    allowed: tuple[IPv4Network | IPv6Network, ...] = ()

    @classmethod
    def of(cls, networks: Iterable[str]) -> Rules:
        """From a setting's texts."""
        return cls(tuple(ip_network(text) for text in networks))

    def lists(self, address: Address) -> bool:
        """Whether an administrator named a network with this address."""
        return any(address in network for network in self.allowed if network.version == address.version)

    def refusal(self, address: Address, *, plain: bool) -> str | None:
        """Why nothing is sent to this address, or None; `plain`: without TLS.

        >>> Rules().refusal(ip_address("::ffff:169.254.169.254"), plain=False)
        '169.254.169.254 is not a public address'
        """
        inner = embedded(address)
        if self.lists(address) or self.lists(inner):
            return None
        if not inner.is_global or inner.is_multicast or inner.is_reserved:
            return f"{inner} is not a public address"
        return f"{inner} would be spoken to without encryption: use https" if plain else None


def embedded(address: Address) -> Address:
    """The IPv4 address that a transition address leads to (mapped, 6to4, Teredo, NAT64); else itself."""
    if isinstance(address, IPv6Address):
        teredo = address.teredo
        inner = address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)
        if inner is None and address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        return inner or address
    return address


def checked_url(url: str, rules: Rules) -> str:
    """A receiver's URL as far as it can be judged without asking anybody; raises `InvalidRequest`."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise _bad_url("It is not a URL: write for example https://example.org/hook") from None
    if parts.scheme not in {"https", "http"} or not host:
        raise _bad_url("It begins with https:// and names a host: https://example.org/hook")
    if parts.username is not None or parts.password is not None:
        raise _bad_url("It carries no user and password: messages are signed, check the signature instead")
    if parts.fragment or len(url) > _LONGEST_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise _bad_url("It has plain ASCII characters only, at most 2000, and no #fragment")
    literal = _literal(host)
    if literal is not None and (reason := rules.refusal(literal, plain=parts.scheme == "http")):
        raise _bad_url(f"{reason[0].upper()}{reason[1:]} (see `notifications.allowed_networks`)")
    if literal is None and parts.scheme == "http" and not rules.allowed:
        raise _bad_url("Messages are sent over https only: write https://")
    return url


def _bad_url(detail: str) -> InvalidRequest:
    return InvalidRequest("Nothing can be sent to this URL", problems=[Problem("/url", "bad_url", detail)])


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        return None


def resolve(host: str, port: int, rules: Rules, *, plain: bool) -> list[Address]:
    """Every address of a host, all of them allowed; raises `Unreachable` (no such name) or `Denied`."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise Unreachable(f"{host} can't be resolved: {reason or error}") from None
    addresses = list(dict.fromkeys(ip_address(str(entry[4][0]).partition("%")[0]) for entry in found))
    for address in addresses:
        if reason := rules.refusal(address, plain=plain):
            log.info("address_refused", host=host, reason=reason)
            raise Denied(
                f"{host}: it leads to an address that nothing is sent to: one that is not public, or that "
                "would be spoken to without encryption (see `notifications.allowed_networks`)"
            )
    return addresses[:_MAX_ADDRESSES]


class PinnedBackend(httpcore.NetworkBackend):
    """Connects to a judged address only, and cuts whatever takes longer than `seconds` in all.

    httpcore's time-outs are per read: a receiver that sends a byte now and then would hold a thread for ever.
    """

    def __init__(self, rules: Rules, *, plain: bool, seconds: float) -> None:
        self._rules, self._plain = rules, plain
        self._deadline = time.monotonic() + seconds
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Resolve, judge, connect to the first address that answers."""
        return self._first(resolve(host, port, self._rules, plain=self._plain), port)

    def _first(self, addresses: Sequence[Address], port: int) -> httpcore.NetworkStream:
        failure: Exception = httpcore.ConnectError("the name has no address")
        for address in addresses:
            try:
                left = remaining(self._deadline)
                return _Timed(self._inner.connect_tcp(str(address), port, timeout=left), self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


class _Timed(httpcore.NetworkStream):
    """A stream whose every operation ends at one deadline."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: float) -> None:
        self._inner, self._deadline = inner, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, remaining(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, remaining(self._deadline))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = remaining(self._deadline)
        return _Timed(self._inner.start_tls(ssl_context, server_hostname, left), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def remaining(deadline: float) -> float:
    """Seconds until a moment of the monotonic clock; raises `httpcore.ReadTimeout` when there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("it took too long")
    return left
