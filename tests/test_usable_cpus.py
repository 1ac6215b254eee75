"""Process layer: the CPUs that control groups leave us, from trees of /proc and /sys laid out as kernels do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from coordinator._tokens import usable_cpus

pytestmark = pytest.mark.process


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("quota", "cpus"), [("max 100000", 0), ("50000 100000", 1), ("100000 100000", 1), ("", 0), ("x y", 0), ("1 0", 0)]
)
def test_usable_cpus_of_version_2(quota: str, cpus: int, tmp_path: Path) -> None:
    root = lay_out(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b\n",
            "proc/self/mountinfo": "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            "sys/fs/cgroup/a/cpu.max": f"{quota}\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
        },
    )
    assert usable_cpus(root) == (cpus or len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(("quota", "cpus"), [("-1", 0), ("1000", 1), ("100000", 1), ("", 0)])
def test_usable_cpus_of_version_1(quota: str, cpus: int, tmp_path: Path) -> None:
    root = lay_out(
        tmp_path,
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/a\n1:memory:/b\n0::/\n",
            "proc/self/mountinfo": "30 20 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n",
            "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": f"{quota}\n",
            "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
        },
    )
    assert usable_cpus(root) == (cpus or len(os.sched_getaffinity(0)))
