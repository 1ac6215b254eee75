"""ThinLTO gives lld's own objects, however the work is split, and never believes a tool that says all is well.

Layer: process.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import trio
from attrs import evolve, frozen

from tests.samples import ABORTING_IR, TRIPLE, small_c, zig
from workers.llvm.bitcode import read_header
from workers.llvm.index_shard import read_index
from workers.llvm.lld_line import LldLines
from workers.llvm.oom import OomWatch
from workers.llvm.planner import Planner
from workers.llvm.thin_engine import ThinEngine
from workers.llvm.toolchain import Toolchain, find_toolchain
from workers.thin import REGULAR_PART, ThinCompile, ThinLink, ThinLinked
from workers.work import (
    CodegenOptions,
    EmitKind,
    Engine,
    Failed,
    Finished,
    LinkFile,
    LinkKind,
    LinkOptions,
    NeedsThinLto,
    OptLevel,
    RelocationModel,
    Severity,
    Step,
    Target,
    artifact_path,
)

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the programs of these tests are for x86-64"),
]

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no cc")

PIC = ("-mrelocation-model", "pic", "-pic-level", "2")
PIE = (*PIC, "-pic-is-pie")
DEBUG = ("-debug-info-kind=constructor", "-dwarf-version=5")

COUNT = 4
SMALL = {f"small/{number}": small_c(number, COUNT) for number in range(COUNT)}
PROGRAM = SMALL | {
    "zmain": """
    struct deep { int depth, width; }; extern _Thread_local int level; extern int shared_table[8];
    int walk0(int); int counted(struct deep *); int renamed(int); int chosen(int);
    int perhaps(int) __attribute__((weak));
    __attribute__((visibility("hidden"))) extern int hidden_sum;
    int main(int argc, char **argv) {
      struct deep d = {argc, 2}; level += argc; hidden_sum += shared_table[argc & 7];
      return walk0(argc) + counted(&d) + renamed(argc) + chosen(argc) + (perhaps ? perhaps(argc) : hidden_sum);
    }""",
    "state": """
    struct deep { int depth, width; }; _Thread_local int level; static int calls; int shared_table[8] = {3, 1, 4};
    int hidden_sum __attribute__((visibility("hidden")));
    static int promoted(int x) { for (int k = 0; k < x; k++) calls += shared_table[k & 7] * k; return calls; }
    int counted(struct deep *d) { return promoted(d->depth) + promoted(d->width) + level; }
    """,
    "another": """
    extern int shared_table[8]; int original(int x) { return x * shared_table[1] + 5; }
    int renamed(int) __attribute__((alias("original")));
    static int one(int x) { return x; } static int two(int x) { return x + 2; }
    static int (*resolve(void))(int) { return shared_table[0] > 1 ? one : two; }
    int chosen(int) __attribute__((ifunc("resolve")));
    __attribute__((weak)) int perhaps(int x) { return x ^ original(x); }
    """,
}


@frozen
class Site:
    """A directory, the engine to be tested, and what the same toolchain makes of a link in one go."""

    root: Path
    toolchain: Toolchain
    lines: LldLines
    engine: ThinEngine

    @property
    def scratch(self) -> Path:
        return self.root / "scratch"

    def item(
        self,
        modules: Sequence[NeedsThinLto | LinkFile],
        link: LinkKind | None = None,
        *,
        exports: tuple[str, ...] = (),
        options: CodegenOptions | None = None,
    ) -> ThinLink:
        directory = self.root / f"build{len(list(self.root.glob('build*')))}"
        directory.mkdir()
        arguments: tuple[str, ...] = (
            ("-nostdlib", "-Wl,--entry=main") if link is LinkKind.EXECUTABLE else ("-nostdlib",)
        )
        if link is LinkKind.STATIC:
            arguments = ()
        return ThinLink(
            tuple(modules),
            LinkOptions(link, directory / "program", (), arguments) if link is not None else None,
            exports,
            options or CodegenOptions(),
            Target(TRIPLE, ""),
            directory / "thin",
            directory / "out",
            directory / "reproducers",
        )

    async def reference(self, item: ThinLink, *extra: str) -> list[bytes]:
        """lld's own objects: the regular part, then those of the modules in its order."""
        files = [file.bitcode if isinstance(file, NeedsThinLto) else file.path for file in item.files]
        line = await self.lines.line(item.link, item.exports, files, item.options, item.target)
        directory = item.directory.with_name("reference")
        directory.mkdir()
        lazy = item.link is not None and item.link.kind is not LinkKind.STATIC
        paths = [(str(path), lazy and file.lazy) for path, file in zip(files, item.files, strict=True)]
        argv = line.argv(paths, str(directory / "program"), [f"--lto-obj-path={directory / 'o'}", *extra])
        await trio.run_process(argv)
        objects = [directory / "o"]
        while (following := directory / f"o{len(objects)}").exists():
            objects.append(following)
        return [path.read_bytes() for path in objects]

    async def linked(self, item: ThinLink) -> ThinLinked:
        with trio.fail_after(120):
            result = await self.engine.thin_link(item)
        assert isinstance(result, ThinLinked), result
        return result

    async def compile(self, batch: Sequence[ThinCompile]) -> list[Finished | Failed]:
        with trio.fail_after(300):
            results = list(await self.engine.thin_compile(batch))
        assert [result.module for result in results] == [one.name for one in batch]
        assert all(result.step is Step.THIN_BACKEND for result in results)
        return results

    async def objects(self, batches: Sequence[Sequence[ThinCompile]]) -> dict[str, bytes]:
        found = {}
        for batch in batches:
            for result in await self.compile(batch):
                assert isinstance(result, Finished), result
                assert result.diagnostics == ()
                assert result.peak_rss_bytes > 0
                (artifact,) = result.artifacts
                assert artifact.path == artifact_path(batch[0].link.item.out_dir, result.module, EmitKind.OBJECT)
                found[result.module] = artifact.path.read_bytes()
                assert artifact.bytes == len(found[result.module])
                artifact.path.unlink()
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    toolchain = find_toolchain(None, {})
    lines = LldLines(toolchain, scratch, dict(os.environ))
    planner = Planner(toolchain, scratch)
    before = descriptors()
    yield Site(tmp_path, toolchain, lines, ThinEngine(toolchain, planner, lines, scratch, lambda: "v", OomWatch()))
    assert [path.name for path in scratch.iterdir() if path.name.startswith(("action-", "thin-"))] == []
    assert descriptors() == before


