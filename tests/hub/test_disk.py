"""A disk that is full, fills up on the way, or cannot be written: one clear error, and what had arrived is kept."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qvl.hub.locate import locate
from qvl.hub.transfer import _Part
from tests.hub.conftest import BIG, INDEX, NEEDED, SHARDS, Run, is_model, nothing_kept, one_error
from tests.hub.server import Hub


def bytes_needed(hub: Hub) -> int:
    return sum(len(hub.files[name]) for name in (*NEEDED, *SHARDS, INDEX))


def bytes_kept(store: Path, hub: Hub) -> int:
    """What an unfinished download has left in its hidden folder."""
    partial = (store / hub.model).with_name(f".{hub.model.partition('/')[2]}.partial")
    return sum(path.stat().st_size for path in partial.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_write_that_the_system_refuses_is_one_error(
    hub: Hub, run: Run, store: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    append = _Part.append

    def full(part: _Part, data: bytes) -> None:
        if part.position > 100_000:
            raise OSError(number, "no")
        append(part, data)

    with monkeypatch.context() as patched:
        patched.setattr(_Part, "append", full)
        code, out, err = run("2b")
    assert one_error(code, out, err) and "the disk is full" in err
    assert nothing_kept(store, hub)
    kept = bytes_kept(store, hub)
    hub.asked.clear()
    assert run("2b")[0] == 0 and is_model(store / hub.model, hub)
    assert hub.sent() == bytes_needed(hub) - kept, "what had arrived was not fetched again"


def test_too_little_room_is_known_before_anything_is_fetched(
    hub: Hub, run: Run, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
    code, out, err = run("2b", "--source", "hf")
    assert one_error(code, out, err) and "are needed and 1.0 MB are free" in err and "--dir or QVL_HOME" in err
    assert not hub.names() and nothing_kept(store, hub)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`small_disk(options)` mounts a file system of its own; skipped where that is not permitted."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        try:
            done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
        except OSError:
            pytest.skip("no mount here")
        if done.returncode:
            pytest.skip("mounting is not permitted here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_fills_up_on_the_way_is_one_error(
    hub: Hub, run: Run, small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk("size=400k")
    monkeypatch.setenv("QVL_HOME", str(disk))
    with monkeypatch.context() as patched:  # as when somebody else takes the room meanwhile
        patched.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, 10**9))
        code, out, err = run("2b", "--source", "hf")
    assert one_error(code, out, err) and "the disk is full" in err and nothing_kept(disk / "models", hub)
    subprocess.run(["mount", "-o", "remount,size=60m", disk], check=True)
    kept = bytes_kept(disk / "models", hub)
    hub.asked.clear()
    code, _, err = run("2b", "--source", "hf")
    assert code == 0, err
    assert is_model(disk / "models" / hub.model, hub)
    assert hub.sent() == bytes_needed(hub) - kept, "what had arrived was not fetched again"


def test_a_folder_that_cannot_be_written_is_one_error(
    hub: Hub, run: Run, small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk("ro")
    monkeypatch.setenv("QVL_HOME", str(disk / "qvl"))
    code, out, err = run("2b")
    assert one_error(code, out, err) and "cannot be written (Read-only file system)" in err
    assert not hub.names()


def test_what_another_file_system_has_is_linked_by_name(
    hub: Hub, run: Run, home: Path, small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = home / ".cache/modelscope/hub/models" / hub.model
    place.mkdir(parents=True)
    (place / BIG).write_bytes(hub.files[BIG])
    disk = small_disk("size=60m")
    monkeypatch.setenv("QVL_HOME", str(disk))
    assert run("2b", "--source", "hf")[0] == 0
    folder = disk / "models" / hub.model
    assert is_model(folder, hub) and BIG not in hub.names()
    assert (folder / BIG).is_symlink() and (folder / BIG).samefile(place / BIG)
    assert run("--verify", "2b", "--offline")[0] == 0
    assert run("--rm", "2b")[0] == 0
    assert (place / BIG).exists()


def test_a_store_that_may_only_be_read_is_verified_and_used(
    hub: Hub, run: Run, small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk("size=60m")
    monkeypatch.setenv("QVL_HOME", str(disk))
    assert run("2b")[0] == 0
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert run("2b")[:2] == (0, f"{disk / 'models' / hub.model}\n")
    code, out, _ = run("--verify")
    assert code == 0 and "all right" in out
    assert locate(hub.model) == disk / "models" / hub.model
    code, _, err = run("--rm", "2b")
    assert code == 1 and "cannot be written (Read-only file system)" in err
