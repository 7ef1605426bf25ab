"""Runs the web application on a port of this machine until it is stopped."""

from __future__ import annotations

import ipaddress
import socket
import sys

import uvicorn

from trainer.serve.app import make_app
from trainer.serve.finder import Finder
from tripletmill.errors import UsageError


def serve(
    *,
    model: str,
    index: str,
    data: str | None = None,
    images: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
) -> None:
    """Serves the page until SIGTERM, or until SIGINT, which raises KeyboardInterrupt.

    Args:
      model: folder of the exported model, or of its run.
      index: folder of the index.
      data: the data set that has the pictures, or None.
      images: the folder or manifest that has the pictures, or None.
      host: address or host name on which the server listens.
      port: port on which the server listens, or 0 for a free port.

    Raises:
      UsageError: something cannot be loaded, or the server cannot listen on this address.
    """
    # Listening begins before anything is loaded, so that a port that is taken is reported at once.
    # A browser that connects earlier than the server is ready waits.
    with _listen(host, port) as listening:
        name, port = listening.getsockname()[:2]
        address = ipaddress.ip_address(name)
        names = {"localhost", host.lower()}
        if not address.is_loopback:
            names.add(socket.gethostname().lower())
            print(
                f"warning: {host} is reached from other machines: everyone who can reach it can"
                " search here and see the pictures, without a password",
                file=sys.stderr,
            )
        print(f"loading index {index} and model {model}", flush=True)
        finder = Finder.load(model=model, index=index, data=data, images=images)
        if not any(finder.picture(each.source_id) for each in finder.examples()):
            where = data or images
            print(f"warning: {where} lacks the pictures of index {index}", file=sys.stderr)
        settings = uvicorn.Config(
            make_app(finder, names=names),
            lifespan="off",
            log_config=None,  # only defects are logged, to standard error
            access_log=False,
            server_header=False,
            proxy_headers=False,
        )
        shown = "localhost" if address.is_unspecified else f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{port}/"
        print(f"ready: {url} ({len(finder.index):,} images); Ctrl+C stops", flush=True)
        _Server(settings).run(sockets=[listening])


class _Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes all connections first, since uvicorn would wait for unfinished uploads."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    try:
        [(family, *_), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise UsageError(
            f"--host={host} --port={port}: {reason}; choose others, or --port=0 for a free port"
        ) from error
