"""uvicorn around the application: logs without requests in them, and an end that leaves nothing behind."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from types import FrameType

import uvicorn

from neurofreeze.console import say
from neurofreeze.errors import ConfigError
from neurofreeze.serving.app import create_app
from neurofreeze.serving.connections import prompt_connections
from neurofreeze.serving.service import Service


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or ():
            host, port = listening.getsockname()[:2]
            say(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Readers of events would never leave by themselves.
        self._service.feed.close()
        super().handle_exit(sig, frame)


def bound(host: str, port: int) -> socket.socket:
    """A socket that has the address, and does not listen yet: who asks before there is a model is turned away.

    Raises:
        ConfigError: if the address cannot be had.
    """
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host.strip("[]"), port))
    except OSError as error:
        found.close()
        raise ConfigError(f"{host}:{port} cannot be listened on: {error.strerror or error}; give another") from error
    return found


def serve(service: Service, address: socket.socket) -> None:
    """Answer at a bound address until SIGTERM or Ctrl-C; what is under way then has `limits.grace` seconds."""
    limits = service.limits
    _log_to_stderr()
    settings = uvicorn.Config(
        create_app(service),
        http=prompt_connections(limits.head),
        ws="none",
        log_config=None,
        access_log=False,  # it would have the query; `Access` has none
        server_header=False,
        limit_concurrency=limits.connections,
        timeout_graceful_shutdown=round(limits.grace),
    )
    # uvicorn raises the signal again once it has stopped, for whoever else waits for it. Nobody does.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _Server(settings, service).run([address])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _log_to_stderr() -> None:
    shown = logging.StreamHandler(sys.stderr)
    shown.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("uvicorn", logging.WARNING), ("neurofreeze.serving", logging.INFO)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [shown], False
        logger.setLevel(level)
