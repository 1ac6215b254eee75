"""Layer: end-to-end. A Rust program with regex and serde_json, linked through `ltod-dtlto` in both of cargo's ways."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.dtlto_site import DtltoSite, dtlto_program, needs_lld
from tests.rust_program import ANSWER, cargo_build, rust_problem, write_program
from tests.samples import zig

PROBLEM = rust_problem()
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(PROBLEM is not None, reason=PROBLEM or "")]


class Workshop:
    """Builds the program with a distributor, again and again at one place, as its symbols depend on that."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.place = root / "place"
        self.stats = root / "stats.json"
        root.mkdir(exist_ok=True)
        self.site = DtltoSite.at(root)

    def build(self, flags: list[str], linker: str | None) -> bytes:
        """What cargo makes of a fresh checkout."""
        shutil.rmtree(self.place, ignore_errors=True)
        write_program(self.place, flags, linker)
        program = cargo_build(self.place, self.root / "cargo")
        assert subprocess.run([program], capture_output=True, check=True, text=True).stdout == ANSWER
        return program.read_bytes()

    def counts(self) -> tuple[int, int, int]:
        """Jobs, hits and misses of the last link."""
        stats = json.loads(self.stats.read_text())
        self.stats.unlink()
        return stats["jobs"], stats["hits"], stats["misses"]


@needs_lld
def test_linked_by_clang_and_lld(tmp_path: Path) -> None:
    shop = Workshop(tmp_path / "shop")

    def flags(distributor: Path, *more: str) -> list[str]:
        link = ["-fuse-ld=lld", "-flto=thin", f"-fthinlto-distributor={distributor}", *more]
        return ["-Clinker-plugin-lto", *(f"-Clink-arg={flag}" for flag in link)]

    ours = flags(dtlto_program(), f"-Xthinlto-distributor=--stats={shop.stats}")
    first = shop.build(ours, "clang-22")
    jobs, _, misses = shop.counts()
    assert jobs == misses > 20
    assert shop.build(ours, "clang-22") == first
    assert shop.counts() == (jobs, jobs, 0)
    assert shop.build(flags(shop.site.own / "plain"), "clang-22") == first


def test_linked_by_cc_and_rusts_own_lld(tmp_path: Path) -> None:
    shop = Workshop(tmp_path / "shop")
    words = [f"--thinlto-distributor={dtlto_program()}", f"--thinlto-distributor-arg=--stats={shop.stats}"]
    words += [f"--thinlto-remote-compiler={zig()}", "--thinlto-remote-compiler-prepend-arg=clang"]
    ours = ["-Clinker-plugin-lto", *(f"-Clink-arg=-Wl,{word}" for word in words)]
    first = shop.build(ours, None)
    jobs, _, misses = shop.counts()
    assert jobs == misses > 20
    assert shop.build(ours, None) == first
    assert shop.counts() == (jobs, jobs, 0)
