"""How many CPU cores this process may keep busy.

Comes in: what Linux says of it. Goes out: a number. A container's limit (Kubernetes' ``limits``,
``docker --cpus``) is a quota of time on all of the machine's cores, which those that a process may
run on do not show: threads for all of them would be stopped for most of each tenth of a second.
"""

import math
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
# Above the event loop's niceness; the Kafka process is at twice that. Each step of five is a third
# of the share of a core.
_NICENESS = 5
_NICEST = 19


def usable_cores() -> int:
    """At least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    own = _OWN_GROUPS.read_text() if _OWN_GROUPS.exists() else ""
    return max(1, math.ceil(min(cores or 1, quota(own, _GROUPS))))


def quota(own: str, root: Path) -> float:
    """The least quota of this process's control groups and those around them, in cores.

    Args:
        own: what ``/proc/self/cgroup`` says, of version 2, of version 1, or of both.
        root: where the groups are mounted.

    Returns:
        infinity where there is none.
    """
    return min((cores for group in _groups(own, root) for cores in _quota(group)), default=math.inf)


def _groups(own: str, root: Path) -> Iterator[Path]:
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            top = root / "cpu" if controllers else root
            group = top / path.lstrip("/")
            # In a container a version 1 path is the host's, and the container's group is the top.
            yield from (one for one in (group, *group.parents) if one.is_relative_to(top))


def _quota(group: Path) -> Iterator[float]:
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            of, period = " ".join((group / file).read_text() for file in files).split()
        except OSError:
            continue
        if of not in ("max", "-1"):
            yield int(of) / int(period)


def give_way() -> None:
    """Have this thread, and those that it starts, wait for others where cores are short.

    Of the server's threads the event loop comes first: what it has not heard of, it can neither
    answer nor refuse.
    """
    if sys.platform == "linux":
        # There, a thread has a niceness of its own, and the process's is that of its first one.
        ours = os.getpriority(os.PRIO_PROCESS, os.getpid())
        nicer = min(ours + _NICENESS, _NICEST)
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nicer)
