"""Layer: e2e. Several `ltod build` at once on one cache: what one is making, the others wait for."""

from __future__ import annotations

import collections
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.command import LTOD
from tests.samples import compile_c

pytestmark = pytest.mark.e2e

MODULES = 8


def sources() -> dict[str, str]:
    """Modules that take a while each, and do not import from each other."""
    made = {}
    for number in range(MODULES):
        lines = [f"  for (int k = 0; k < n; k++) s += p[k * {n}] * (s >> {n % 5 + 1});" for n in range(1, 120)]
        text = "\n".join(lines)
        made[f"m{number}"] = f"int f{number}(int *p, int n) {{\n  int s = {number};\n{text}\n  return s;\n}}\n"
    calls = " + ".join(f"f{number}(p, c)" for number in range(MODULES))
    declared = "".join(f"int f{number}(int *, int);\n" for number in range(MODULES))
    made["main"] = f"{declared}int main(int c, char **v) {{ int p[4] = {{0}}; return c > 9 ? {calls} : 0; }}\n"
    return made


def start(place: Path, name: str, modules: list[Path], *more: str) -> subprocess.Popen[bytes]:
    out = place / name
    command: list[str | Path] = [*LTOD, "build", "-j1", "-q", "--json", "--cache-dir", place / "cache"]
    link: list[str | Path] = ["--out-dir", out, "--link", "exe", "-o", out / "program"]
    return subprocess.Popen([*command, *link, *more, *modules], stdout=subprocess.PIPE)


def outcomes(process: subprocess.Popen[bytes], stage: str) -> collections.Counter[str]:
    """What the cache did in a stage of a build that succeeds."""
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    items: list[dict[str, Any]] = json.loads(said)["items"]
    return collections.Counter(item["cache"] for item in items if item["stage"] == stage)


@pytest.mark.parametrize(("lto", "stage"), [("thin", "thin-backend"), ("fat", "fat-link"), (None, "codegen")])
def test_builds_at_once_make_each_thing_once(lto: str | None, stage: str, place: Path) -> None:
    modules = compile_c(sources(), place / "bc")
    more = ["--lto", lto] if lto else []
    builds = [start(place, f"out{number}", modules, *more) for number in range(3)]
    found = [outcomes(build, stage) for build in builds]
    total = sum(found, collections.Counter())
    expected = 1 if stage == "fat-link" else MODULES + 1
    assert total["miss"] == expected
    assert total["hit"] + total["shared"] == 2 * expected
    assert total["shared"] > 0
    programs = {(place / f"out{number}" / "program").read_bytes() for number in range(3)}
    assert len(programs) == 1


@pytest.mark.parametrize("lto", ["thin", "fat", None])
def test_who_waits_for_one_that_is_killed_takes_over(lto: str | None, place: Path) -> None:
    modules = compile_c(sources(), place / "bc")
    more = ["--lto", lto] if lto else []
    first = start(place, "out0", modules, *more)
    time.sleep(0.6)
    second = start(place, "out1", modules, *more)
    time.sleep(0.6)
    first.kill()
    said, _ = second.communicate(timeout=120)
    first.communicate()
    assert second.returncode == 0
    assert json.loads(said)["ok"]
    verify = subprocess.run([*LTOD, "cache", "verify", "--cache-dir", place / "cache"], check=False)
    assert verify.returncode == 0
