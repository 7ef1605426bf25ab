"""Keeps other web sites out of a server without a password.

Pages of any site can send requests to this machine. They cannot read the answers, since no answer
has a CORS header that allows it. DNS rebinding could circumvent this: a site makes its own host
name resolve to this machine, and the browser then takes the answers for the site's own. Therefore
the server refuses requests whose Host header is a name that others can own.
"""

import ipaddress
import re
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The page shows an image that the user has chosen by a blob: URL.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

HOST = re.compile(r"(?:\[(?P<bracketed>[^]]+)\]|(?P<name>[^:@]+))(?::\d+)?")


def is_own_host(header: str, names: Collection[str]) -> bool:
    """Whether a Host header is an IP address, which no site owns, or one of the names."""
    match = HOST.fullmatch(header.lower())
    if match is None:
        return False
    try:
        ipaddress.ip_address(match["bracketed"] or match["name"])
    except ValueError:
        return match["name"] in names
    return True


def guarded(app: ASGIApp, names: Collection[str]) -> ASGIApp:
    """ASGI middleware that refuses other Host headers, and adds HEADERS to every answer.

    Args:
      app: the application that is guarded.
      names: accepted host names, in lower case. IP addresses are always accepted.
    """
    text = "this server does not answer for this host name; use its IP address, or --host\n"
    refusal = PlainTextResponse(text, 403)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        is_own = is_own_host(Headers(scope=scope).get("host", ""), names)
        await (app if is_own else refusal)(scope, receive, send_guarded)

    return answer
