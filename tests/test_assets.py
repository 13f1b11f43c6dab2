import hashlib
import io
import subprocess
import sys
import tarfile
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bertbin_tf import assets


def zip_bytes(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def tar_bytes(members):
    """Members are name -> bytes, or name -> TarInfo attributes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, dict):
                for key, value in content.items():
                    setattr(info, key, value)
                file.addfile(info)
            else:
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_with_link():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("pkg/model/config.json", "{}")
        link = zipfile.ZipInfo("pkg/model/weights")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        file.writestr(link, "/etc/passwd")
    return buffer.getvalue()


GOOD = zip_bytes(
    {"pkg/model/config.json": "{}", "pkg/model/sub/vocab.txt": "a", "pkg/other.py": "x", "pkg/LICENSE": "L"}
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("BERTBIN_TF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def forbid_processes(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "run", refuse)


def offer(monkeypatch, home, content, *, file="tiny-1.0.zip", members=None, **kwargs):
    """Pins `content` as the only asset and lays it where a user without network would."""
    members = members or {"pkg/model/": "model/", "pkg/LICENSE": "LICENSE"}
    arguments = dict(requirement="tiny==1.0", file=file, sha256=hashlib.sha256(content).hexdigest(), megabytes=1)
    arguments |= dict(unpack=((file, members),), folder="model")
    monkeypatch.setattr(assets, "_ASSETS", {"tiny": assets._Asset(**(arguments | kwargs))})
    (home / "downloads").mkdir(parents=True, exist_ok=True)
    (home / "downloads" / file).write_bytes(content)


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def test_only_the_wanted_members_are_unpacked(home, monkeypatch, forbid_processes):
    offer(monkeypatch, home, GOOD)
    folder = assets.fetch("tiny")
    assert folder == home / "tiny-1.0" / "model"
    assert files_below(home / "tiny-1.0") == ["LICENSE", "model/config.json", "model/sub/vocab.txt"]
    assert (folder / "config.json").read_text() == "{}"


def test_inner_archive_is_unpacked_and_removed(home, monkeypatch, forbid_processes):
    inner = tar_bytes({"data/rows.txt": b"1", "data/program.py": b"x"})
    outer = tar_bytes({"tiny-1.0/LICENSE": b"L", "tiny-1.0/inner.tar.gz": inner})
    steps = (
        ("tiny-1.0.tar.gz", {"tiny-1.0/LICENSE": "LICENSE", "tiny-1.0/inner.tar.gz": "inner.tar.gz"}),
        ("inner.tar.gz", {"data/rows.txt": "rows.txt"}),
    )
    offer(monkeypatch, home, outer, file="tiny-1.0.tar.gz", unpack=steps, folder=".")
    assert files_below(assets.fetch("tiny")) == ["LICENSE", "rows.txt"]


def test_second_call_needs_neither_network_nor_archive(home, monkeypatch, forbid_processes):
    offer(monkeypatch, home, GOOD)
    folder = assets.fetch("tiny")
    (home / "downloads" / "tiny-1.0.zip").unlink()
    assert assets.fetch("tiny") == folder


@pytest.mark.parametrize(
    "content",
    [
        zip_bytes({"pkg/model/a": "1", "pkg/model/../../../evil": "x"}),
        zip_bytes({"pkg/model/a": "1", "../evil": "x"}),
        zip_bytes({"pkg/model/a": "1", "/evil": "x"}),
        zip_bytes({"pkg/model/a": "1", "pkg/model/..\\evil": "x"}),
        zip_bytes({"pkg/model/a": "1", "C:/evil": "x"}),
        zip_with_link(),
        tar_bytes({"pkg/model/a": b"1", "pkg/model/../../../evil": b"x"}),
        tar_bytes({"pkg/model/a": b"1", "/evil": b"x"}),
        tar_bytes({"pkg/model/link": {"type": tarfile.SYMTYPE, "linkname": "/etc"}, "pkg/model/link/evil": b"x"}),
        tar_bytes({"pkg/model/a": b"1", "pkg/model/link": {"type": tarfile.LNKTYPE, "linkname": "pkg/model/a"}}),
        tar_bytes({"pkg/model/pipe": {"type": tarfile.FIFOTYPE}}),
    ],
    ids=[
        "zip ..",
        "zip up",
        "zip /",
        "zip \\",
        "zip C:",
        "zip link",
        "tar ..",
        "tar /",
        "tar link",
        "tar hard",
        "tar fifo",
    ],
)
def test_archive_that_would_leave_its_folder_is_refused(home, tmp_path, monkeypatch, content, forbid_processes):
    offer(monkeypatch, home, content, members={"pkg/model/": "model/"})
    with pytest.raises(assets.AssetError, match="nothing was unpacked"):
        assets.fetch("tiny")
    assert files_below(tmp_path) == ["home/downloads/tiny-1.0.zip"]


def test_wrong_hash_is_refused_before_opening(home, monkeypatch, forbid_processes):
    offer(monkeypatch, home, GOOD, sha256="0" * 64)
    monkeypatch.setattr(assets, "_unpack", None)  # would fail if it were called
    with pytest.raises(assets.AssetError, match=f"Expected SHA-256 0000.*Received: {hashlib.sha256(GOOD).hexdigest()}"):
        assets.fetch("tiny")
    assert not (home / "tiny-1.0").exists()


def test_missing_member_is_an_error(home, monkeypatch, forbid_processes):
    offer(monkeypatch, home, zip_bytes({"pkg/model/a": "1"}))
    with pytest.raises(assets.AssetError, match="tiny-1.0.zip lacks pkg/LICENSE"):
        assets.fetch("tiny")


def test_crash_half_way_leaves_nothing(home, monkeypatch, forbid_processes):
    offer(monkeypatch, home, GOOD)

    def crash(source, file):
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(assets.shutil, "copyfileobj", crash)
        assets.fetch("tiny")
    assert files_below(home) == ["downloads/tiny-1.0.zip"]
    assert files_below(assets.fetch("tiny")) == ["config.json", "sub/vocab.txt"]


def test_loser_of_a_race_takes_what_the_winner_made(home, monkeypatch, forbid_processes):
    offer(monkeypatch, home, GOOD)
    unpack = assets._unpack

    def unpack_and_lose(*args):
        unpack(*args)
        (home / "tiny-1.0" / "model").mkdir(parents=True)
        (home / "tiny-1.0" / "model" / "winner").touch()

    monkeypatch.setattr(assets, "_unpack", unpack_and_lose)
    assert files_below(assets.fetch("tiny")) == ["winner"]
    assert files_below(home) == ["downloads/tiny-1.0.zip", "tiny-1.0/model/winner"]


def test_callers_at_the_same_time_all_succeed(home, monkeypatch, forbid_processes):
    offer(monkeypatch, home, GOOD)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(assets.fetch, ["tiny"] * 8)) == [home / "tiny-1.0" / "model"] * 8
    assert files_below(home / "tiny-1.0") == ["LICENSE", "model/config.json", "model/sub/vocab.txt"]


def test_pip_is_given_the_hash_and_its_file_is_used(home, monkeypatch):
    offer(monkeypatch, home, GOOD)
    (home / "downloads" / "tiny-1.0.zip").unlink()
    seen = {}

    def pip(command, **kwargs):
        seen["requirement"] = Path(command[command.index("--requirement") + 1]).read_text()
        Path(command[command.index("--dest") + 1], "tiny-1.0.zip").write_bytes(GOOD)
        return types.SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", pip)
    assert files_below(assets.fetch("tiny")) == ["config.json", "sub/vocab.txt"]
    assert seen["requirement"] == f"tiny==1.0 --hash=sha256:{hashlib.sha256(GOOD).hexdigest()}\n"


def test_without_network_the_error_says_what_to_do(home, monkeypatch, capfd):
    offer(monkeypatch, home, GOOD)
    (home / "downloads" / "tiny-1.0.zip").unlink()
    # A real pip, told to look at no index: what a machine without network comes down to.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(assets.AssetError) as error:
        assets.fetch("tiny")
    for part in ("No matching distribution", "Connect", "tiny-1.0.zip", hashlib.sha256(GOOD).hexdigest()):
        assert part in str(error.value)
    assert str(home / "downloads") in str(error.value) and "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "Fetching tiny (1 MB, once) ...\n")  # and nothing of what pip says
    assert files_below(home) == []


def test_home_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("BERTBIN_TF_HOME", str(tmp_path / "file"))
    with pytest.raises(assets.AssetError, match="BERTBIN_TF_HOME"):
        assets.fetch("vader")


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="minilm, vader.*name='bert'"):
        assets.fetch("bert")


def test_home_is_the_cache_folder_unless_configured(home, monkeypatch):
    assert assets.home() == home
    monkeypatch.delenv("BERTBIN_TF_HOME")
    assert assets.home().name == "bertbin_tf"


def test_import_loads_no_tensorflow_and_makes_no_folder(home):
    program = "import sys, bertbin_tf.assets; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
    assert not home.exists()


@pytest.mark.checkpoint
def test_pinned_assets_are_fetched():
    minilm, vader = assets.fetch("minilm"), assets.fetch("vader")
    assert {"config.json", "model.safetensors", "vocab.txt"} <= set(files_below(minilm))
    assert len([name for name in files_below(vader) if name.endswith("_GroundTruth.txt")]) == 4
    assert (minilm.parent / "licenses" / "LICENSE").is_file() and (vader / "LICENSE.txt").is_file()