def imports_of(compile_: ThinCompile) -> set[str]:
    """The modules that functions are imported from, by name: those that the shard names beside its own."""
    paths = {module.path.decode() for module in read_index(compile_.shard.read_bytes()).modules}
    return {compile_.link.names[path] for path in paths} - {compile_.name}


def pre_linked(directory: Path, sources: dict[str, str], *flags: str, language: str = "c") -> list[NeedsThinLto]:
    """Modules as they come out of the pre-link pipeline, in the order of `sources`."""
    directory.mkdir(exist_ok=True)
    modules = []
    for number, (name, source) in enumerate(sources.items()):
        path = directory / f"{number}.bc"
        argv = [zig(), "clang", "-cc1", "-triple", TRIPLE, "-O2", "-flto=thin", "-flto-unit", "-emit-llvm-bc"]
        argv += ["-vectorize-loops", "-vectorize-slp", *flags, "-x", language, "-", "-o", str(path)]
        subprocess.run(argv, input=source.encode(), check=True)
        size = read_header(path.read_bytes()).code_bytes
        modules.append(NeedsThinLto(name, path, size, False, str(path), Engine.TOOLCHAIN, 0.0, 0))
    return modules


def always_clang(compiles: Sequence[ThinCompile]) -> None:
    compiles[0].link.again_seconds = float("inf")


def always_lld(compiles: Sequence[ThinCompile]) -> None:
    compiles[0].link.by_clang = False


