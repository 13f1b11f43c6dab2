"""The server: a folder that is watched, the application that answers, a socket."""

import asyncio
import contextlib
import functools
import math
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import uvicorn

from bertbin_tf.serving.batching import Batcher
from bertbin_tf.serving.connection import Connection
from bertbin_tf.serving.limits import Limits
from bertbin_tf.serving.measures import Measures
from bertbin_tf.serving.refused import Refused
from bertbin_tf.serving.rest import build_app
from bertbin_tf.serving.versions import Versions

KEEP_ALIVE_SECONDS = 75  # longer than proxies and clients keep an idle connection: they close it, and not we
MAX_CONNECTIONS = 1024


class ModelServer:
    """Serves the versions in a folder over TF Serving's REST interface.

    It is for people without the TF Serving image: the same paths and JSON, one process, one model. The highest version
    that answers as its golden file says is served; a new one is picked up while the old one answers.

    Args:
        path: Folder of the model, `saved_models/movies`; its name is the model's.
        host: String, the address to bind. Defaults to `"127.0.0.1"`: this machine only.
        port: Int in [0, 65535]; 0 takes any that is free. Defaults to `8501`, TF Serving's.
        labels: Dict from a label to a version that is served under it besides the highest. Defaults to `None`.
        limits: `Limits`. Defaults to `None`: those of the class.
        poll_seconds: Float > 0, between two looks at the folder. Defaults to `1.0`, as TF Serving's
            `file_system_poll_wait_seconds`.
        report: Function that is told, a line at a time, what happens. Defaults to `print`.

    Attributes:
        port: Int, the port that is bound.

    Raises:
        ValueError: If the address cannot be bound.

    Example:
    >>> server = ModelServer("saved_models/movies", port=0, report=lambda line: None)
    >>> threading.Thread(target=server.run).start()  # or `server.run()`, which ends when it is interrupted
    >>> server.wait(seconds=60)
    True
    >>> RestClient("movies", f"http://127.0.0.1:{server.port}").predict(["a great film"]).label
    array([1])
    >>> server.stop()
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        host: str = "127.0.0.1",
        port: int = 8501,
        labels: dict[str, int] | None = None,
        limits: Limits | None = None,
        poll_seconds: float = 1.0,
        report: Callable[[str], None] = print,
    ):
        self._path = Path(os.path.abspath(path))
        self._poll_seconds = poll_seconds
        self._tell = report
        self._ready = threading.Event()
        limits = limits or Limits()
        measures = Measures(self._report)

        def make_batcher(servable):
            return Batcher(servable, max_waiting=limits.waiting, observe=measures.batch_rows.observe)

        self._versions = Versions(self._path, make_batcher, labels=labels, report=self._report)
        measures.waiting.set_function(lambda: self._versions.num_waiting)
        measures.version.set_function(self._served)
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, port), family=family, backlog=2048)
        except (OSError, OverflowError) as error:
            reason = (getattr(error, "strerror", None) or str(error)).rstrip(".")
            raise ValueError(
                f"Cannot listen on {host}, port {port}: {reason}. Another server may have it: choose another port."
            ) from error
        # Inherited by connections. Without it an answer waits 40 ms for the other side to acknowledge its headers;
        # asyncio sets it only for sockets that it made itself.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port = self._socket.getsockname()[1]
        self._url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/v1/models/{self._path.name}"
        self._server = uvicorn.Server(
            uvicorn.Config(
                build_app(self._versions, limits, measures),
                lifespan="off",
                log_config=None,  # logging is the program's, and not a library's to configure
                log_level="error",
                access_log=False,
                server_header=False,
                http=functools.partial(Connection, seconds=limits.seconds),  # type: ignore[arg-type]
                limit_concurrency=MAX_CONNECTIONS,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                # A request may wait so long for its body, and again for its answer.
                timeout_graceful_shutdown=math.ceil(2 * limits.seconds) + 1,
            )
        )

    def run(self) -> None:
        """Serves until it is interrupted (SIGINT, SIGTERM) or stopped; then what has been taken is answered first.

        Raises:
            ValueError: If the folder has no version that can be served.
        """
        asyncio.run(self._run())

    def wait(self, seconds: float) -> bool:
        """Waits, in another thread than that of `run`, until a version answers; returns whether one does.

        Args:
            seconds: Float, the longest to wait.
        """
        return self._ready.wait(seconds)

    def stop(self) -> None:
        """Ends `run`, from any thread."""
        self._server.should_exit = True

    async def _run(self):
        with self._socket:
            serving = asyncio.ensure_future(self._server.serve(sockets=[self._socket]))
            watching = asyncio.ensure_future(self._watch())
            try:
                await asyncio.wait({serving, watching}, return_when=asyncio.FIRST_COMPLETED)
                if watching.done():  # it has found nothing to serve
                    self.stop()
                await serving
                if watching.done():
                    await watching
            finally:
                watching.cancel()
                await self._versions.close()

    async def _watch(self):
        """Loads what is there, and then whatever comes."""
        await self._versions.update()
        if not self._served():
            reasons = " ".join(version.error for version in self._versions)
            raise ValueError(
                f"'{self._path}' has no version that can be served. Export one with `bertbin-tf export`. {reasons}"
            )
        self._ready.set()
        self._report(f"answers at {self._url}")
        while True:
            await asyncio.sleep(self._poll_seconds)
            try:
                await self._versions.update()
            except Exception as error:  # the disk may come back
                self._report(f"'{self._path}' cannot be looked at: {error}")

    def _served(self):
        try:
            return self._versions.find().number
        except Refused:
            return 0

    def _report(self, line):
        with contextlib.suppress(Exception):  # whoever read the lines may be gone; those who ask are not
            self._tell(" ".join(line.split()))
