"""Which versions of a model are served, while folders come and go."""

import asyncio
import contextlib
import dataclasses
import enum
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from bertbin_tf.export.servable import Servable, versions_in
from bertbin_tf.export.verification import check
from bertbin_tf.serving.batching import Batcher
from bertbin_tf.serving.refused import Refused

RETRY_SECONDS = 60.0  # as TF Serving's load_retry_interval_micros


class State(enum.Enum):
    """The states of a version, as TF Serving names them."""

    LOADING = "LOADING"
    AVAILABLE = "AVAILABLE"
    UNLOADING = "UNLOADING"
    END = "END"


@dataclasses.dataclass
class Version:
    """One version, from its folder's appearance to its end.

    Args:
        number: Int.
        path: `pathlib.Path` of its folder.
        state: `State`. Defaults to `LOADING`.
        error: String, why it is not served. Defaults to `""`.
        batcher: The `Batcher` that answers, while it is available.
        num_users: Int, the requests that it is answering. Defaults to `0`.
        seen: What the folder looked like when it was tried. Defaults to `None`.
        tried: Float, when that was, in seconds of `time.monotonic`. Defaults to `0.0`.
    """

    number: int
    path: Path
    state: State = State.LOADING
    error: str = ""
    batcher: Batcher | None = None
    num_users: int = 0
    seen: object = None
    tried: float = 0.0


class Versions:
    """The versions in `saved_models/<name>/`: the highest that is whole and right is served, as by TF Serving.

    A new version is loaded, warmed up and compared with its golden file while the old one goes on answering; then
    requests go to the new one, and the old one is dropped when it has answered the last that it had taken. A version
    that fails, or has no golden file, is left out, with the reason in its status, and tried again when its folder
    changes, and each minute. One that is written anew under its number is taken up like a new one.

    Args:
        path: Folder of the model.
        make_batcher: Function from a `Servable` to its `Batcher`.
        labels: Dict from a label to the number of the version that it stands for; these versions are served besides
            the highest. Defaults to none.
        report: Function that is told, in one line, what happened. Defaults to nothing.

    Attributes:
        name: String, the name of the folder, which is the model's.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        make_batcher: Callable[[Servable], Batcher],
        *,
        labels: dict[str, int] | None = None,
        report: Callable[[str], None] = lambda line: None,
    ):
        self._path = Path(path)
        self.name = self._path.name
        self._labels = labels or {}
        self._make_batcher = make_batcher
        self._report = report
        self._versions: dict[int, Version] = {}
        self._unloading = set()

    def __iter__(self):
        return iter(sorted(self._versions.values(), key=lambda version: version.number))

    @property
    def num_waiting(self) -> int:
        """How many texts wait for an answer."""
        return sum(version.batcher.num_waiting for version in self if version.batcher is not None)

    def find(self, number: int | None = None, label: str | None = None) -> Version:
        """Returns the version that is served: the highest, or that of a number or a label.

        Raises:
            Refused: If it is not.
        """
        if label is not None:
            if label not in self._labels:
                raise Refused(400, f"Unrecognized servable version label: {label}")
            number = self._labels[label]
        served = [version for version in self if version.state is State.AVAILABLE and number in (None, version.number)]
        if not served:
            what = f"Latest({self.name})" if number is None else f"Specific({self.name}, {number})"
            raise Refused(404, f"Servable not found for request: {what}")
        return served[-1]

    @contextlib.asynccontextmanager
    async def use(self, number: int | None = None, label: str | None = None) -> AsyncIterator[Batcher]:
        """Returns a context with the batcher of a version, which is not dropped before the context ends."""
        version = self.find(number, label)
        version.num_users += 1
        try:
            yield version.batcher  # type: ignore[misc]  # what is found is loaded
        finally:
            version.num_users -= 1

    async def update(self) -> None:
        """Looks at the folder, loads what is new and drops what has been replaced."""
        folders = await asyncio.to_thread(versions_in, self._path)
        served = set()
        for number in sorted(folders, reverse=True):  # before the labelled ones: it is what answers without a label
            if await self._is_served(number, folders[number]):
                served.add(number)
                break
        for number in set(self._labels.values()) & set(folders):
            if await self._is_served(number, folders[number]):
                served.add(number)
        if not served:  # the folder is empty or out of reach: what is served is better than nothing
            return
        for version in list(self):
            if version.state is State.AVAILABLE and version.number not in served:
                self._unload(version)
            elif version.state is State.END and version.number not in folders:
                del self._versions[version.number]

    async def close(self) -> None:
        """Drops all versions when they have answered what they have taken."""
        for version in self:
            if version.state is State.AVAILABLE:
                self._unload(version)
        await asyncio.gather(*self._unloading)

    async def _is_served(self, number, folder):
        """Returns whether a version is available, after an attempt to load it if that may help."""
        version = self._versions.get(number)
        if version is not None and version.state is State.UNLOADING:
            return False
        seen = await asyncio.to_thread(_look_at, folder)
        if version is not None and version.state is State.AVAILABLE:
            if seen and seen != version.seen:
                await self._replace(version, seen)
            return True
        if version is not None and version.error:
            is_due = version.seen != seen or time.monotonic() - version.tried > RETRY_SECONDS
            if not is_due:
                return False
        version = self._versions[number] = Version(number, folder, seen=seen, tried=time.monotonic())
        try:
            servable = await asyncio.to_thread(_load, folder)
        except Exception as error:  # whatever is wrong with it, the others are served
            version.state, version.error = State.END, str(error)
            self._report(f"version {number} is not served: {error}")
            return False
        version.batcher, version.state = self._make_batcher(servable), State.AVAILABLE
        self._report(f"version {number} is served")
        return True

    async def _replace(self, version, seen):
        """Loads anew what was written under the number of a version that is served, which answers meanwhile."""
        version.seen = seen  # one attempt for each change
        try:
            servable = await asyncio.to_thread(_load, version.path)
        except Exception as error:
            self._report(f"version {version.number} was changed, and is served as it was: {error}")
            return
        batcher = self._make_batcher(servable)
        new = Version(version.number, version.path, State.AVAILABLE, batcher=batcher, seen=seen)
        self._versions[version.number] = new
        self._report(f"version {version.number} was changed, and is served as it is now: what it was is dropped")
        self._unload(version)

    def _unload(self, version):
        version.state = State.UNLOADING
        task = asyncio.get_running_loop().create_task(self._drop(version))
        self._unloading.add(task)
        task.add_done_callback(self._unloading.discard)

    async def _drop(self, version):
        while version.num_users:
            await asyncio.sleep(0.05)
        await version.batcher.close()
        version.batcher, version.state = None, State.END
        self._report(f"version {version.number} is dropped")


def _load(folder):
    servable = Servable(folder)
    try:
        check(servable)
    except BaseException:
        servable.close()
        raise
    return servable


def _look_at(folder):
    """Returns what a folder looks like: names, sizes and times of its files."""
    try:
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        return [(str(file), (facts := file.stat()).st_size, facts.st_mtime_ns) for file in files]
    except OSError:  # it is being written, or taken away
        return []
