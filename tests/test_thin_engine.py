"""ThinLTO gives lld's own objects, however the work is split. Layer: process."""

from __future__ import annotations

import os
import random

import pytest
import trio
from attrs import evolve

from tests.samples import TRIPLE, zig
from tests.thin_site import (
    COUNT,
    DEBUG,
    PIC,
    PIE,
    PROGRAM,
    SMALL,
    Site,
    always_clang,
    always_lld,
    imports_of,
    needs_cc,
    pre_linked,
)
from workers.llvm.bitcode import read_header
from workers.thin import REGULAR_PART
from workers.work import (
    CodegenOptions,
    EmitKind,
    Finished,
    LinkFile,
    LinkKind,
    OptLevel,
    RelocationModel,
)

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the programs of these tests are for x86-64"),
]


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
