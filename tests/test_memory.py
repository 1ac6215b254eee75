"""Process layer: the memory limit, from trees of /proc and /sys laid out as kernels do, and of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from coordinator._memory import memory_limit

pytestmark = pytest.mark.process

MIB = 1024 * 1024
UNLIMITED = 9223372036854771712  # what version 1 writes

V2 = "30 20 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 20 0:29 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory\n"
OTHER_V1 = "34 20 0:30 / /sys/fs/cgroup/cpu rw,nosuid shared:8 - cgroup cgroup rw,cpu,cpuacct\n"


def limit(tmp_path: Path, files: dict[str, str | int], total: int = 8192) -> int:
    """The limit in MiB on a machine with `total` MiB and these files; integers are MiB too."""
    for name, content in ({"proc/meminfo": f"MemTotal: {total * 1024} kB\nMemFree: 1 kB\n"} | files).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else f"{content * MIB}\n")
    found = memory_limit(tmp_path)
    assert found % MIB == 0
    return found // MIB


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [("max\n", 300, 300), (200, "max\n", 200), (200, 300, 200), ("max\n", "max\n", 8192), (9999, 9999, 8192)],
)
def test_version_2_counts_every_ancestor(outer: str | int, inner: str | int, expected: int, tmp_path: Path) -> None:
    files: dict[str, str | int] = {
        "proc/self/cgroup": "0::/user.slice/build.scope\n",
        "proc/self/mountinfo": V2,
        "sys/fs/cgroup/user.slice/memory.max": outer,
        "sys/fs/cgroup/user.slice/build.scope/memory.max": inner,
        "sys/fs/cgroup/system.slice/memory.max": 1,
    }
    assert limit(tmp_path, files) == expected


def test_version_2_counts_the_limit_that_throttles(tmp_path: Path) -> None:
    files: dict[str, str | int] = {
        "proc/self/cgroup": "0::/a\n",
        "proc/self/mountinfo": V2,
        "sys/fs/cgroup/a/memory.max": 300,
        "sys/fs/cgroup/a/memory.high": 250,
    }
    assert limit(tmp_path, files) == 250


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        (f"{UNLIMITED}\n", 300, 300),
        (200, f"{UNLIMITED}\n", 200),
        (f"{UNLIMITED}\n", f"{UNLIMITED}\n", 8192),
        ("18446744073709551615\n", "-1\n", 8192),
    ],
)
def test_version_1_counts_every_ancestor(outer: str | int, inner: str | int, expected: int, tmp_path: Path) -> None:
    files: dict[str, str | int] = {
        "proc/self/cgroup": "9:name=systemd:/\n4:memory:/a/b:c\n1:cpu,cpuacct:/d\n0::/\n",
        "proc/self/mountinfo": OTHER_V1 + V1,
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{UNLIMITED}\n",
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": outer,
        "sys/fs/cgroup/memory/a/b:c/memory.limit_in_bytes": inner,
        "sys/fs/cgroup/memory/d/memory.limit_in_bytes": 1,
        "sys/fs/cgroup/cpu/d/memory.limit_in_bytes": 1,
    }
    assert limit(tmp_path, files) == expected


def test_a_hybrid_machine_counts_both_versions(tmp_path: Path) -> None:
    files: dict[str, str | int] = {
        "proc/self/cgroup": "4:memory:/a\n0::/b\n",
        "proc/self/mountinfo": V1 + V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified"),
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": 300,
        "sys/fs/cgroup/unified/b/memory.max": 200,
    }
    assert limit(tmp_path, files) == 200
    assert limit(tmp_path, {"sys/fs/cgroup/unified/b/memory.max": "max"}) == 300


@pytest.mark.parametrize("group", ["/docker/abc/in", "/../../elsewhere", "/gone (deleted)", "/"])
def test_a_group_that_is_not_visible_leaves_the_top_of_the_mount(group: str, tmp_path: Path) -> None:
    """As in a container or a namespace of its own, where the mount shows our own limits at its top."""
    files: dict[str, str | int] = {
        "proc/self/cgroup": f"0::{group}\n",
        "proc/self/mountinfo": V2,
        "sys/fs/cgroup/memory.max": 300,
        "elsewhere/memory.max": 1,
        "sys/elsewhere/memory.max": 1,
    }
    assert limit(tmp_path, files) == 300


def test_a_mount_that_shows_a_subtree(tmp_path: Path) -> None:
    """As in a container of an older Docker: /proc names the host's path, the mount begins further down."""
    files: dict[str, str | int] = {
        "proc/self/cgroup": "4:memory:/docker/abc/inner\n",
        "proc/self/mountinfo": V1.replace("0:29 /", "0:29 /docker/abc"),
        "sys/fs/cgroup/memory/memory.limit_in_bytes": 300,
        "sys/fs/cgroup/memory/inner/memory.limit_in_bytes": 200,
        "sys/fs/cgroup/memory/docker/abc/inner/memory.limit_in_bytes": 1,
    }
    assert limit(tmp_path, files) == 200


def test_a_mount_of_somebody_else_does_not_count(tmp_path: Path) -> None:
    files: dict[str, str | int] = {
        "proc/self/cgroup": "4:memory:/ours/inner\n",
        "proc/self/mountinfo": V1.replace("0:29 / /sys/fs/cgroup/memory", "0:29 /theirs /mnt/theirs")
        + V1.replace("0:29 / /sys/fs/cgroup/memory", "0:29 /our /mnt/our")
        + V1.replace("0:29 / /sys/fs/cgroup/memory", r"0:29 /ours /mnt/with\040blank"),
        "mnt/theirs/memory.limit_in_bytes": 1,
        "mnt/our/memory.limit_in_bytes": 2,
        "mnt/with blank/memory.limit_in_bytes": 300,
    }
    assert limit(tmp_path, files) == 300


@pytest.mark.parametrize("garbage", ["", "\n\n", "a b c", ":::", "0::", "4:memory", "\0", "1 2 3 4 5 - cgroup2 x y"])
def test_what_cannot_be_read_limits_nothing(garbage: str, tmp_path: Path) -> None:
    files: dict[str, str | int] = {
        "proc/self/cgroup": "0::/a\n",
        "proc/self/mountinfo": V2,
        "sys/fs/cgroup/a/memory.max": garbage,
        "sys/fs/cgroup/memory.max/not-a-file": 1,
    }
    assert limit(tmp_path, files) == 8192
    assert limit(tmp_path, {"proc/self/mountinfo": garbage}) == 8192
    assert limit(tmp_path, {"proc/self/cgroup": garbage}) == 8192


def test_nothing_but_the_machine_is_known(tmp_path: Path) -> None:
    assert memory_limit(tmp_path) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_this_machine() -> None:
    assert 16 * MIB < memory_limit() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