@needs_cc
@pytest.mark.parametrize("debug", [(), DEBUG], ids=["plain", "debug"])
@pytest.mark.parametrize(
    ("kind", "flags", "exports", "options"),
    [
        (LinkKind.EXECUTABLE, PIE, (), CodegenOptions()),
        (LinkKind.EXECUTABLE, (), (), CodegenOptions(relocation_model=RelocationModel.STATIC)),
        (LinkKind.SHARED, PIC, (), CodegenOptions(opt_level=OptLevel.O3)),
        (LinkKind.SHARED, PIC, ("main",), CodegenOptions(target_cpu="haswell")),
        (LinkKind.STATIC, PIC, ("main",), CodegenOptions(vectorize_loops=False, vectorize_slp=False)),
        (None, PIC, (), CodegenOptions(target_features=("+avx2",))),
        (None, (), (), CodegenOptions(opt_level=OptLevel.SIZE)),
    ],
    ids=["pie", "exe", "shared", "shared-exports", "static-exports", "local-pic", "local"],
)
async def test_objects_are_those_of_lld_however_the_work_is_split(
    kind: LinkKind | None,
    flags: tuple[str, ...],
    exports: tuple[str, ...],
    options: CodegenOptions,
    debug: tuple[str, ...],
    site: Site,
) -> None:
    modules = pre_linked(site.root / "in", PROGRAM, *flags, *debug)
    item = site.item(modules, kind, exports=exports, options=options)
    extra = [f"--lto-O{'3' if options.opt_level is OptLevel.O3 else '2'}"]
    if options.target_cpu is not None:
        extra.append(f"--plugin-opt=mcpu={options.target_cpu}")
    if options.target_features:
        extra.append("--mllvm=-mattr=" + ",".join(options.target_features))
    if options.vectorize_loops is False:
        extra += ["--mllvm=-vectorize-loops=false", "--mllvm=-vectorize-slp=false"]
    _, *expected = await site.reference(item, *extra)
    linked = await site.linked(item)
    assert linked.regular is None
    assert linked.unneeded == ()
    assert linked.diagnostics == ()
    compiles = list(linked.compiles)
    assert any(imports_of(one) for one in compiles)
    wanted = {module.module: content for module, content in zip(modules, expected, strict=True)}
    assert compiles[0].link.by_clang
    pick = random.Random(repr((kind, debug)))
    pick.shuffle(compiles)
    assert await site.objects([[one] for one in compiles]) == wanted
    always_clang(compiles)
    assert await site.objects([compiles]) == wanted
    always_lld(compiles)
    for size in (1, 3, len(compiles)):
        pick.shuffle(compiles)
        batches = [compiles[first : first + size] for first in range(0, len(compiles), size)]
        assert await site.objects(batches) == wanted


async def test_levels_where_clang_differs_from_lld_are_left_to_lld(site: Site) -> None:
    for level in (OptLevel.O0, OptLevel.O1):
        modules = pre_linked(site.root / "in", SMALL)
        item = site.item(modules, options=CodegenOptions(opt_level=level))
        _, *expected = await site.reference(item, f"--lto-O{level.value}")
        compiles = (await site.linked(item)).compiles
        assert not compiles[0].link.by_clang
        wanted = {module.module: content for module, content in zip(modules, expected, strict=True)}
        assert await site.objects([compiles]) == wanted
        assert await site.objects([[one] for one in compiles]) == wanted


GIVERS = {
    f"giver/{number}": f"""
    void outside{number}(void); void *give{(number + 1) % COUNT}(void); void *give{(number + 2) % COUNT}(void);
    void *give{number}(void) {{ return outside{number}; }}
    int test{number}(void *p) {{
      return (p == give{(number + 1) % COUNT}()) + 2 * (p == give{(number + 2) % COUNT}());
    }}
    """
    for number in range(COUNT)
}


async def test_the_order_of_imports_is_that_of_the_names_that_linkers_know(site: Site) -> None:
    modules = pre_linked(site.root / "in", GIVERS, *PIC)
    # lld sees other paths than we do, in another order.
    renamed = []
    for number, module in enumerate(modules):
        path = site.root / "in" / f"{'zyxw'[number]}.bc"
        module.bitcode.rename(path)
        renamed.append(evolve(module, bitcode=path, origin=str(path)))
    item = site.item(renamed)
    _, *expected = await site.reference(item)
    compiles = (await site.linked(item)).compiles
    wanted = {module.module: content for module, content in zip(renamed, expected, strict=True)}
    assert await site.objects([[one] for one in compiles]) == wanted
    assert await site.objects([compiles]) == wanted
    # Without such names it shows, so this tests something.
    nameless = [evolve(module, origin="") for module in renamed]
    compiles = (await site.linked(site.item(nameless))).compiles
    assert await site.objects([compiles]) != wanted


