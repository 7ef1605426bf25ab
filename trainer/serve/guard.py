"""Keeps other sites out of a server that has no password: which hosts it answers for, and headers.

A page of any site may send requests to this machine, but not read the answers: no CORS header
allows it. DNS rebinding would go around that: the site's own name is made to lead here, and the
browser takes the answers for the site's. So the Host header must not be a name that others own.
"""

import ipaddress
import re
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# blob: is the image that was chosen, shown before its neighbours.
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
    """Whether a Host header is an IP address, which no site owns, or one of our names."""
    match = HOST.fullmatch(header.lower())
    if match is None:
        return False
    try:
        ipaddress.ip_address(match["bracketed"] or match["name"])
    except ValueError:
        return match["name"] in names
    return True


class Guard:
    """ASGI middleware: refuses foreign hosts, and adds HEADERS to every answer.

    Args:
      app: that is guarded.
      names: that this server is reached by, in lower case, besides IP addresses.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or has it answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        app = self._app
        if not is_own_host(Headers(scope=scope).get("host", ""), self._names):
            text = "this server is not of that host name; open it by its IP address or --host\n"
            app = PlainTextResponse(text, 403)
        await app(scope, receive, send_guarded)
