"""Layer: pure. What lld's words are about."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.llvm.link_words import INPUT, code_words, divided, expanded, is_plain_llvm_option, is_verbose, link_words
from workers.llvm.lld_options import Effect, Word, parsed

pytestmark = pytest.mark.pure


def no_file(path: Path) -> bool:
    return False


@pytest.mark.parametrize(
    ("words", "read"),
    [
        (["-lfoo", "-l", "foo"], [Word(Effect.LINK, "-l", "foo")] * 2),
        (["--lto-O3"], [Word(Effect.CODE, "--lto-O", "3")]),
        (["-lto-O3"], [Word(Effect.LINK, "-l", "to-O3")]),
        (["-omagic"], [Word(Effect.NOTHING, "-o", "magic")]),
        (["--omagic"], [Word(Effect.LINK, "--omagic")]),
        (["-mllvm", "-x=1"], [Word(Effect.LLVM, "-mllvm", "-x=1")]),
        (["--mllvm=-x=1"], [Word(Effect.LLVM, "--mllvm", "-x=1")]),
        (["-melf_x86_64"], [Word(Effect.CODE, "-m", "elf_x86_64")]),
        (["-plugin-opt=-x"], [Word(Effect.LLVM, "-plugin-opt=-", "x")]),
        (["-plugin-opt=mcpu=k8"], [Word(Effect.CODE, "-plugin-opt=mcpu", "k8")]),
        (["-plugin-opt=O3"], [Word(Effect.CODE, "-plugin-opt=O", "3")]),
        (["-plugin-opt=/usr/lib/lto-wrapper"], [Word(Effect.NOTHING, "-plugin-opt", "/usr/lib/lto-wrapper")]),
        (["-e", "--shared"], [Word(Effect.LINK, "-e", "--shared")]),
        (["--entry", "-r", "-r"], [Word(Effect.LINK, "--entry", "-r"), Word(Effect.CODE, "-r")]),
        (["-error-limit=0"], [Word(Effect.LINK, "-e", "rror-limit=0")]),
        (["-(", "a.o", "-)"], [Word(Effect.LINK, "-("), Word(Effect.FILE, "", "a.o"), Word(Effect.LINK, "-)")]),
        (["--never-heard-of", "@file"], [Word(Effect.UNKNOWN, "--never-heard-of"), Word(Effect.UNKNOWN, "", "@file")]),
        (["-L"], [Word(Effect.LINK_PLACE, "-L", "")]),
        (
            ["--why-extract=x", "-why-extract=x"],
            [Word(Effect.REPORT, "--why-extract", "x"), Word(Effect.UNKNOWN, "-why-extract=x")],
        ),
    ],
)
def test_words_are_read_as_lld_reads_them(words: list[str], read: list[Word]) -> None:
    assert list(parsed(words)) == read


def test_code_depends_on_what_lto_is_told() -> None:
    words = ["-pie", "-lc", "--lto-O3", "-mllvm", "-inline-threshold=5", "-z", "now", "--plugin-opt=-unroll=0", "x.o"]
    assert code_words(words).words == ("-pie", "--lto-O=3", "-mllvm -inline-threshold=5", "-mllvm -unroll=0")
    assert code_words(reversed(["-mllvm=-a", "-mllvm=-b"])).words == ("-mllvm -b", "-mllvm -a")


def test_code_depends_on_files() -> None:
    found = code_words(["--lto-sample-profile=a.prof", "--load-pass-plugin", "p.so", "--lto-basic-block-sections=all"])
    assert found.files == ("a.prof", "p.so")
    assert found.words == ("--lto-sample-profile", "--load-pass-plugin", "--lto-basic-block-sections=all")


@pytest.mark.parametrize(
    "words",
    [
        ["--never-heard-of"],
        ["@words"],
        ["-plugin-opt=mcpu=native"],
        ["-mllvm", "-mcpu=native"],
        ["-mllvm", "-stats"],
        ["-plugin-opt=-time-passes"],
        ["--save-temps"],
        ["--opt-remarks-filename", "out.yaml"],
        ["--time-trace"],
        ["--thinlto-emit-imports-files"],
    ],
)
def test_there_is_no_telling_what_some_words_do(words: list[str]) -> None:
    assert code_words(words).problem is not None
    assert link_words(words, Path("/x"), no_file).problem is not None


@pytest.mark.parametrize(
    "option",
    [
        "-inline-threshold=225",
        "-mattr=+avx2,-sse4.2",
        "-mcpu=x86-64-v3",
        "-code-model=large",
        "-relocation-model=pic",
        "-float-abi=hard",
        "-vectorize-loops=false",
        "-enable-lto-internalization=false",
        "--unroll-threshold-default=300",
        "-verify-machineinstrs",
    ],
)
def test_plain_options_of_llvm(option: str) -> None:
    assert is_plain_llvm_option(option)


@pytest.mark.parametrize(
    "option",
    [
        "",
        "value",
        "-stats",
        "-debug-only=inline",
        "-time-passes",
        "-print-after-all",
        "-pass-remarks-output=x",
        "-pass-remarks=inline",
        "-info-output-file=x",
        "-opt-bisect-limit=5",
        "-debug-counter=x=1",
        "-rng-seed=1",
        "-view-cfg",
        "-dot-callgraph",
        "-cgscc-inline-replay=replay",
        "-basic-block-sections=list",
        "-pgo-test-profile-file=p",
        "-thinlto-workload-def=jobs",
        "-load=x.so",
        "-mcpu=native",
        "-some-option=dir/file",
        "-some-option=file.txt",
        "-some-option=two words",
        "-summary-file=x",
        "-internalize-public-api-list=main",
    ],
)
def test_options_of_llvm_that_may_do_more(option: str) -> None:
    assert not is_plain_llvm_option(option)


def test_a_link_depends_on_all_but_the_shape_of_what_is_linked(tmp_path: Path) -> None:
    words = ["-o", "out", "-Map=m", "--build-id=sha1", "-rpath", "/x", "-O2", "--threads=4", "--color-diagnostics"]
    assert link_words([*words, "--dependency-file=d"], tmp_path, no_file).words == ()
    kept = ["-u", "f", "--gc-sections", "-z", "now", "-lc", "--as-needed", "--wrap=malloc", "-shared"]
    assert link_words(kept, tmp_path, no_file).words == (
        "-u=f",
        "--gc-sections",
        "-z=now",
        "-l=c",
        "--as-needed",
        "--wrap=malloc",
        "-shared",
    )


def test_the_last_link_depends_on_what_shows(tmp_path: Path) -> None:
    words = [
        "-o",
        "out",
        "--build-id=sha1",
        "-rpath",
        "/x",
        "-O2",
        "--threads=4",
        "--no-demangle",
        "-lc",
        "--gdb-index",
    ]
    assert link_words(words, tmp_path, no_file, final=True).words == (
        "--build-id=sha1",
        "-rpath=/x",
        "-O=2",
        "--no-demangle",
        "-l=c",
        "--gdb-index",
    )


@pytest.mark.parametrize(
    "words",
    [
        ["-Map=m"],
        ["--Map", "m"],
        ["--cref"],
        ["-t"],
        ["-ymain"],
        ["--trace-symbol=main"],
        ["--print-gc-sections"],
        ["--why-extract=w"],
        ["--why-live=main"],
        ["--out-implib=i"],
        ["--dependency-file=d"],
        ["--print-archive-stats=-"],
        ["--print-memory-usage"],
        ["--verbose"],
        ["-v"],
        ["--time-trace=t"],
        ["--save-temps"],
        ["--never-heard-of"],
    ],
)
def test_the_last_link_may_be_asked_for_more(words: list[str], tmp_path: Path) -> None:
    problem = link_words(words, tmp_path, no_file, final=True).problem
    assert problem is not None
    assert words[0].partition("=")[0][:2] in problem


def test_lld_may_be_told_to_say_more() -> None:
    assert is_verbose(["-shared", "-verbose"])
    assert is_verbose(["--verbose"])
    assert not is_verbose(["-o", "--verbose", "-v", "--verbose-bp-section-orderer"])


def test_paths_do_not_tell_where_a_checkout_is(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        here = tmp_path / name
        (here / "lib").mkdir(parents=True)
        for file in ("a.o", "x.map"):
            (here / file).write_bytes(b"")
        words = [str(here / "a.o"), "-L", str(here / "lib"), f"--version-script={here / 'x.map'}", "-L/usr/lib", "b.o"]
        found.append(link_words(words, here, Path.is_file))
    one, two = found
    assert one.words == two.words == (INPUT, "-L=./lib", "--version-script", "-L=/usr/lib", "b.o")
    assert [name for name, _ in one.files] == ["a.o", "--version-script"]
    assert one.files[0][1] == str(tmp_path / "one" / "a.o")
    assert two.directories == (str(tmp_path / "two" / "lib"), "/usr/lib")


def test_directories_below_the_system_root() -> None:
    found = link_words(["-L=/lib", "--sysroot=/sdk", "-L", "rel"], Path("/w"), no_file)
    assert found.directories == ("/sdk/lib", "rel")


def test_response_files(tmp_path: Path) -> None:
    (tmp_path / "one").write_text('a "b c" \'d "e\' f\\ g\n@two "" "h\\"i" \'j\\\'k\'\t@gone @one')
    (tmp_path / "two").write_text("x\n")
    found = expanded(["-s", "@one", "@none"], tmp_path)
    assert found == ("-s", "a", "b c", 'd "e', "f g", "x", "", 'h"i', "j'k", "@gone", "@one", "@none")


def test_words_for_people() -> None:
    assert divided("-mllvm -inline-threshold=5") == ("-mllvm -inline-threshold=", "5")
    assert divided("-pie") == ("-pie", "")
    assert divided("--wrap=a=b") == ("--wrap=", "a=b")