@needs_cc
async def test_members_that_nobody_needs_are_left_out_and_native_code_is_heard(site: Site) -> None:
    sources = {
        "main": "int z(int); int y(int); int native(int); int main(int c) { return z(c) + y(c) + native(c); }",
        "q": "int q(int x) { return x - 2; }",
        "unneeded": "int unneeded(int x) { return x; }",
        "y": "int y(int x) { return x * 5; } int internal(int x) { return y(x); }",
        "called": "int called_from_native(int x) { return x + 100; }",
        "z": "int q(int); int z(int x) { return q(x) * 3; }",
    }
    modules = [evolve(module, lazy=module.module != "main") for module in pre_linked(site.root / "in", sources, *PIE)]
    native = site.root / "native.o"
    text = "int called_from_native(int); int native(int x) { return called_from_native(x); }"
    argv = [zig(), "clang", "-cc1", "-triple", TRIPLE, *PIE, "-emit-obj", "-x", "c", "-", "-o", str(native)]
    await trio.run_process(argv, stdin=text.encode())
    item = site.item([*modules, LinkFile("native", native)], LinkKind.EXECUTABLE)
    _, *expected = await site.reference(item)
    linked = await site.linked(item)
    assert linked.unneeded == ("unneeded",)
    assert {one.name for one in linked.compiles} == sources.keys() - {"unneeded"}
    # In this order lld meets what it needs.
    wanted = dict(zip(["main", "y", "z", "q", "called"], expected, strict=True))
    assert await site.objects([linked.compiles]) == wanted
    always_clang(linked.compiles)
    assert await site.objects([linked.compiles[2:], linked.compiles[:2]]) == wanted
    assert b"called_from_native" in wanted["called"]
    assert b"internal" not in wanted["y"]
    # Nothing is linked to the end here, so there is no telling what is needed.
    local = await site.linked(site.item(modules))
    assert local.unneeded == ()
    assert len(local.compiles) == len(modules)


SHAPES = {
    "base": """
    struct Shape { virtual int area(int) const; virtual int sides() const { return 0; } };
    struct Square : Shape { int side; int area(int) const override; int sides() const override { return 4; } };
    int Shape::area(int x) const { return x; } int Square::area(int x) const { return side * x; }
    Shape *make() { static Square square; return &square; }
    """,
    "main": """
    struct Shape { virtual int area(int) const; virtual int sides() const { return 0; } };
    Shape *make(); template <class T> T clamp(T x) { static int calls; calls++; return x > 9 ? 9 : x + calls; }
    int main(int argc, char **) { return clamp(make()->area(argc)) + make()->sides(); }
    """,
}


@needs_cc
async def test_regular_halves_of_split_units_are_compiled_by_the_thin_link(site: Site) -> None:
    flags = (
        "-fsplit-lto-unit",
        "-fwhole-program-vtables",
        "-fvisibility=hidden",
        "-fno-rtti",
        "-fno-threadsafe-statics",
    )
    modules = pre_linked(site.root / "in", SHAPES, *PIE, *flags, language="c++")
    assert read_header(modules[0].bitcode.read_bytes()).module_count == 2
    item = site.item(modules, LinkKind.EXECUTABLE)
    regular, *expected = await site.reference(item)
    linked = await site.linked(item)
    assert linked.regular is not None
    assert linked.regular.module == REGULAR_PART
    assert linked.regular.artifacts[0].path.read_bytes() == regular
    wanted = {module.module: content for module, content in zip(modules, expected, strict=True)}
    assert await site.objects([[one] for one in linked.compiles]) == wanted
    always_lld(linked.compiles)
    assert await site.objects([linked.compiles]) == wanted


async def test_every_kind_of_output_and_the_passes(site: Site) -> None:
    modules = pre_linked(site.root / "in", PROGRAM, *PIC)
    item = site.item(modules)
    plain = await site.objects([(await site.linked(item)).compiles])
    kinds = {EmitKind.OBJECT, EmitKind.ASSEMBLY, EmitKind.BITCODE, EmitKind.IR}
    for lld in (False, True):
        options = CodegenOptions(emit=frozenset(kinds), print_passes=True)
        compiles = (await site.linked(site.item(modules, options=options))).compiles
        if lld:
            always_lld(compiles)
        for result in await site.compile(compiles):
            assert isinstance(result, Finished)
            found = {artifact.kind: artifact.path.read_bytes() for artifact in result.artifacts}
            assert found.keys() == kinds
            assert found[EmitKind.OBJECT] == plain[result.module]
            assert found[EmitKind.BITCODE].startswith(b"BC\xc0\xde")
            assert b"target triple" in found[EmitKind.IR]
            assert b".file" in found[EmitKind.ASSEMBLY]
            assert any(line.startswith("Running pass: ") for line in result.passes)
            assert any(line.startswith("Running codegen pass: ") for line in result.passes)


