"""Layer: process. What LLVM promises of links whose backends are distributed, through ltod-dtlto: what may be linked,
what it is called, and what is left of it. Options and caches are in `test_dtlto_options`.

Each link is also made by the plain distributor. The outputs are the same bytes, and nothing is left.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.dtlto_site import ANSWER, AR, MAIN, PROGRAM, Distributor, DtltoSite, dtlto_program, needs_lld

pytestmark = [pytest.mark.process, needs_lld]

UNCHANGED = "(nothing it is made of has changed)"


@pytest.fixture
def dtlto(place: Path) -> DtltoSite:
    return DtltoSite.at(place)


def test_cold_then_warm_then_partly(dtlto: DtltoSite) -> None:
    files = dtlto.compile(PROGRAM)
    cold = dtlto.compiled_once(files)
    assert dtlto.link(files, by=Distributor.NONE).bytes == cold.bytes
    # Nobody imports from it.
    (edited,) = dtlto.compile({"main.c": MAIN.replace("argc + 9", "argc + 10")})
    assert edited in files
    assert dtlto.same(files, says="1705\n").counts() == (2, 1)


def test_what_takes_long_to_load_is_not_loaded_where_all_is_there(dtlto: DtltoSite) -> None:
    files = dtlto.compile(PROGRAM)
    loaded = [
        {line.rpartition("|")[2].strip() for line in link.stderr.splitlines() if line.startswith("import time:")}
        for link in (dtlto.link(files, environ={"PYTHONPROFILEIMPORTTIME": "1"}) for _ in range(3))
    ]
    assert all("coordinator.dtlto._front" in names for names in loaded)
    assert ["trio" in names for names in loaded] == [True, False, False]


@pytest.mark.parametrize("how", ["rcs", "rcsT"], ids=["regular", "thin"])
def test_members_of_archives(dtlto: DtltoSite, how: str) -> None:
    main, one, two = dtlto.compile(PROGRAM)
    dtlto.compiled_once([main, dtlto.archive("lib with (a) name.a", [one, two], how)])
    # In another archive, they are at other offsets.
    assert dtlto.same([main, dtlto.archive("other.a", [two, one], how)]).counts() == (3, 0)
    # By themselves, they are the same modules again.
    assert dtlto.same([main, one, two]).counts() == (3, 0)


def test_members_of_a_thin_archive_elsewhere(dtlto: DtltoSite) -> None:
    main, one, two = dtlto.compile(PROGRAM, directory="members/deep")
    (dtlto.root / "lib/deep").mkdir(parents=True)
    lib = dtlto.archive("lib.a", [f"../../{one}", f"../deep/../../{two}"], "rcsT", cwd="lib/deep")
    link = dtlto.compiled_once([main, f"lib/deep/{lib}"])
    assert link.jobs is not None
    assert [job["inputs"][0] for job in link.jobs["jobs"]] == [os.fspath(name) for name in (main, one, two)]
    (dtlto.root / "run").mkdir()
    assert dtlto.same([f"../{main}", f"../lib/deep/{lib}"], cwd="run").counts() == (3, 0)


def test_equal_names_of_members(dtlto: DtltoSite) -> None:
    sources = {"main.c": MAIN, "a/part.c": PROGRAM["one.c"], "b/part.c": PROGRAM["two.c"]}
    main, one, two = dtlto.compile(sources, directory=".")
    dtlto.compiled_once([main, dtlto.archive("a/lib.a", [one]), dtlto.archive("b/lib.a", [two])])
    both = dtlto.archive("both.a", [one, two], "qcs")
    assert dtlto.run([AR, "t", both]).split() == ["part.o", "part.o"]
    # Modules are imported in the order of their paths, and offsets are in these. So `main` may be another job here.
    assert dtlto.same([main, both]).counts() in ((3, 0), (2, 1))
    said = dtlto.link([main, both], arguments=["--verbose"])
    assert said.counts() == (3, 0)
    assert len(re.findall(r"ltod-dtlto: both\.a\(part\.o\) at \d+: hit, ", said.stderr)) == 2


def test_the_same_module_twice_in_a_link(dtlto: DtltoSite) -> None:
    sources = {
        "main.c": '#include <stdio.h>\nint calls;\nint main(void) { printf("%d\\n", calls); return 0; }\n',
        "twice.c": "extern int calls;\n__attribute__((constructor)) static void add(void) { calls += 21; }\n",
    }
    main, twice = dtlto.compile(sources)
    shutil.copy(dtlto.root / twice, dtlto.root / "copy.o")
    link = dtlto.same([main, twice, "copy.o"], says="42\n")
    assert link.stats is not None
    # They are the same job, which is done once.
    assert link.stats["misses"] == 2
    assert link.stats["hits"] + link.stats["shared"] == 1
    assert dtlto.same([main, twice, "copy.o"], says="42\n").counts() == (3, 0)
    # One file, by two paths.
    assert dtlto.same([main, f"in/../{twice}", twice], says="42\n").counts() == (3, 0)


@pytest.mark.parametrize("partitions", [1, 3])
def test_fat_and_thin_modules_in_one_link(dtlto: DtltoSite, partitions: int) -> None:
    main, one = dtlto.compile({name: PROGRAM[name] for name in ("main.c", "one.c")})
    (two,) = dtlto.compile({"two.c": PROGRAM["two.c"]}, lto="-flto=full")
    (more,) = dtlto.compile({"more.c": "extern int calls; int more(int x) { return calls + x; }"}, lto="-flto=full")
    options = [f"-Wl,--lto-partitions={partitions}", "-Wl,-u,more"]
    dtlto.compiled_once([two, main, more, one], *options, jobs=2)
    lib = dtlto.archive("lib.a", [two, one, more])
    files: list[str | Path] = [main, "-Wl,--whole-archive", lib, "-Wl,--no-whole-archive"]
    assert dtlto.same(files, *options, jobs=2).counts() == (2, 0)


def test_fat_lto_objects(dtlto: DtltoSite) -> None:
    main, one, two = dtlto.compile(PROGRAM, "-ffat-lto-objects")
    dtlto.compiled_once([main, one, two], "-ffat-lto-objects")
    lib = dtlto.archive("lib.a", [one, two])
    assert dtlto.same([main, lib], "-ffat-lto-objects").counts() == (3, 0)
    # Without that option, their machine code is linked.
    assert dtlto.link([main, one, two]).stats is None


@pytest.mark.parametrize("flag", ["-O2", "-ffat-lto-objects"], ids=["bitcode", "fat objects"])
def test_names_are_the_same_in_every_link(dtlto: DtltoSite, flag: str) -> None:
    main, one, two = dtlto.compile(PROGRAM, flag, directory=".")
    lib = dtlto.archive("lib.a", [one])
    dtlto.link([main, two, lib], flag)
    said = dtlto.link([main, two, lib], flag, arguments=["--verbose"]).stderr
    for name in ("main.o", "two.o", "lib.a(one.o)"):
        assert re.search(rf"^ltod-dtlto: {re.escape(name)}: hit, .*{re.escape(UNCHANGED)}$", said, re.MULTILINE), said


SHAPE = "struct Shape { virtual int area(); };\nint sum(Shape **, int);\nShape *square(int);\n"
UNITS = {
    "base.cc": """
        #include "shape.h"
        int Shape::area() { return 0; }
        int sum(Shape **s, int n) { int r = 0; for (int k = 0; k < n; k++) r += s[k]->area(); return r; }
    """,
    "square.cc": """
        #include "shape.h"
        struct Square : Shape { int s; int area() override { return s * s; } };
        Square one;
        Shape *square(int s) { one.s = s; return &one; }
    """,
    "main.cc": """
        #include "shape.h"
        extern "C" int printf(const char *, ...);
        struct Line : Shape {};
        int main() { Line l; Shape *s[] = {&l, square(12)}; printf("%d\\n", sum(s, 2)); return 0; }
    """,
}


def test_split_units(dtlto: DtltoSite) -> None:
    (dtlto.root / "shape.h").write_text(SHAPE)
    flags = ["-fsplit-lto-unit", "-fwhole-program-vtables", "-fvisibility=hidden", "-fno-rtti", "-fno-exceptions"]
    base, square, main = dtlto.compile(UNITS, f"-I{dtlto.root}", *flags)
    dtlto.compiled_once([main, base, square], "-fwhole-program-vtables", says="144\n")
    lib = dtlto.archive("lib.a", [base, square])
    assert dtlto.same([main, lib], "-fwhole-program-vtables", says="144\n").counts() == (3, 0)


def test_files_that_lld_keeps(dtlto: DtltoSite) -> None:
    files = dtlto.compile(PROGRAM)

    def kept(by: Distributor) -> tuple[dict[str, bytes], bytes]:
        link = dtlto.link(files, "-Wl,--save-temps", by=by)
        output = link.bytes
        link.output.unlink()
        return taken(dtlto, link.left), output

    plain, output = kept(Distributor.PLAIN)
    assert sum(name.endswith(".native.o") for name in plain) == 3
    for ours, output_of_ours in (kept(Distributor.LTOD), kept(Distributor.LTOD)):
        assert sorted(ours) == sorted(plain)
        different = {name for name in plain if ours[name] != plain[name]}
        assert {name for name in different if not name.endswith((".json", ".txt"))} == set()
        assert output_of_ours == output


def test_lists_and_shards_where_they_are_asked_for(dtlto: DtltoSite) -> None:
    files = dtlto.compile(PROGRAM)
    options = ["-Wl,--thinlto-emit-imports-files", "-Wl,--thinlto-emit-index-files"]
    expected = taken(dtlto, dtlto.link(files, *options, by=Distributor.PLAIN).left)
    assert {f"{name}.{what}" for name in files for what in ("imports", "thinlto.bc")} <= set(expected)
    assert taken(dtlto, dtlto.link(files, *options).left) == expected
    assert taken(dtlto, dtlto.link(files, *options).left) == expected


def taken(dtlto: DtltoSite, names: frozenset[str]) -> dict[str, bytes]:
    """What is in these files, which are removed, by their names less the numbers of processes."""
    found = {}
    for name in names:
        path = dtlto.root / name
        found[re.sub(r"\.\d+\.(dist-file|native)\.", r".PID.\1.", name)] = path.read_bytes()
        path.unlink()
    assert len(found) == len(names)
    return found


def test_symbols_and_outputs_that_are_not_ascii(dtlto: DtltoSite) -> None:
    sources = {
        "alpha.c": "int début(int), gängig(int), 变量;\nint año(int x) { return début(x) + gängig(x) + 变量; }\n",
        "beta.c": "int début(int x) { return x * 3; }\n",
        "gamma.c": "static int größe(int x) { return x + 1; }\nint gängig(int x) { return größe(x) * größe(x); }\n",
        "main.c": '#include <stdio.h>\nint año(int);\nint main(void) { printf("%d\\n", año(4)); return 0; }\n',
    }
    at = "📁 ä"
    names = [name.relative_to(at) for name in dtlto.compile(sources, directory=f"{at}/in")]
    dtlto.compiled_once(names, cwd=at, says="37\n", output="prögramm", jobs=4)
    lib = dtlto.archive("box.a", names[:2], cwd=at)
    assert dtlto.same([*names[2:], lib], cwd=at, says="37\n", output="💾", jobs=4).counts() == (4, 0)
    assert (dtlto.root / at / "💾").is_file()


@pytest.mark.parametrize("name", ["ä", "📁", os.fsdecode(b"odd\xff\xfe")], ids=["latin", "emoji", "no text"])
def test_paths_that_lld_garbles(dtlto: DtltoSite, name: str) -> None:
    """LLVM 22 fills up what follows a byte beyond ASCII in a shard's paths. That is said, and nothing is made of it."""
    main, one, two = dtlto.compile(PROGRAM)
    (dtlto.root / name).mkdir()
    files = [main, (dtlto.root / one).rename(dtlto.root / name / "one.o").relative_to(dtlto.root), two]
    # The plain one fails, too, if late.
    assert dtlto.link(files, by=Distributor.PLAIN, fails=True).left == frozenset()
    link = dtlto.link(files, fails=True)
    (error,) = (line for line in link.stderr.splitlines() if line.startswith("ltod-dtlto: error: "))
    assert "LLVM 22 garbles what is not ASCII in paths of shards: rename it, or link without a distributor" in error
    assert link.left == frozenset()


@pytest.mark.parametrize("lto", ["", "-flto=full"], ids=["native", "fat"])
def test_nothing_to_distribute(dtlto: DtltoSite, lto: str) -> None:
    files = dtlto.compile(PROGRAM, lto=lto)
    link = dtlto.link(files)
    assert link.stats is None
    assert link.left == frozenset()
    assert dtlto.run([link.output]) == ANSWER


def test_no_jobs(dtlto: DtltoSite) -> None:
    jobs, stats = dtlto.root / "jobs.json", dtlto.root / "stats.json"
    content = {"common": {"linker_output": "program", "args": [dtlto.clang, "-c", "-O2"], "inputs": []}, "jobs": []}
    jobs.write_text(json.dumps(content))
    before = dtlto.files()
    command: list[str | Path] = [dtlto_program(), f"--stats={stats}", jobs]
    done = subprocess.run(command, cwd=dtlto.root, capture_output=True, timeout=60, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json.loads(stats.read_text())["jobs"] == 0
    assert dtlto.files() - before == {"stats.json"}
