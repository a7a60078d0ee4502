"""Control groups as files, since a test cannot make real ones."""

import math
import os
import subprocess
import sys
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


_NICENESSES = """
import os, sys, threading
from concurrent.futures import ThreadPoolExecutor
from alinfik.server.cores import give_way

def niceness():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

def of_a_thread():
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(niceness).result()

os.nice(int(sys.argv[1]))
with ThreadPoolExecutor(1, initializer=give_way) as pool:
    print(*(pool.submit(one).result() for one in (niceness, of_a_thread)))
print(niceness(), of_a_thread())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no niceness of its own")
@pytest.mark.parametrize(("added", "more"), [(0, 5), (7, 5), (17, 2)])
def test_a_thread_gives_way_with_those_that_it_starts_and_no_other(added: int, more: int) -> None:
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    if ours:
        pytest.skip(f"the tests run at niceness {ours}, which cannot be lowered")
    found = subprocess.check_output([sys.executable, "-c", _NICENESSES, str(added)], text=True)
    nicer = added + more
    assert [int(word) for word in found.split()] == [nicer, nicer, added, added]