async def test_what_is_gone_or_another_modules_is_a_failure(site: Site) -> None:
    modules = pre_linked(site.root / "in", PROGRAM, *PIC)
    compiles = {one.name: one for one in (await site.linked(site.item(modules))).compiles}
    importer = compiles["zmain"]
    assert "state" in imports_of(importer)
    (swapped,) = await site.compile([evolve(importer, shard=compiles["state"].shard)])
    assert isinstance(swapped, Failed)
    assert "another module's" in swapped.diagnostics[0].message
    damaged = site.root / "damaged.bc"
    damaged.write_bytes(importer.shard.read_bytes()[:-40])
    (cut,) = await site.compile([evolve(importer, shard=damaged)])
    assert isinstance(cut, Failed)
    state = compiles["state"].bitcode
    whole = state.read_bytes()
    for content in (None, b"", b"garbage", whole[: len(whole) // 2], b"BC\xc0\xde" + whole[8:][::-1]):
        state.unlink(missing_ok=True)
        if content is not None:
            state.write_bytes(content)
        always_lld(list(compiles.values()))
        results = await site.compile([importer, compiles["another"]])
        assert isinstance(results[0], Failed), content
        assert isinstance(results[1], Failed), (
            content
        )  # lld needs all of them, and has said nothing that clang knows of
        importer.link.by_clang = True
        for one in (importer, compiles["state"]):
            (result,) = await site.compile([one])
            assert isinstance(result, Failed), content
            assert result.diagnostics[-1].severity is Severity.ERROR
            assert "state" in f"{result.module} {result.diagnostics}", content
        untouched = [one for one in compiles.values() if "state" not in (one.name, *imports_of(one))]
        assert untouched
        # A batch that lld cannot do is not their fault.
        *fine, last = await site.compile([*untouched, importer])
        assert all(isinstance(result, Finished) for result in fine)
        assert isinstance(last, Failed)
    assert list((site.root / "build0" / "out").rglob("zmain*")) == []


async def test_one_that_aborts_harms_no_other_and_can_be_reproduced(site: Site) -> None:
    modules = pre_linked(site.root / "in", SMALL)
    path = site.root / "in" / "abort.bc"
    argv = [zig(), "clang", "-cc1", "-triple", TRIPLE, "-O2", "-flto=thin", "-flto-unit", "-emit-llvm-bc"]
    await trio.run_process([*argv, "-x", "ir", "-", "-o", str(path)], stdin=ABORTING_IR.encode())
    modules.append(NeedsThinLto("odd/abort", path, 100, False, str(path), Engine.TOOLCHAIN, 0.0, 0))
    for force in (always_clang, always_lld):
        item = site.item(modules)
        compiles = (await site.linked(item)).compiles
        force(compiles)
        *good, bad = await site.compile(compiles)
        assert all(isinstance(result, Finished) for result in good)
        assert isinstance(bad, Failed)
        (diagnostic,) = bad.diagnostics
        assert "Cannot select" in diagnostic.message
        assert diagnostic.reproducer is not None
        shutil.rmtree(item.directory)
        script = ["sh", str(diagnostic.reproducer / "repro.sh")]
        again = await trio.run_process(script, capture_stderr=True, check=False)
        assert again.returncode != 0
        assert b"Cannot select" in again.stderr


@needs_cc
@pytest.mark.parametrize("kind", [LinkKind.EXECUTABLE, LinkKind.SHARED, "static program"])
async def test_what_is_local_is_resolved_as_in_the_link_and_hides_nothing(site: Site, kind: LinkKind | str) -> None:
    twice = "int g; int same(int x) { return x + %d; } int only%d(void) { return g; }"
    hidden = 'static int s; __attribute__((visibility("hidden"))) int hidden(int x) { return s += x; }'
    sources = {
        "main": "int same(int), user(int); int main(int c, char **v) { return same(c) + user(c); } int unused;",
        "lib/user": "int hidden(int); int user(int x) { return hidden(x); } int nobody(int x) { return x; }" + hidden,
        "liba/same": twice % (1, 1),
        "libb/same": twice % (2, 2),
    }
    first, *members = pre_linked(site.root / "in", sources, *PIC)
    modules = [first, *(evolve(one, lazy=True) for one in members)]
    item = evolve(site.item(modules, kind if isinstance(kind, LinkKind) else LinkKind.EXECUTABLE), local=True)
    assert item.link is not None
    if not isinstance(kind, LinkKind):
        item = evolve(item, link=evolve(item.link, arguments=("-static", *item.link.arguments)))
    off = ("enable-lto-internalization", "compute-dead", "propagate-attrs")
    _, *expected = await site.reference(item, *(f"--mllvm=-{option}=false" for option in off))
    linked = await site.linked(item)
    assert linked.unneeded == ("libb/same",)
    for force in (always_lld, always_clang):
        force(linked.compiles)
        linked.compiles[0].link.by_clang = force is always_clang
        objects = await site.objects([linked.compiles])
        assert list(objects.values()) == expected
        for name, symbol in {"main": "unused", "lib/user": "nobody", "liba/same": "only1"}.items():
            assert f"{symbol}\0".encode() in objects[name]
        assert b"hidden\0" in objects["lib/user"]


async def test_behind_a_failure_nothing_is_compiled_unless_told_so(site: Site) -> None:
    modules = pre_linked(site.root / "in", SMALL)
    for by_clang in (True, False):
        item = site.item(modules)
        compiles = (await site.linked(item)).compiles
        compiles[0].link.by_clang = by_clang
        artifact_path(item.out_dir, compiles[1].name, EmitKind.OBJECT).mkdir(parents=True)
        with trio.fail_after(60):
            results = await site.engine.thin_compile(compiles, keep_going=False)
        assert [type(result) for result in results] == [Finished, Failed]
        written = {path for path in item.out_dir.rglob("*") if path.is_file()}
        assert written == {artifact_path(item.out_dir, compiles[0].name, EmitKind.OBJECT)}


@needs_cc
async def test_a_thin_link_that_crashes_can_be_reproduced(site: Site) -> None:
    modules = pre_linked(site.root / "in", SMALL, *PIC)
    path = site.root / "in" / "abort.bc"
    argv = [zig(), "clang", "-cc1", "-triple", TRIPLE, "-O2", "-flto=full", "-emit-llvm-bc"]
    await trio.run_process([*argv, "-x", "ir", "-", "-o", str(path)], stdin=ABORTING_IR.encode())
    # The thin link compiles it itself.
    modules.append(NeedsThinLto("odd/abort", path, 100, False, str(path), Engine.TOOLCHAIN, 0.0, 0))
    native = site.root / "native.o"
    await trio.run_process([zig(), "clang", "-cc1", "-triple", TRIPLE, "-emit-obj", "-xc", "-", "-o", str(native)])
    item = site.item([*modules, LinkFile("native", native)], LinkKind.SHARED, exports=("walk0", "f"))
    with trio.fail_after(60):
        result = await site.engine.thin_link(item)
    assert isinstance(result, Failed)
    assert result.step is Step.THIN_LINK
    (diagnostic,) = result.diagnostics
    assert "Cannot select" in diagnostic.message
    assert diagnostic.reproducer is not None
    shutil.rmtree(item.directory)
    for file in site.scratch.glob("exports-*"):
        file.unlink()
    script = ["sh", str(diagnostic.reproducer / "repro.sh")]
    again = await trio.run_process(script, capture_stderr=True, check=False)
    assert again.returncode != 0
    assert b"Cannot select" in again.stderr
    assert str(site.scratch).encode() not in (diagnostic.reproducer / "repro.sh").read_bytes()


async def test_limits_hold_for_each_module(site: Site) -> None:
    modules = pre_linked(site.root / "in", SMALL)
    item = site.item(modules, options=CodegenOptions(time_limit=0.0001))
    compiles = (await site.linked(item)).compiles
    for result in await site.compile(compiles[:2]):
        assert isinstance(result, Failed)
        assert "time limit" in result.diagnostics[0].message
        assert result.diagnostics[0].reproducer is not None
    item = site.item(modules)
    compiles = (await site.linked(item)).compiles
    compiles[0].link.item = evolve(item, options=CodegenOptions(memory_limit=150 * 2**20))
    for force in (always_clang, always_lld):
        force(compiles)
        for result in await site.compile(compiles[:2]):
            assert isinstance(result, Failed)
    assert list(item.out_dir.rglob("*")) == []


async def test_a_link_that_cannot_be_is_told_in_terms_of_modules(site: Site) -> None:
    twice = {"one": "int same(void) { return 1; }", "two": "int same(void) { return 2; }"}
    modules = pre_linked(site.root / "in", twice)
    with trio.fail_after(60):
        result = await site.engine.thin_link(site.item(modules))
    assert isinstance(result, Failed)
    assert result.step is Step.THIN_LINK
    (diagnostic,) = result.diagnostics
    assert "duplicate symbol: same" in diagnostic.message
    assert ">>> defined in one" in diagnostic.message
    assert str(site.root) not in diagnostic.message
    modules[0].bitcode.unlink()
    gone = await site.engine.thin_link(site.item(modules))
    assert isinstance(gone, Failed)
    assert "the bitcode of one is gone" in gone.diagnostics[0].message
    modules[1].bitcode.write_bytes(b"BC\xc0\xdegarbage")
    damaged = await site.engine.thin_link(site.item(modules[1:]))
    assert isinstance(damaged, Failed)
    assert "two" in damaged.diagnostics[0].message


@needs_cc
async def test_bitcode_among_the_libraries_is_refused_and_nothing_is_written_beside_it(site: Site) -> None:
    modules = pre_linked(site.root / "in", {"main": "int lib(int); int main(int c) { return lib(c); }"}, *PIE)
    theirs = site.root / "theirs"
    for flags in ((), ("-flto=full",)):
        (library,) = pre_linked(theirs, {"lib": "int lib(int x) { return x; }"}, *PIE, *flags)
        item = site.item(modules, LinkKind.EXECUTABLE)
        assert item.link is not None
        item = evolve(item, link=evolve(item.link, inputs=(library.bitcode,)))
        with trio.fail_after(60):
            result = await site.engine.thin_link(item)
        assert isinstance(result, Failed)
        assert f"{library.bitcode} is bitcode that an argument" in result.diagnostics[0].message
        assert list(theirs.iterdir()) == [library.bitcode]


async def test_modules_without_a_summary_become_the_regular_part(site: Site) -> None:
    modules = pre_linked(site.root / "in", SMALL)
    (whole,) = pre_linked(
        site.root / "whole", {"whole": "int walk0(int); int w(int x) { return walk0(x); }"}, "-flto=full"
    )
    item = site.item([*modules, whole])
    regular, *expected = await site.reference(item)
    linked = await site.linked(item)
    assert linked.regular is not None
    assert linked.regular.artifacts[0].path.read_bytes() == regular
    assert {one.name for one in linked.compiles} == SMALL.keys()
    assert list((await site.objects([linked.compiles])).values()) == expected


async def test_an_output_that_cannot_be_placed_is_a_failure(site: Site) -> None:
    modules = pre_linked(site.root / "in", SMALL)
    item = site.item(modules)
    compiles = (await site.linked(item)).compiles
    item.out_dir.write_text("in the way")
    for batch in (compiles, compiles[:1]):
        for result in await site.compile(batch):
            assert isinstance(result, Failed)
            assert "cannot write" in result.diagnostics[0].message


async def test_cancelling_leaves_nothing_behind(site: Site) -> None:
    modules = pre_linked(site.root / "in", PROGRAM, *PIC)
    item = site.item(modules)
    compiles = (await site.linked(item)).compiles
    for seconds in (0.0, 0.005, 0.03):
        with trio.move_on_after(seconds):
            await site.engine.thin_link(site.item(modules))
        for force in (always_lld, always_clang):
            force(compiles)
            compiles[0].link.by_clang = force is always_clang
            with trio.move_on_after(seconds):
                await site.engine.thin_compile(compiles)


async def test_estimates_follow_code_and_imports(site: Site) -> None:
    tables = "int table[20000] = {1}; int big[50000] = {2};"
    modules = pre_linked(site.root / "in", {"tables": tables, "code": PROGRAM["state"], **SMALL})
    item = site.item(modules)
    link = site.engine.thin_estimate(item)
    assert link.seconds > 0
    assert link.peak_rss_bytes > 2**20
    estimates = {one.name: one.estimate for one in (await site.linked(item)).compiles}
    assert estimates["tables"].seconds < estimates["code"].seconds < 1.0
    assert len({estimate.batch for estimate in estimates.values()} - {None}) == 1
