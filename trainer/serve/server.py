"""Runs the application on a port of this machine until it is told to stop."""

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
    """Serves the page until SIGINT, which raises KeyboardInterrupt, or SIGTERM.

    Args:
      model: the export that the index's embeddings are of, or its run.
      index: what `python -m trainer.search build` wrote.
      data: the data set with the index's pictures, or
      images: the folder, or list, that was embedded.
      host: address or name to listen on.
      port: 0 for one that is free.

    Raises:
      UsageError: something cannot be loaded; the address cannot be had.
    """
    # First, so that a port that is taken is known at once. Who comes too early waits.
    with _listen(host, port) as listening:
        address, port = listening.getsockname()[:2]
        names = {"localhost", host.lower()}
        if not ipaddress.ip_address(address).is_loopback:
            names.add(socket.gethostname().lower())
            print(
                f"warning: {host} is reached from other machines: whoever does may search here and"
                " see the pictures, without a password",
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
            log_config=None,  # defects are logged, to standard error; nothing else
            access_log=False,
            server_header=False,
            proxy_headers=False,
        )
        print(f"ready: {_url(host, port)} ({len(finder.index):,} images); Ctrl+C stops", flush=True)
        _Server(settings).run(sockets=[listening])


class _Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Does not wait for uploads that are still under way, as uvicorn would."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    try:
        [(family, *_), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no name of a host"
        raise UsageError(
            f"--host={host} --port={port}: {reason}; choose others, or --port=0 for a free port"
        ) from error


def _url(host: str, port: int) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"http://{host}:{port}/"
    if address.is_unspecified:
        return f"http://localhost:{port}/"
    return f"http://[{host}]:{port}/" if address.version == 6 else f"http://{host}:{port}/"
