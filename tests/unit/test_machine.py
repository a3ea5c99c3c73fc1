"""What a machine is said to be, from the files that say so."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from qvl import environment, machine


@pytest.fixture
def _one_socket_of_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "allowed_threads", lambda: 16)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 16 if logical else 8)


@pytest.mark.parametrize("version", [1, 2])
def test_files_in_the_page_cache_do_not_count_as_taken(tmp_path: Path, version: int) -> None:
    folder = tmp_path if version == 2 else tmp_path / "memory"
    folder.mkdir(exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    (folder / names[0]).write_text("10000\n")
    (folder / names[1]).write_text("9000\n")
    assert machine.cgroup_memory(tmp_path) == (10000, 9000)
    prefix = "" if version == 2 else "total_"
    (folder / "memory.stat").write_text(f"anon 1000\n{prefix}inactive_file 5000\n{prefix}active_file 2000\n")
    assert machine.cgroup_memory(tmp_path) == (10000, 2000)


def test_a_group_without_a_limit_leaves_it_to_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("9000\n")
    assert machine.cgroup_memory(tmp_path) is None
    assert machine.cgroup_memory(tmp_path / "nowhere") is None
    monkeypatch.setattr(machine, "cgroup_memory", lambda: None)
    assert machine.memory().limit is None
    assert machine.memory_size() == machine.memory().total == psutil.virtual_memory().total


def test_a_container_has_no_more_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cgroup_memory", lambda: (2**28, 2**27))
    memory = machine.memory()
    assert (memory.limit, memory.free, machine.memory_size()) == (2**28, 2**27, 2**28)
    assert memory.total == psutil.virtual_memory().total
    monkeypatch.setattr(machine, "cgroup_memory", lambda: (2**28, 2**29))
    assert machine.free_memory() == 0


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense\n"}, None),
        ({}, None),
    ],
)
def test_the_time_a_container_grants(tmp_path: Path, files: dict[str, str], expected: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.cpu_quota(tmp_path) == expected


@pytest.mark.usefixtures("_one_socket_of_eight")
@pytest.mark.parametrize(("quota", "cores"), [(None, 8), (1.5, 2), (0.1, 1), (64.0, 8)])
def test_threads_are_no_more_than_the_container_has_time_for(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int
) -> None:
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    for name in ("QVL_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert machine.physical_cores() == cores
    assert environment.choose_threads(None) == environment.Threads(cores, "cores")


def test_a_processor_is_named_with_what_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "_CPUINFO", info)
    info.write_text("processor\t: 0\nmodel name\t: Some   CPU @ 2 GHz\nflags\t\t: sse avx fma avx2 avx512f\n\n")
    cpu = machine.cpu()
    assert (cpu.model, cpu.extensions) == ("Some CPU @ 2 GHz", ("AVX", "AVX2", "FMA", "AVX-512"))
    info.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\nModel\t\t: A board\n")
    assert (machine.cpu().model, machine.cpu().extensions) == ("A board", ("NEON", "DOTPROD"))
    info.unlink()
    assert machine.cpu().extensions is None and machine.cpu().model


def laid_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("version", [1, 2])
def test_the_groups_above_have_a_say_as_well(version: int, tmp_path: Path) -> None:
    """A job of a cluster on bare metal: nothing is said at the root, and the step has less than the job, or more."""
    if version == 2:
        files = {
            "job/memory.max": "9000\n",
            "job/memory.current": "5000\n",
            "job/cpu.max": "400000 100000\n",
            "job/step/memory.max": "max\n",
            "job/step/memory.current": "10\n",
            "job/step/cpu.max": "max 100000\n",
            "own": "0::/job/step\n",
        }
    else:
        files = {
            "memory/job/memory.limit_in_bytes": "9000\n",
            "memory/job/memory.usage_in_bytes": "5000\n",
            "memory/memory.limit_in_bytes": "9223372036854771712\n",
            "memory/memory.usage_in_bytes": "5010\n",
            "cpu/job/cpu.cfs_quota_us": "400000\n",
            "cpu/job/cpu.cfs_period_us": "100000\n",
            "cpu/cpu.cfs_quota_us": "-1\n",
            "cpu/cpu.cfs_period_us": "100000\n",
            "own": "5:cpu,cpuacct:/job/step\n4:memory:/job/step\n0::/\n",
        }
    root = laid_out(tmp_path, files)
    assert machine.cgroup_memory(root, root / "own") == (9000, 5000)
    assert machine.cpu_quota(root, root / "own") == 4.0
    (root / "own").write_text("0::/../elsewhere\n")
    assert machine.cpu_quota(root, root / "own") is None
