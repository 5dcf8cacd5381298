"""What every WebSocket needs: who asks, messages until the reader has gone, an error as a close code."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any

import anyio
from fastapi import WebSocket, WebSocketDisconnect
from fastapi.security import HTTPAuthorizationCredentials

from broker.api.parameters import refuse_unknown
from broker.api.security import authenticated, check, count
from broker.errors import BrokerError
from broker.identity import Permission, Principal
from broker.identity.sessions import Authenticator

GREETING_S = 10.0
UNAUTHENTICATED, DENIED, NOT_FOUND, INVALID, LIMITED, TRY_LATER = 4401, 4403, 4404, 4422, 4429, 1013
"""Close codes: HTTP's + 4000 (RFC 6455, 7.4.2: ours), or IANA's "try again later"."""
_CLOSE = {401: UNAUTHENTICATED, 403: DENIED, 404: NOT_FOUND, 422: INVALID, 429: LIMITED}
_REASON = 123
"""Bytes of UTF-8 that a reason has at most (RFC 6455, 5.5)."""

Who = Callable[[], Awaitable[Principal]]
"""Who reads, asked anew at every look; raises when the token is not good any more."""


def reader(auth: Authenticator, credentials: HTTPAuthorizationCredentials) -> Who:
    """Who reads a stream of runs and of what was told of them, asked as for any other request."""

    async def who() -> Principal:
        account = await authenticated(auth, credentials)
        check(account, Permission.RUNS_READ)
        return account.principal

    return who


async def serve_socket(
    socket: WebSocket,
    messages: Callable[[Who, dict[str, Any]], AsyncIterator[str]],
    knows: Collection[str],
) -> None:
    """Accept a socket and send what `messages(who, said)` yields; `said`: what the reader asked for.

    That is its query, or for a browser, which can't send `Authorization` with it, its first message: a
    JSON object with a `token`. Only what `knows` names may be asked for. Closed with 1000 when the messages
    end.
    """
    await socket.accept()
    try:
        credentials, said = await _greeting(socket)
        who = reader(socket.app.state.authenticator, credentials)
        principal = await who()
        await count(socket.app.state.meter, principal, Permission.RUNS_READ)
        refuse_unknown(said, knows)
        with socket.app.state.streams.hold(principal):
            await _pump(socket, messages(who, said))
        await socket.close()
    except (WebSocketDisconnect, _Gone):
        return
    except BrokerError as error:
        reason = error.detail.encode()[:_REASON].decode(errors="ignore")
        await socket.close(_CLOSE.get(error.http_status, TRY_LATER), reason)
    except (ValueError, KeyError, RecursionError, TimeoutError):  # no text, no JSON, nothing at all
        await socket.close(UNAUTHENTICATED, 'Send {"token": "…"} first')


async def _greeting(socket: WebSocket) -> tuple[HTTPAuthorizationCredentials, dict[str, Any]]:
    """Who asks and for what: from header and query, or from the first message."""
    scheme, _, token = socket.headers.get("authorization", "").partition(" ")
    query: dict[str, Any] = dict(socket.query_params)
    if scheme.lower() == "bearer" and token:
        return HTTPAuthorizationCredentials(scheme=scheme, credentials=token), query
    async with asyncio.timeout(GREETING_S):
        said = json.loads(await socket.receive_text())
    if not isinstance(said, dict) or not isinstance(said.get("token"), str):
        raise ValueError("no token")
    given = HTTPAuthorizationCredentials(scheme="Bearer", credentials=said.pop("token"))
    return given, query | said


class _Gone(Exception):
    """The reader has closed the socket."""


async def _pump(socket: WebSocket, messages: AsyncIterator[str]) -> None:
    """Send until there are no more messages, or the reader has gone."""
    ended: list[Exception] = []
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while (await socket.receive())["type"] != "websocket.disconnect":
                pass  # what a reader says after its greeting means nothing
            ended.append(_Gone())
            group.cancel_scope.cancel()

        group.start_soon(watch)
        try:
            async for message in messages:
                await socket.send_text(message)
        except BrokerError as error:
            ended.append(error)
        except WebSocketDisconnect:
            ended.append(_Gone())  # in the middle of a send; `watch` may not have heard of it yet
        group.cancel_scope.cancel()
    if ended:
        raise ended[0]
