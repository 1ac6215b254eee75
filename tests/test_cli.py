"""Layer: end-to-end. `ltod build` as a user runs it: real builds, bad input, wrong requests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.command import (
    LTOD,
    alive,
    checked,
    files,
    function,
    jobserver,
    ltod,
    ltod_json,
    sleepers,
    sleeping_toolchain,
    write,
)
from tests.samples import ABORTING_IR, GOOD_IR, LAYOUT, UNPARSABLE_IR, compile_c, small_c, zig

pytestmark = pytest.mark.e2e


# Builds that succeed


def test_objects_of_many_modules_and_everything_the_object_says_of_them(place: Path) -> None:
    inputs = compile_c({f"m{n}": small_c(n, 5) for n in range(5)}, place / "bc")
    answer = ltod_json("-O2", "--out-dir", "out", *inputs)
    names = [f"m{n}" for n in range(5)]
    assert [artifact["module"] for artifact in answer["artifacts"]] == names
    assert [item["module"] for item in answer["items"]] == names
    assert {artifact["kind"] for artifact in answer["artifacts"]} == {"obj"}
    assert {(item["stage"], item["cache"], item["ok"]) for item in answer["items"]} == {("codegen", "miss", True)}
    assert {item["reason"] for item in answer["items"]} == {"not built before"}
    assert {item["engine"] for item in answer["items"]} <= {"toolchain", "llvmlite"}
    assert all(item["peak_rss_bytes"] > 0 for item in answer["items"])
    assert answer["skipped"] == []
    assert answer["output"] is None
    assert files("out") == {f"{name}.o" for name in names}
    assert list((place / "tmp").iterdir()) == []
    again = ltod_json("-O2", "--out-dir", "out", *inputs)
    assert {(item["cache"], item["reason"]) for item in again["items"]} == {
        ("hit", "nothing it is made of has changed")
    }
    assert again["artifacts"] == answer["artifacts"]


def test_a_program_is_linked_and_runs(place: Path) -> None:
    # The program is called like one of its modules, as programs often are.
    sources = {
        "main": "int twice(int); int main(void) { return twice(21); }",
        "lib": "int twice(int x) { return 2 * x; }",
    }
    inputs = compile_c(sources, place / "bc")
    answer = ltod_json("--link", "exe", "-o", "bin/main", "--out-dir", "out", *inputs)
    assert subprocess.run(["bin/main"]).returncode == 42
    assert answer["output"] == {
        "kind": "exe",
        "path": str(place / "bin/main"),
        "bytes": Path("bin/main").stat().st_size,
    }
    assert sorted((item["module"], item["stage"]) for item in answer["items"]) == [
        ("lib", "codegen"),
        ("main", "codegen"),
        ("main", "link"),
    ]
    assert sorted(artifact["module"] for artifact in answer["artifacts"]) == ["lib", "main"]


def test_native_objects_go_to_the_linker_only(place: Path) -> None:
    [module] = compile_c({"main": "int twice(int); int main(void) { return twice(21); }"}, place / "bc")
    write("lib.ll", function("twice").replace("%x, 3", "%x, 2"))
    assert ltod("build", "lib.ll", "--out-dir", "native").returncode == 0
    assert ltod("build", module, "native/lib.o", "--link", "exe", "-o", "prog", "--out-dir", "out").returncode == 0
    assert subprocess.run(["./prog"]).returncode == 42
    assert files("out") == {"main.o"}
    alone = ltod("build", module, "native/lib.o", "--out-dir", "out")
    assert alone.returncode == 2
    assert "--link" in alone.stderr


@pytest.mark.parametrize(("kind", "suffix", "begin"), [
    ("obj", ".o", b"\x7fELF"),
    ("asm", ".s", b"\t"),
    ("bc", ".bc", b"BC\xc0\xde"),
    ("ir", ".ll", b"; ModuleID"),
])  # fmt: skip
def test_each_output_form(place: Path, kind: str, suffix: str, begin: bytes) -> None:
    write("good.ll", GOOD_IR)
    answer = ltod_json("--emit", kind, "--out-dir", "out", "good.ll")
    [artifact] = answer["artifacts"]
    assert artifact["kind"] == kind
    assert artifact["path"] == str(place / f"out/good{suffix}")
    assert Path(artifact["path"]).read_bytes().startswith(begin)


def test_all_output_forms_at_once(place: Path) -> None:
    write("good.ll", GOOD_IR)
    answer = ltod_json("--emit", "obj,asm", "--emit", "bc,ir", "--out-dir", "out", "good.ll")
    assert files("out") == {"good.o", "good.s", "good.bc", "good.ll"}
    assert {artifact["kind"] for artifact in answer["artifacts"]} == {"obj", "asm", "bc", "ir"}


@pytest.mark.parametrize("spelling", [["-O0"], ["-O", "1"], ["-O2"], ["-O3"], ["-Os"], ["-O", "z"]])
def test_each_optimisation_level(place: Path, spelling: list[str]) -> None:
    write("good.ll", GOOD_IR)
    assert ltod("build", *spelling, "--out-dir", "out", "good.ll").returncode == 0


def test_standard_input(place: Path) -> None:
    answer = ltod_json("-", "--out-dir", "out", stdin=GOOD_IR.encode())
    assert [item["module"] for item in answer["items"]] == ["stdin"]
    assert files("out") == {"stdin.o"}


def test_an_archive(place: Path) -> None:
    inputs = compile_c({"one": small_c(0, 2), "two": small_c(1, 2)}, place / "bc")
    subprocess.run([zig(), "ar", "rc", "libx.a", *inputs], check=True)
    answer = ltod_json("libx.a", "--out-dir", "out")
    assert [item["module"] for item in answer["items"]] == ["libx/one", "libx/two"]
    assert files("out") == {"libx/one.o", "libx/two.o"}


def test_equal_base_names_in_different_directories(place: Path) -> None:
    write("a/m.ll", function("f"))
    write("b/m.ll", function("g"))
    assert ltod("build", "a/m.ll", "b/m.ll", "--out-dir", "out").returncode == 0
    assert files("out") == {"a/m.o", "b/m.o"}


def test_paths_that_are_no_utf8(place: Path) -> None:
    path = os.fsencode(place) + b"/caf\xe9.ll"
    with open(path, "w") as file:  # noqa: PTH123
        file.write(GOOD_IR)
    answer = ltod_json(path, "--out-dir", b"o\xfft")
    assert os.fsencode(answer["items"][0]["module"]) == b"caf\xe9"
    assert os.fsencode(answer["artifacts"][0]["path"]).endswith(b"/o\xfft/caf\xe9.o")


def test_the_passes_that_ran(place: Path) -> None:
    write("good.ll", GOOD_IR)
    write("other.ll", function("other"))
    text = ltod("build", "--print-passes", "--out-dir", "out", "good.ll", "other.ll").stdout.splitlines()
    assert text
    assert all(re.match(r"(good|other): Running (codegen )?pass: \S+", line) for line in text)
    assert [line.partition(":")[0] for line in text] == sorted(line.partition(":")[0] for line in text)
    answer = ltod_json("--print-passes", "--out-dir", "out", "good.ll", "other.ll")
    assert [f"{item['module']}: {line}" for item in answer["items"] for line in item["passes"]] == text
    none = ltod_json("--print-passes", "--out-dir", "out", "--no-prepopulate-passes", "--passes", "sroa", "good.ll")
    passes = none["items"][0]["passes"]
    assert any("SROA" in line for line in passes)
    assert len(passes) < len(answer["items"][0]["passes"])


@pytest.mark.parametrize("engine", ["toolchain", "llvmlite"])
def test_the_engine_can_be_chosen(place: Path, engine: str) -> None:
    write("good.ll", GOOD_IR)
    answer = ltod_json("--engine", engine, "--out-dir", "out", "good.ll")
    assert [item["engine"] for item in answer["items"]] == [engine]


def test_a_jobserver_gets_its_tokens_back(place: Path) -> None:
    inputs = compile_c({f"m{n}": small_c(n, 6) for n in range(6)}, place / "bc")
    with jobserver(place, b"abc") as flags:
        answer = ltod_json("--engine", "toolchain", "--out-dir", "out", *inputs, env={**os.environ, **flags.environ})
        assert len(answer["items"]) == 6
        assert flags.tokens() == b"abc"


# Bad input: the build fails with exit code 1


def truncated(place: Path) -> bytes:
    [path] = compile_c({"x": small_c(0, 2)}, place / "made")
    return path.read_bytes()[:-100]


def newer(place: Path) -> bytes:
    """Bitcode that says it is from LLVM 99."""
    [path] = compile_c({"x": small_c(0, 2)}, place / "made")
    data = path.read_bytes()
    alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._"
    old, new = (sum(alphabet.index(char) << 6 * at for at, char in enumerate(text)) for text in ("LLVM22", "LLVM99"))
    head = int.from_bytes(data[:64], "little")
    [at] = [at for at in range(64 * 8 - 36) if head >> at & (1 << 36) - 1 == old]
    return (head ^ (old ^ new) << at).to_bytes(64, "little") + data[64:]


BAD = {
    "truncated": (truncated, "cut off"),
    "unparsable": (lambda _: UNPARSABLE_IR.encode(), "expected"),
    "newer": (newer, "LLVM 99"),
    "triple": (lambda _: function("f", triple="aarch64-unknown-linux-gnu", layout="").encode(), "triple"),
    "layout": (lambda _: function("f", layout=LAYOUT.replace("-S128", "-S64")).encode(), "data layout"),
    "source": (lambda _: b"int main(void) { return 0; }\n", "not LLVM bitcode"),
    "empty": (lambda _: b"", "empty"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_module_fails_the_build(place: Path, kind: str) -> None:
    make, message = BAD[kind]
    good = write("good.ll", GOOD_IR)
    bad = write("bad.bc", make(place))
    last = write("last.ll", function("last"))
    answer = ltod_json("--keep-going", "--out-dir", "out", good, bad, last, code=1)
    [error] = answer["diagnostics"]
    assert error["module"] in ("bad", "bad.bc")
    assert message in error["message"]
    assert files("out") == {"good.o", "last.o"}
    assert {artifact["module"] for artifact in answer["artifacts"]} == {"good", "last"}
    # The same for a human, and without --keep-going nothing that was finished is lost.
    text = ltod("build", "--out-dir", "out2", good, bad, last)
    assert text.returncode == 1
    assert re.search(r"^error: bad(\.bc)?: ", text.stderr, re.MULTILINE)
    assert text.stdout == ""
    assert files("out2") <= {"good.o", "last.o"}


@pytest.mark.parametrize("name", ["missing.bc", "directory"])
def test_a_file_that_cannot_be_read(place: Path, name: str) -> None:
    (place / "directory").mkdir()
    write("good.ll", GOOD_IR)
    answer = ltod_json("good.ll", name, "--out-dir", "out", code=1)
    assert [each["module"] for each in answer["diagnostics"]] == [name]
    assert answer["skipped"] == ["good"]
    assert files("out") == set()


def test_a_file_without_permission(place: Path) -> None:
    prefix: list[str] = []
    if os.geteuid() == 0:
        # Root without the privilege to read what it may not.
        prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--"]
        if not shutil.which("setpriv") or subprocess.run([*prefix, "true"], capture_output=True).returncode:
            pytest.skip("root may read everything here, and setpriv cannot change that")
    write("good.ll", GOOD_IR)
    write("secret.ll", GOOD_IR).chmod(0)
    command = [*prefix, *LTOD, "build", "--json", "--keep-going", "--out-dir", "out", "secret.ll", "good.ll"]
    process = subprocess.run(command, capture_output=True, timeout=60, text=True)
    assert process.returncode == 1, process.stderr
    [error] = checked(process.stdout)["diagnostics"]
    assert (error["module"], error["message"]) == ("secret.ll", "permission denied")
    assert files("out") == {"good.o"}


def test_a_directory_among_the_inputs_stops_no_other(place: Path) -> None:
    write("good.ll", GOOD_IR)
    Path("directory.bc").mkdir()
    answer = ltod_json("--keep-going", "--out-dir", "out", "directory.bc", "good.ll", code=1)
    assert [each["module"] for each in answer["diagnostics"]] == ["directory.bc"]
    assert files("out") == {"good.o"}


def test_members_without_bitcode_are_left_out(place: Path) -> None:
    [good] = compile_c({"good": small_c(0, 2)}, place / "bc")
    assert ltod("build", good, "--out-dir", "native").returncode == 0
    subprocess.run([zig(), "ar", "rc", "libx.a", good, "native/good.o"], check=True)
    answer = ltod_json("libx.a", "--out-dir", "out")
    [warning] = answer["diagnostics"]
    assert warning["message"].startswith("1 member without bitcode is left out")


def test_standard_input_beside_a_file_of_its_name(place: Path) -> None:
    write("a/stdin.ll", function("f"))
    answer = ltod_json("a/stdin.ll", "-", "--out-dir", "out", stdin=GOOD_IR.encode())
    assert [item["module"] for item in answer["items"]] == ["a/stdin", "stdin"]
    assert files("out") == {"a/stdin.o", "stdin.o"}


def test_an_archive_on_standard_input(place: Path) -> None:
    answer = ltod_json("-", stdin=b"!<arch>\n", code=1)
    assert answer["diagnostics"][0]["message"] == "is an archive and no single module: name its file as an input"


def test_an_abort_of_llvm_names_the_module_and_can_be_reproduced(place: Path) -> None:
    write("good.ll", GOOD_IR)
    write("crash.ll", ABORTING_IR)
    answer = ltod_json("--keep-going", "--out-dir", "out", "crash.ll", "good.ll", code=1)
    [error] = answer["diagnostics"]
    assert error["module"] == "crash"
    assert files("out") >= {"good.o"}
    [(failed, ok)] = [(item["module"], item["ok"]) for item in answer["items"] if not item["ok"]]
    assert (failed, ok) == ("crash", False)
    again = subprocess.run(["sh", f"{error['reproducer']}/repro.sh"], capture_output=True, timeout=60, cwd="/")
    assert again.returncode != 0
    assert b"Cannot select" in again.stdout + again.stderr


def test_the_way_to_reproduce_can_be_pasted(place: Path) -> None:
    write("crash.ll", ABORTING_IR)
    process = ltod("build", "--out-dir", "it's an out", "crash.ll")
    [command] = re.findall(r"reproduce with: (.*)", process.stderr)
    again = subprocess.run(["sh", "-c", command], capture_output=True, timeout=60)
    assert b"Cannot select" in again.stdout + again.stderr


def test_no_program_is_linked_without_all_of_its_modules(place: Path) -> None:
    [good] = compile_c({"main": "int main(void) { return 0; }"}, place / "bc")
    answer = ltod_json("--keep-going", "--link", "exe", "-o", "prog", "--out-dir", "out", good, "missing.bc", code=1)
    assert answer["output"] is None
    assert not Path("prog").exists()
    assert files("out") == {"main.o"}


def test_a_link_that_fails(place: Path) -> None:
    [module] = compile_c({"main": "int nowhere(void); int main(void) { return nowhere(); }"}, place / "bc")
    answer = ltod_json("--link", "exe", "-o", "main", "--out-dir", "out", module, code=1)
    assert "nowhere" in answer["diagnostics"][0]["message"]
    assert [(item["stage"], item["ok"]) for item in answer["items"]] == [("codegen", True), ("link", False)]
    assert not Path("main").exists()


def test_a_module_that_takes_too_long(place: Path) -> None:
    write("good.ll", GOOD_IR)
    sleeping_toolchain(place)
    answer = ltod_json(
        "--toolchain", "sleepy", "--engine", "toolchain", "--time-limit", "1", "good.ll", "--out-dir", "out", code=1
    )
    error, warning = answer["diagnostics"]
    assert (error["severity"], error["module"]) == ("error", "good")
    assert "time limit" in error["message"]
    # It is a script, of which there is no telling what it depends on.
    assert warning["message"].startswith("not cached")
    assert all(not alive(pid) for pid in sleepers(place))


# Wrong requests: exit code 2, and nothing is built


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "INPUT"),
        (["good.ll", "--frobnicate"], "--frobnicate"),
        (["good.ll", "-O4"], "0, 1, 2, 3, s, z"),
        (["good.ll", "--emit", "obj,elf"], "obj, asm, bc, ir"),
        (["good.ll", "--emit", ""], "obj, asm, bc, ir"),
        (["good.ll", "--link", "plugin", "-o", "x"], "exe, shared, static"),
        (["good.ll", "--link", "exe"], "-o FILE"),
        (["good.ll", "-o", "x"], "--link"),
        (["good.ll", "--link-arg", "-lm"], "--link"),
        (["good.ll", "--link", "exe", "-o", "x", "--emit", "asm"], "obj"),
        (["good.ll", "-j", "0"], "-j"),
        (["good.ll", "-j", "many"], "-j"),
        (["good.ll", "--memory-limit", "5Q"], "512M"),
        (["good.ll", "--memory-budget", "0"], "512M"),
        (["good.ll", "--time-limit", "nan"], "seconds"),
        (["good.ll", "--time-limit", "-1"], "seconds"),
        (["good.ll", "--target-features", "avx2"], "+avx2"),
        (["good.ll", "--relocation-model", "flying"], "ropi"),
        (["good.ll", "--code-model", "huge"], "medium"),
        (["good.ll", "--sanitize", "memory,taste"], "hwaddress"),
        (["good.ll", "--engine", "gcc"], "llvmlite"),
        (["good.ll", "--target", ""], "--target is empty"),
        (["good.ll", "--target-cpu", ""], "--target-cpu is empty"),
        (["good.ll", "--target-cpu", "nonesuch"], "nonesuch"),
        (["good.ll", "--passes", "no-such-pass"], "no-such-pass"),
        (["good.ll", "--profile-use", "missing.profdata"], "missing.profdata"),
        (["good.ll", "--toolchain", "empty"], "empty"),
        (["good.ll", "--out-dir", "good.ll/x"], "good.ll/x"),
        (["good.ll", "good.ll"], "twice"),
        (["good.ll", "./good.ll"], "twice"),
        (["good.ll", ""], "input"),
    ],
)
def test_a_wrong_request(place: Path, arguments: Sequence[str], message: str) -> None:
    write("good.ll", GOOD_IR)
    (place / "empty").mkdir()
    before = files(".")
    text = ltod("build", *arguments)
    assert text.returncode == 2
    assert message in text.stderr
    assert "Traceback" not in text.stderr
    assert text.stdout == ""
    answer = ltod_json(*arguments, code=2)
    assert len(answer["diagnostics"]) == 1
    assert answer["artifacts"] == answer["items"] == []
    assert files(".") == before


def test_a_current_directory_that_is_gone(place: Path) -> None:
    program = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    good = write("good.ll", GOOD_IR).absolute()
    out: list[str | Path] = ["--out-dir", place / "out"]
    cases: list[list[str | Path]] = [
        [good],
        [*out, "x.bc"],
        [*out, good, "--link", "exe", "-o", "x"],
        [*out, good, "--toolchain", "x"],
        [*out, good, "--reproducer-dir", "x"],
    ]
    assert subprocess.run(["sh", "-c", program, "sh", *LTOD, "build", good, *out], timeout=60).returncode == 0
    for arguments in cases:
        command = ["sh", "-c", program, "sh", *LTOD, "build", "--json", *arguments]
        process = subprocess.run(command, capture_output=True, timeout=60, text=True)
        assert process.returncode == 2, process.stderr
        assert "Traceback" not in process.stderr
        [error] = checked(process.stdout)["diagnostics"]
        assert "current directory has been removed" in error["message"]


def test_no_command_shows_the_help(place: Path) -> None:
    process = ltod()
    assert process.returncode == 2
    assert "build" in process.stderr
