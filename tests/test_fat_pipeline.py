"""Layer: pure. LLVM's LTO pipeline, cut in two; and what lld is told in a fat link."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.llvm.fat_options import lto_options, own_options, partition_count, relocation_options
from workers.llvm.fat_pipeline import cut, is_ordinary, printed_pipeline
from workers.llvm.lld_line import LldLine
from workers.work import CodegenOptions, LinkKind, LinkOptions, OptLevel, RelocationModel

pytestmark = pytest.mark.pure

_PIPELINE = (
    "inferattrs,cgscc(inline<only-mandatory>,inline),globaldce<vfe-linkage-unit-visibility>,require<globals-aa>,"
    "function<eager-inv>(loop-mssa(licm<allowspeculation>),gvn<>,dse,loop(indvars,loop-deletion),loop-vectorize<a;b>,"
    "loop-unroll<O2>),lowertypetests,lowertypetests,function(simplifycfg<x;y>),elim-avail-extern,cg-profile"
)


def test_the_pipeline_is_cut_before_what_works_on_one_function() -> None:
    halves = cut(f"verify,{_PIPELINE},verify")
    assert halves is not None
    assert halves.whole == (
        "inferattrs,cgscc(inline<only-mandatory>,inline),globaldce<vfe-linkage-unit-visibility>,require<globals-aa>,"
        "function<eager-inv>(loop-mssa(licm<allowspeculation>),gvn<>,dse),lowertypetests"
    )
    assert halves.part == (
        "function<eager-inv>(loop(indvars,loop-deletion),loop-vectorize<a;b>,loop-unroll<O2>),"
        "function(simplifycfg<x;y>),elim-avail-extern,cg-profile"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "verify",
        _PIPELINE.replace("gvn<>", "newer-gvn"),
        _PIPELINE.replace("loop(indvars", "loop(loop-deletion"),
        f"{_PIPELINE},function(loop(indvars))",
        f"{_PIPELINE},cgscc(inline)",
        f"{_PIPELINE},globalopt",
        _PIPELINE.replace("function<eager-inv>(loop-mssa", "cgscc(loop-mssa"),
        _PIPELINE.replace("loop-mssa(licm<allowspeculation>),gvn<>,dse,", ""),
        f"{_PIPELINE[:200]}",
        "function(((",
        ")))",
    ],
)
def test_a_pipeline_that_is_not_known_stays_whole(text: str) -> None:
    assert cut(text) is None


def test_the_pipeline_is_found_in_what_lld_says() -> None:
    assert printed_pipeline(b"ld.lld: warning: x\npipeline-passes: a,b(c)\nmore\n") == "a,b(c)"
    assert printed_pipeline(b"nothing of the kind\n") is None


@pytest.mark.parametrize("sign", [b"llvm.type.test", b"llvm.public.type.test", b"llvm.coro.begin", b"ProfileSummary"])
def test_modules_that_need_llvms_own_pipeline(sign: bytes) -> None:
    assert is_ordinary(b"BC\xc0\xde main llvm.memcpy")
    assert not is_ordinary(b"BC\xc0\xde main" + sign + b"llvm.memcpy")


def test_the_number_of_parts_grows_with_the_program_and_with_nothing_else() -> None:
    counts = [partition_count(size) for size in (0, 1, 10_000, 1_000_000, 10_000_000, 10**12)]
    assert counts == sorted(counts)
    assert counts[:3] == [1, 1, 1]
    assert 4 <= counts[3] <= 8
    assert counts[-1] == counts[-2] <= 64


def _line(*words: str) -> LldLine:
    return LldLine(Path("/"), {}, ("ld.lld", *words), ("-lm",))


def test_options_for_both_steps() -> None:
    options = CodegenOptions(
        opt_level=OptLevel.SIZE, target_cpu="haswell", target_features=("+a", "-b"), vectorize_slp=False
    )
    told = lto_options(options)
    assert {"--lto-O2", "--plugin-opt=mcpu=haswell", "--mllvm=-mattr=+a,-b", "--mllvm=-vectorize-slp=false"} <= {*told}
    assert not any("slp" in word or "mcpu" in word for word in lto_options(CodegenOptions()))


def test_what_a_links_own_arguments_say_about_code_is_for_the_parts_too() -> None:
    line = _line("-mllvm", "-x=3", "--lto-CGO3", "-plugin-opt=mcpu=a", "--gc-sections", "--lto-O3", "--mllvm=-y")
    assert own_options(line) == ("-mllvm", "-x=3", "--lto-CGO3", "-plugin-opt=mcpu=a", "--mllvm=-y")


@pytest.mark.parametrize(
    ("words", "kind", "model", "expected"),
    [
        (("-pie",), LinkKind.EXECUTABLE, None, "pic"),
        (("--no-pie",), LinkKind.EXECUTABLE, None, "static"),
        (("-pie", "-no-pie"), LinkKind.EXECUTABLE, RelocationModel.PIC, "static"),
        (("-shared",), LinkKind.SHARED, None, "pic"),
        (("-r",), None, None, None),
        (("-r",), None, RelocationModel.STATIC, "static"),
        (("-shared",), LinkKind.STATIC, None, None),
    ],
)
def test_the_relocation_model_follows_the_link(
    words: tuple[str, ...], kind: LinkKind | None, model: RelocationModel | None, expected: str | None
) -> None:
    link = None if kind is None else LinkOptions(kind, Path("x"))
    found = relocation_options(CodegenOptions(relocation_model=model), link, _line(*words))
    assert found == (() if expected is None else (f"--mllvm=-relocation-model={expected}",))
