"""The command `megalm serve`: starts the models, listens, and ends without cutting answers off."""

import asyncio
import logging
import signal
import socket
import sys

import uvicorn

from megalm.errors import UserError
from megalm.serve.app import make_app
from megalm.serve.keeping import Keeper
from megalm.serve.keys import KeyFile
from megalm.serve.patience import patient_for
from megalm.serve.pool import Pool
from megalm.serve.screen import open_screen
from megalm.serve.service import Service
from megalm.serve.settings import ServeSettings

logger = logging.getLogger(__name__)


GOODBYE_SECONDS = 5
"""For what is still being sent when the models have ended."""


def main(settings: ServeSettings) -> int:
    """Serve until SIGTERM or SIGINT; 0 after all open answers have ended well. Raises UserError where it cannot begin."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    return asyncio.run(_serve(settings))


async def _serve(settings: ServeSettings) -> int:
    keys = KeyFile(settings.api_keys) if settings.api_keys is not None else None
    taken = _bind(settings)
    feedback = Keeper(settings.feedback) if settings.feedback is not None else None
    service = Service(settings, Pool(settings.models), keys, feedback)
    service.screen = open_screen(settings, service.metrics)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    hurry = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # the second one does not wait for open answers
        loop.add_signal_handler(number, lambda: hurry.set() if stop.is_set() else stop.set())
    await _start(service, stop)
    if stop.is_set():
        return 0
    config = uvicorn.Config(
        make_app(service),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        http=patient_for(settings.limits.body_seconds),
        h11_max_incomplete_event_size=64 << 10,  # of headers
        timeout_graceful_shutdown=GOODBYE_SECONDS,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve([taken]))  # which leaves signals to us
    try:
        while not (server.started or serving.done()):
            await asyncio.sleep(0.02)
        _say_where(taken, settings)
        waiting = asyncio.create_task(stop.wait())
        await asyncio.wait([serving, waiting], return_when=asyncio.FIRST_COMPLETED)
        service.is_draining = True
        ends = [
            asyncio.ensure_future(service.requests.over(settings.drain_seconds)),
            asyncio.ensure_future(hurry.wait()),
        ]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        await service.pool.stop()  # answers that are still open are told so
        server.should_exit = True
        await serving
    finally:
        await service.pool.stop()
        if feedback is not None:
            await feedback.close()
    return 0


async def _start(service: Service, stop: asyncio.Event) -> None:
    """Start the models, unless told to end before they are there."""
    starting = asyncio.ensure_future(service.pool.start())
    waiting = asyncio.ensure_future(stop.wait())
    await asyncio.wait([starting, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not starting.done():
        starting.cancel()
        await asyncio.wait([starting])
        return
    starting.result()


def _bind(settings: ServeSettings) -> socket.socket:
    """The address, taken before models are loaded; nobody is let in yet. UserError where it cannot be had."""
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        taken = socket.socket(family, kind, protocol)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        raise UserError(
            f"{settings.host}:{settings.port}: {error.strerror}; choose another --host or --port"
        ) from None
    return taken


def _say_where(taken: socket.socket, settings: ServeSettings) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(f"megalm: serving on http://{host}:{taken.getsockname()[1]}/v1", flush=True)
