"""Control groups as files, since a test cannot make real ones."""

import math
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from alinfik.server import cores


def groups(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", {"cpu.max": "max 100000"}, math.inf),
        ("0::/", {}, math.inf),
        ("0::/pod/main", {"pod/cpu.max": "50000 25000", "pod/main/cpu.max": "max 100000"}, 2),
        ("4:cpu,cpuacct:/host/id", {"cpu/cpu.cfs_quota_us": "250000"}, math.inf),
        (
            "4:cpu,cpuacct:/host/id\n3:cpuset:/",
            {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"},
            2.5,
        ),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "1"}, math.inf),
    ],
)
def test_the_least_quota_of_a_group_and_those_around_it_counts(
    tmp_path: Path, own: str, files: dict[str, str], expected: float
) -> None:
    assert cores.quota(own, groups(tmp_path, files)) == expected


def test_a_quota_is_rounded_up_and_no_more_than_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").write_text("0::/")
    monkeypatch.setattr(cores, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(cores, "_GROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    for quota, expected in (("150000", 2), ("1000", 1), ("9900000", 64), ("max", 64)):
        groups(tmp_path, {"cpu.max": f"{quota} 100000"})
        assert cores.usable_cores() == expected


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no niceness of its own")
def test_a_thread_gives_way_with_those_that_it_starts_and_no_other() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def of_a_thread() -> int:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(niceness).result()

    ours = niceness()
    with ThreadPoolExecutor(1, initializer=cores.give_way) as pool:
        nicer = pool.submit(niceness).result()
        assert nicer > ours
        assert pool.submit(of_a_thread).result() == nicer
    assert niceness() == of_a_thread() == ours
