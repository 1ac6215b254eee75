"""Layer: process. What LLVM promises of links whose backends are distributed, through ltod-dtlto: options, which reach
the compiler and are part of a job, and paths, which are not.

Each link is also made by the plain distributor. The outputs are the same bytes, and nothing is left.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.dtlto_site import MAIN, PROGRAM, Distributor, DtltoSite, needs_lld

pytestmark = [pytest.mark.process, needs_lld]

LOOPS = """
float table[4096];
int two(int x) { for (int k = 0; k < 4096; k++) table[k] = table[k] * x + 1; return table[x]; }
"""


@pytest.fixture
def dtlto(place: Path) -> DtltoSite:
    return DtltoSite.at(place)


def to_compiler(*arguments: str) -> list[str]:
    return [f"-Wl,--thinlto-remote-compiler-arg={argument}" for argument in arguments]


def test_arguments_of_the_compiler(dtlto: DtltoSite) -> None:
    files = dtlto.compile(PROGRAM | {"two.c": LOOPS})
    seen = {dtlto.compiled_once(files, says=None).bytes}
    for arguments in (
        ["-mllvm", "-force-vector-interleave=8"],
        ["-fno-addrsig"],
        ["-O1"],
    ):
        link = dtlto.compiled_once(files, *to_compiler(*arguments), says=None)
        if arguments != ["-fno-addrsig"]:  # which only shows in objects
            assert link.bytes not in seen, arguments
        seen.add(link.bytes)
    assert dtlto.link(files).counts() == (3, 0)


def test_arguments_that_nobody_knows_are_not_cached(dtlto: DtltoSite) -> None:
    files = dtlto.compile(PROGRAM)
    options = to_compiler("-mllvm", "-stats")
    plain = dtlto.link(files, *options, by=Distributor.PLAIN)
    for _ in range(2):
        link = dtlto.link(files, *options)
        assert link.stats is not None
        assert (link.stats["uncached"], link.stats["hits"], link.stats["misses"]) == (3, 0, 0)
        assert link.bytes == plain.bytes
        assert link.left == frozenset()
        warnings = [line for line in link.stderr.splitlines() if line.startswith("ltod-dtlto: warning:")]
        assert len(warnings) == 1, link.stderr
        assert "-stats" in warnings[0]


CONFIGURATIONS = {
    "-O0": ["-Wl,--lto-O0"],
    "-O3": ["-Wl,--lto-O3"],
    "static": ["-no-pie", "-static"],
    "no pgo warning": ["-Wl,--no-lto-pgo-warn-mismatch"],
}


def test_what_the_linker_is_told_reaches_the_compiler(dtlto: DtltoSite) -> None:
    files = dtlto.compile(PROGRAM, "-fPIE")
    default = dtlto.same(files)
    assert default.jobs is not None
    told = [default.jobs["common"]["args"]]
    assert {"-O2", "-fpic", "-faddrsig", "-ffunction-sections", "-fdata-sections"} <= set(told[0])
    for what, options in CONFIGURATIONS.items():
        link = dtlto.same(files, *options)
        assert link.counts() == (0, 3), what
        assert link.jobs is not None
        given = link.jobs["common"]["args"]
        assert given not in told, what
        assert ("-O2" in given) == (not what.startswith("-O"))
        assert ("-fpic" in given) == (what != "static")
        assert ("-no-pgo-warn-mismatch" in given) == (what == "no pgo warning")
        told.append(given)
    assert dtlto.link(files, *CONFIGURATIONS["-O0"]).counts() == (3, 0)


def test_the_first_file_tells_the_target(dtlto: DtltoSite) -> None:
    (one,) = dtlto.compile({"one.c": PROGRAM["one.c"]}, "--target=x86_64-unknown-linux-gnu")
    (main, two) = dtlto.compile({"main.c": MAIN, "two.c": PROGRAM["two.c"]}, "--target=x86_64-pc-linux-gnu")
    for files, target in (([one, main, two], "unknown"), ([main, one, two], "pc")):
        link = dtlto.same(files)
        assert link.jobs is not None
        assert f"--target=x86_64-{target}-linux-gnu" in link.jobs["common"]["args"]
        # cc1 is told another target, so these are other jobs.
        assert link.counts() == (0, 3)


def test_shared_libraries(dtlto: DtltoSite) -> None:
    files = dtlto.compile({name: text for name, text in PROGRAM.items() if name != "main.c"}, "-fPIC")
    dtlto.compiled_once(files, "-shared", says=None, jobs=2)
    (dtlto.root / "elsewhere").mkdir()
    moved = [f"../{name}" for name in files]
    again = dtlto.same(moved, "-shared", says=None, cwd="elsewhere", output="lib.so", jobs=2)
    assert again.counts() == (2, 0)


PROFILE = "one:9000:100\n 1: 90\n 2: {count} two:{count}\ntwo:9000:{count}\n 1: {count}\n"


def test_sample_profiles(dtlto: DtltoSite) -> None:
    files = dtlto.compile(PROGRAM, "-gmlt", "-fdebug-info-for-profiling")
    profile = dtlto.root / "sample.prof"
    profile.write_text(PROFILE.format(count=90))
    link = dtlto.compiled_once(files, "-Wl,--lto-sample-profile=sample.prof")
    assert link.jobs is not None
    assert link.jobs["common"]["inputs"] == ["sample.prof"]
    shutil.copy(profile, dtlto.root / "copy.prof")
    assert dtlto.link(files, "-Wl,--lto-sample-profile=copy.prof").counts() == (3, 0)
    profile.write_text(PROFILE.format(count=5))
    assert dtlto.same(files, "-Wl,--lto-sample-profile=sample.prof").counts() == (0, 3)
    # Without a profile, these are other jobs again.
    assert dtlto.same(files).counts() == (0, 3)


def test_a_cache_of_lld_comes_first(dtlto: DtltoSite) -> None:
    files = dtlto.compile(PROGRAM)
    options = ["-Wl,--thinlto-cache-dir=lld"]
    plain = dtlto.link(files, by=Distributor.PLAIN)
    # Its entries of other links are not for distributed ones.
    dtlto.link(files, *options, by=Distributor.NONE)
    cold = dtlto.link(files, *options)
    assert cold.counts() == (0, 3)
    assert all(name.startswith("lld/llvmcache-") for name in cold.left)
    warm = dtlto.link(files, *options)
    assert warm.stats is None
    assert warm.bytes == plain.bytes
    # What it imports from has no job then.
    (edited,) = dtlto.compile({"main.c": MAIN.replace("argc + 9", "argc + 10")})
    assert edited in files
    partly = dtlto.link(files, *options, arguments=["--verbose"])
    assert partly.counts() == (0, 1)
    assert partly.bytes == dtlto.link(files, by=Distributor.PLAIN).bytes
    # If it is lost, ours is still there.
    shutil.rmtree(dtlto.root / "lld")
    assert dtlto.link(files, *options).counts() == (3, 0)


def test_paths_are_no_part_of_a_job(dtlto: DtltoSite) -> None:
    files = dtlto.compile(PROGRAM)
    dtlto.compiled_once(files)
    assert dtlto.same([dtlto.root / name for name in files]).counts() == (3, 0)
    (dtlto.root / "a/b").mkdir(parents=True)
    below = dtlto.same([f"../../{name}" for name in files], cwd="a/b", output="../../a/other")
    assert below.counts() == (3, 0)
    # A copy is as good.
    copies = [Path(shutil.copy(dtlto.root / name, dtlto.root / "a")).name for name in files]
    assert dtlto.same(copies, cwd="a").counts() == (3, 0)


def test_another_checkout(dtlto: DtltoSite) -> None:
    def checkout(name: str) -> list[str]:
        """What a compiler that runs there makes of the sources."""
        directory = dtlto.root / name
        directory.mkdir()
        for source, text in PROGRAM.items():
            (directory / source).write_text(text)
        dtlto.run([dtlto.clang, "-c", "-O2", "-g", "-flto=thin", "-ffile-compilation-dir=.", *PROGRAM], cwd=Path(name))
        return [f"{Path(source).stem}.o" for source in PROGRAM]

    first = dtlto.same(checkout("first"), cwd="first")
    second = dtlto.same(checkout("second"), cwd="second")
    assert (first.counts(), second.counts()) == ((0, 3), (3, 0))
    assert first.bytes == second.bytes


def test_response_files(dtlto: DtltoSite) -> None:
    files = dtlto.compile(PROGRAM)
    (dtlto.root / "list").write_text("\n".join(f'"{name}"' for name in files))
    dtlto.compiled_once(["@list"])
    assert dtlto.same(["-Wl,@list"]).counts() == (3, 0)


def test_a_time_trace(dtlto: DtltoSite) -> None:
    files = dtlto.compile(PROGRAM)
    plain = dtlto.link(files, by=Distributor.PLAIN)
    link = dtlto.link(files, "-Wl,--time-trace=trace.json", "-Wl,--time-trace-granularity=0")
    assert link.left == {"trace.json"}
    assert link.bytes == plain.bytes
    events = json.loads((dtlto.root / "trace.json").read_text())["traceEvents"]
    assert [event["name"] for event in events if event["name"] == "Execute DTLTO distributor"]


@pytest.mark.parametrize("jobs", ["-j1", "--jobs=64"])
def test_few_and_many_at_once(dtlto: DtltoSite, jobs: str) -> None:
    sources = {f"part{k}.c": f"int part{k}(int x) {{ return x * {k} + {k}; }}\n" for k in range(9)}
    calls = "".join(f"int part{k}(int);\n" for k in range(9))
    total = " + ".join(f"part{k}(1)" for k in range(9))
    sources["main.c"] = f'#include <stdio.h>\n{calls}int main(void) {{ printf("%d\\n", {total}); return 0; }}\n'
    dtlto.compiled_once(dtlto.compile(sources), jobs=10, says="72\n", arguments=[jobs])
