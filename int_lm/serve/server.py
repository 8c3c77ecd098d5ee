"""The socket, signals and the end of the server."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from int_lm import signals
from int_lm.errors import UserError
from int_lm.serve.worker import Worker

GRACE_SECONDS = 2  # that requests have to end by themselves when the server is asked to stop
IDLE_SECONDS = 75  # that a connection stays open between requests; clients close theirs before
KEPT = "no request is answered any more"


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address.

    Args:
      host: name or number of an interface of this machine.
      port: 0 for any that is free.

    Raises:
      UserError: the address cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        result = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(
            f"--host {host} is no address of this machine ({error.strerror})"
        ) from error
    try:
        result.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        result.bind(address)
        result.listen(2048)
    except OSError as error:
        result.close()
        raise UserError(
            f"cannot listen at port {port} of {host}: {error.strerror}; name another with --port, "
            "or 0 for one that is free"
        ) from error
    return result


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, worker: Worker, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._worker, self._when_started = worker, started

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `serve`."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._when_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        timer = asyncio.get_running_loop().call_later(GRACE_SECONDS, self._worker.stop)
        await super().shutdown(sockets)
        timer.cancel()


def serve(
    app: ASGIApp,
    worker: Worker,
    at: socket.socket,
    started: Callable[[], None],
    log_requests: bool = False,
) -> None:
    """Answer requests until a signal asks to stop.

    Requests that are being answered have `GRACE_SECONDS` to end; a second signal ends the process
    at once.

    Args:
      app: the ASGI application.
      worker: computes the texts; it is stopped at the end.
      at: where to listen.
      started: called when clients can connect.
      log_requests: whether a line is printed for each request.

    Raises:
      signals.Stopped: a signal came.
    """
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        access_log=log_requests,
        log_level="info" if log_requests else "error",
        server_header=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS + 2,
    )
    server, received = _Server(config, worker, started), []

    def handle(number: signal.Signals) -> None:
        if received and number not in signals.ANNOUNCING:
            signals.leave(number)
        received.append(number)
        server.should_exit = True

    try:
        with signals.Listener(signals.STOPPING, lambda number: None, handle):
            server.run(sockets=[at])
    finally:
        worker.stop()
    if received:
        raise signals.Stopped(received[0], KEPT)
