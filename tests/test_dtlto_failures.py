"""Layer: process. ltod-dtlto fails where clang and lld do not: compilers that lie or die, files that are not what they
were, places that cannot be written to. What was done before is kept, and nothing else is.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, frozen

from tests.dtlto_lab import PROGRAM, SAID, Lab, Linked, planned
from tests.dtlto_site import dtlto_program
from tests.samples import zig

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the programs of these tests are for x86-64"),
]

_FILES = [f"in/{name}.o" for name in PROGRAM]
_OTHERS = len(_FILES) - 1

_ENDINGS = {
    "writes nothing": ("exit 0", "ended with status 0 and did not write its output"),
    "writes an empty file": (': > "$out"', "ended with status 0 and did not write its output"),
    "writes half of it": ('compile "$@" && truncate -s 600 "$out"', "its output cannot be used"),
    "leaves a little out": ('compile "$@" && truncate -s -1 "$out"', "its output cannot be used"),
    "writes the first bytes": ('compile "$@" && truncate -s 4 "$out"', "its output cannot be used"),
    "writes garbage": ('echo gibberish > "$out"', "its output is no object"),
    "writes a program": ('cp OTHER/program "$out"', "its output is not a relocatable object"),
    "writes bitcode": ('cp "$in" "$out"', "its output is no object"),
    "writes an archive": ('cp OTHER/archive.a "$out"', "its output is no object"),
    "writes for another machine": ('cp OTHER/arm.o "$out"', "its output is not for x86_64-unknown-linux-gnu"),
    "writes for another system": ('cp OTHER/windows.o "$out"', "its output is not for x86_64-unknown-linux-gnu"),
    "makes a directory": ('rm -f "$out"; mkdir "$out"', "ended with status 0"),
    "crashes": ("kill -SEGV $$", "crashed with SIGSEGV"),
    "aborts": ("echo 'LLVM ERROR: out of ideas' >&2; kill -ABRT $$", "crashed with SIGABRT.*out of ideas"),
    "is killed": ("kill -KILL $$", "was killed"),
    "fails": ("exit 1", "failed with exit status 1: it does not say why"),
    "fails with a word": ("echo strange words >&2; exit 3", "exit status 3: strange words"),
    "fails with half an object": ('compile "$@" && truncate -s 600 "$out"; exit 1', "failed with exit status 1"),
    "says an error and no more": ("compile \"$@\"; echo 'error: on second thoughts' >&2", "on second thoughts"),
    "says an error and fails": ("echo 'error: this is beyond me' >&2; exit 1", "this is beyond me"),
}
"""What becomes of one module, and what is said of it."""

_DIES = frozenset({"crashes", "aborts", "is killed", "fails", "fails with a word", "says an error and fails"})

_ALIKE = ("says", "writes a ", "writes b", "writes for", "fails with", "leaves", "is killed", "aborts")
"""What makes no difference to a job that is run as it was given."""


@frozen
class _Plan:
    """The job file of a link, the directory with all that it names, and a store with all that comes of it."""

    directory: Path
    store: Path
    jobs: dict[str, Any]

    def laid_out(self, place: Path) -> Lab:
        """A lab of one's own with all of it."""
        for path in self.directory.iterdir():
            if path.is_dir():
                shutil.copytree(path, place / path.name)
            elif path.name.endswith(".thinlto.bc"):
                shutil.copy(path, place)
        return Lab(place)


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The modules of the program, and what compilers make when they are asked for something else."""
    lab = Lab(tmp_path_factory.mktemp("modules"))
    assert lab.compile(PROGRAM) == _FILES
    lab.compiler("program", "")
    for name, triple in (("arm", "aarch64-unknown-linux-gnu"), ("windows", "x86_64-pc-windows-msvc")):
        flags = ["-triple", triple, "-emit-obj", "-xc", "-", "-o", f"{lab.tools}/{name}.o"]
        source = b"int bad(int x) { return x + 40; }"
        subprocess.run([zig(), "clang", "-cc1", *flags], input=source, check=True)
    subprocess.run([zig(), "ar", "rcs", "archive.a", "arm.o"], cwd=lab.tools, check=True)
    return lab.root


@pytest.fixture(scope="module")
def plan(modules: Path, tmp_path_factory: pytest.TempPathFactory) -> _Plan:
    """The jobs of the program's link, of which all results are in a store."""
    lab = Lab(tmp_path_factory.mktemp("plan"))
    shutil.copytree(modules / "in", lab.root / "in")
    jobs = lab.plan(_FILES)
    store = tmp_path_factory.mktemp("store") / "cache"
    assert lab.distribute(jobs, f"--cache-dir={store}").count("misses") == (len(_FILES),)
    return _Plan(lab.root, store, jobs)


@pytest.fixture
def lab(place: Path, modules: Path) -> Lab:
    shutil.copytree(modules / "in", place / "in")
    return Lab(place)


def _other(modules: Path) -> str:
    return str(modules.with_name(f"{modules.name}-tools"))


def _nothing_is_left(done: Linked) -> None:
    """But for reproducers."""
    assert [path for path in done.left if not path.startswith("program.reproducers/")] == []


def _error(done: Linked, module: str = "in/bad.o", code: int = 1) -> str:
    """The one thing that is wrong."""
    assert done.status == code, done.stderr
    _nothing_is_left(done)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("ltod-dtlto: error: ")]
    assert line.startswith(f"ltod-dtlto: error: {module}: "), done.stderr
    return line


@pytest.mark.parametrize(
    ("ending", "program"),
    [
        *((ending, True) for ending in _ENDINGS),
        *((ending, False) for ending in _ENDINGS if not ending.startswith(_ALIKE)),
    ],
)
def test_a_compiler_that_lies_or_dies(lab: Lab, modules: Path, ending: str, program: bool) -> None:
    body, message = _ENDINGS[ending]
    body = body.replace("OTHER", _other(modules))
    compiler = lab.compiler("fake", f'is_bad && {{ {body}; exit; }}; compile "$@"', program=program)
    done = lab.link(_FILES, compiler=compiler, arguments=["-j1"])
    assert re.search(message, _error(done)), done.stderr
    assert "distributor execution failed" in done.stderr
    # Scripts have no identity.
    assert done.count("failed", "misses", "uncached") == ((1, _OTHERS, 0) if program else (1, 0, _OTHERS))
    assert done.stderr.count("is no ELF program") == (0 if program else 1)
    again = _reproduced(done)
    if ending in _DIES:
        assert again.returncode != 0
    words = re.search(r"out of ideas|strange words|beyond me|second thoughts", message)
    assert words is None or words[0] in again.stderr.decode()

    if program:  # It comes to its senses, and what was done is done.
        lab.compiler("fake", 'compile "$@"')
        done = lab.link(_FILES, compiler=compiler)
        assert done.status == 0, done.stderr
        assert done.count("hits", "misses", "uncached") == (_OTHERS, 1, 0)
        assert done.left == {"program"}
        assert lab.said() == SAID


def _reproduced(done: Linked) -> subprocess.CompletedProcess[bytes]:
    """Do as one is told."""
    found = re.search("reproduce with: (sh .*/repro.sh)$", done.stderr, re.MULTILINE)
    assert found is not None, done.stderr
    return subprocess.run(["sh", "-c", found[1]], cwd="/", capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize("state", ["missing", "may not be run", "is a directory", "is empty", "is of another machine"])
def test_a_compiler_that_cannot_be_run(lab: Lab, state: str) -> None:
    compiler = lab.compiler("fake", 'compile "$@"')
    program = compiler.read_bytes()
    compiler.unlink()
    if state == "is a directory":
        compiler.mkdir()
    elif state != "missing":
        compiler.write_bytes(b"" if state == "is empty" else program[:18] + b"\xb7\0" + program[20:])
        compiler.chmod(0o644 if state == "may not be run" else 0o755)
    done = lab.link(_FILES, compiler=compiler)
    assert done.status == 1, done.stderr
    assert "distributor execution failed" in done.stderr
    assert str(compiler) in done.stderr
    _nothing_is_left(done)
    if compiler.is_dir():
        compiler.rmdir()
    compiler.write_bytes(program)
    compiler.chmod(0o755)
    assert lab.link(_FILES, compiler=compiler).status == 0
    assert lab.said() == SAID
    # And what was made may be used, though it has gone since: that is for the linker's own steps to notice.
    assert lab.link(_FILES, compiler=compiler).count("hits") == (_OTHERS + 1,)


_Change = Callable[[Lab, dict[str, Any]], object]


def _respelled(_: Lab, job: dict[str, Any]) -> None:
    for words in (job["args"], job["inputs"]):
        words[words.index("in/lib0.o")] = "in/../in/lib0.o"


def _cut(path: str, share: float) -> _Change:
    def change(lab: Lab, job: dict[str, Any]) -> None:
        file = lab.root / _resolved(job, path)
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * share)])

    return change


def _filled(path: str, content: bytes | None) -> _Change:
    def change(lab: Lab, job: dict[str, Any]) -> None:
        file = lab.root / _resolved(job, path)
        file.unlink()
        if content is not None:
            file.write_bytes(content)

    return change


def _replaced(path: str, by: str) -> _Change:
    def change(lab: Lab, job: dict[str, Any]) -> None:
        shutil.copy(lab.root / _resolved(job, by), lab.root / _resolved(job, path))

    return change


def _resolved(job: dict[str, Any], path: str) -> str:
    shard: str = job["inputs"][1]
    return {"SHARD": shard, "OTHER": shard.replace("lib0.2", "lib1.3")}.get(path, path)


def _edited(name: str) -> _Change:
    """The module is compiled again, from another source."""

    def change(lab: Lab, _: dict[str, Any]) -> None:
        lab.compile({name: PROGRAM[name].replace("* 3", "* 7")})

    return change


def _unlisted(_: Lab, job: dict[str, Any]) -> None:
    job["inputs"].remove("in/lib1.o")


_CHANGES: dict[str, tuple[_Change, str]] = {
    "its path is spelled otherwise": (_respelled, "its index shard .* is of another module"),
    "the shard is another module's": (
        _replaced("SHARD", "OTHER"),
        "its index shard .* is of another module|names what",
    ),
    "the shard is empty": (_filled("SHARD", b""), "its index shard .* is empty"),
    "the shard is missing": (_filled("SHARD", None), "its index shard .* cannot be read"),
    "the shard is garbage": (_filled("SHARD", b"garbage"), "."),
    "half of the shard is there": (_cut("SHARD", 0.5), "."),
    "most of the shard is there": (_cut("SHARD", 0.97), "."),
    "the module was edited": (_edited("lib0"), "in/lib0.o: was changed since the linker read it .*hash"),
    "the module is another one": (
        _replaced("in/lib0.o", "in/bad.o"),
        "in/lib0.o: was changed since the linker read it",
    ),
    "the module is empty": (_filled("in/lib0.o", b""), "it is empty"),
    "the module is missing": (_filled("in/lib0.o", None), "in/lib0.o"),
    "the module is garbage": (_filled("in/lib0.o", b"BC\xc0\xde garbage"), "cannot be read"),
    "half of the module is there": (_cut("in/lib0.o", 0.5), "changed since the linker read it"),
    "an import was edited": (_edited("lib1"), "what it imports from, in/lib1.o, was changed .*hash"),
    "an import is empty": (_filled("in/lib1.o", b""), "what it imports from, in/lib1.o, .* it is empty"),
    "an import is missing": (_filled("in/lib1.o", None), "in/lib1.o"),
    "an import is garbage": (_filled("in/lib1.o", b"garbage"), "what it imports from, in/lib1.o, "),
    "half of an import is there": (_cut("in/lib1.o", 0.5), "what it imports from, in/lib1.o, "),
    "an import is not the linker's": (_unlisted, "names what the linker does not give it: in/lib1.o"),
}


@pytest.mark.parametrize("change", _CHANGES)
def test_a_job_that_is_not_what_it_seems(plan: _Plan, place: Path, change: str) -> None:
    apply, message = _CHANGES[change]
    lab = plan.laid_out(place)
    jobs = planned(plan.jobs, lambda job: apply(lab, job), "in/lib0.o")
    # Nothing of it depends on what was compiled before.
    for arguments in ([], [f"--cache-dir={plan.store}"]):
        done = lab.distribute(jobs, *arguments)
        error = _error(done, jobs["jobs"][0]["inputs"][0])
        assert re.search(message, error), done.stderr
        assert done.count("hits", "misses", "failed") == (0, 0, 1) or done.count("uncached") == (0,)


@pytest.mark.parametrize(("name", "by"), [("lib0", "lib1"), ("lib1", "bad"), ("bad", "main")])
def test_a_module_that_is_replaced_while_it_is_linked(lab: Lab, name: str, by: str) -> None:
    """Between the linker's reading it and ours."""
    between = lab.tools / "between"
    between.write_text(f'#!/bin/sh\ncp in/{by}.o in/{name}.o\nexec {dtlto_program()} "$@"\n')
    between.chmod(0o755)
    assert lab.link(_FILES).status == 0
    command = lab.command(_FILES, output="other", distributor=between)
    before = lab.files()
    done = subprocess.run(command, cwd=lab.root, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert re.search(f"^ltod-dtlto: error: .*in/{name}.o.* was changed since the linker read it", done.stderr, re.M)
    assert lab.files() == before


_NO_JOB_FILES = {
    "empty": b"",
    "garbage": b"\x7fELF\0\xff",
    "cut off": b'{"common": {"linker_output": "a.out", "args": ["cl',
    "deep": b"[" * 100_000,
    "null": b"null",
    "a list": b"[]",
    "an empty object": b"{}",
    "no compiler": b'{"common": {"linker_output": "a", "args": [], "inputs": []}, "jobs": []}',
    "jobs that are none": b'{"common": {"linker_output": "a", "args": ["cc"], "inputs": []}, "jobs": {"a": 1}}',
    "an output without a name": b'{"common": {"linker_output": "", "args": ["cc"], "inputs": []}, "jobs": []}',
    "an output that is none": b'{"common": {"linker_output": 1, "args": ["cc"], "inputs": []}, "jobs": []}',
}


@pytest.mark.parametrize("content", _NO_JOB_FILES)
def test_what_is_no_job_file_is_said(place: Path, content: str) -> None:
    _is_refused(Lab(place).distribute(_NO_JOB_FILES[content]))


def _drop(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda job: job.pop(name)


def _put(name: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda job: job.update({name: value})


@pytest.mark.parametrize(
    "change",
    [
        *(_drop(name) for name in ("args", "inputs", "outputs")),
        *(_put(name, value) for name in ("args", "inputs") for value in ("in/lib0.o", [1], ["a\0b"])),
        _put("inputs", ["in/lib0.o"]),
        _put("outputs", []),
        _put("outputs", ["a.o", "b.o"]),
    ],
)
def test_a_job_that_is_none_is_said(plan: _Plan, place: Path, change: Callable[[dict[str, Any]], object]) -> None:
    lab = plan.laid_out(place)
    _is_refused(lab.distribute(planned(plan.jobs, change, "in/lib0.o")))


def test_two_jobs_for_one_output_are_refused(plan: _Plan, place: Path) -> None:
    lab = plan.laid_out(place)
    jobs = planned(plan.jobs, lambda job: None, "in/lib0.o")
    _is_refused(lab.distribute({**jobs, "jobs": jobs["jobs"] * 2}))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--no-such-option"],
        ["-j0"],
        ["-j", "many"],
        ["--jobs="],
        ["--cache-dir="],
        ["another.json"],
    ],
)
def test_wrong_options_are_said(plan: _Plan, place: Path, arguments: list[str]) -> None:
    _is_refused(plan.laid_out(place).distribute(plan.jobs, *arguments))


def _is_refused(done: Linked) -> None:
    """With one line of words, and nothing done."""
    assert done.status == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("ltod-dtlto: error: ")
    assert done.left == set()


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("place_is", ["a directory", "below a file", "a pipe", "not to be written"])
def test_an_output_that_cannot_be_written(plan: _Plan, place: Path, place_is: str, compiled: bool) -> None:
    lab = plan.laid_out(place)
    output = {"a directory": "in", "below a file": "in/bad.o/lib0.o", "a pipe": "pipe"}.get(place_is, "shut/lib0.o")
    os.mkfifo(place / "pipe")
    (place / "shut").mkdir(mode=0o500)
    if place_is == "not to be written" and os.access(place / "shut", os.W_OK):
        pytest.skip("nothing is forbidden to root")
    before = {path: path.read_bytes() for path in (place / "in").iterdir()}
    jobs = planned(plan.jobs, _put("outputs", [output]), "in/lib0.o")
    jobs["jobs"][0]["args"][-1] = output
    done = lab.distribute(jobs, *([f"--cache-dir={plan.store}"] if compiled else []))
    assert done.status != 0
    assert output in done.stderr
    assert {path: path.read_bytes() for path in (place / "in").iterdir()} == before
    assert done.left == set()
    # What was made is not lost.
    done = lab.distribute(planned(plan.jobs, lambda job: None, "in/lib0.o"))
    assert done.status == 0
    assert compiled or done.count("hits") == (1,)


@pytest.mark.parametrize("full", ["where the link is", "where temporary files are", "where results are kept"])
def test_a_full_disk(modules: Path, small_disk: Path, tmp_path: Path, full: str) -> None:
    root, temporary, store = (tmp_path / name for name in ("link", "temporary", "store"))
    if full == "where the link is":
        root = small_disk / "link"
    elif full == "where temporary files are":
        temporary = small_disk
    else:
        store = small_disk / "store"
    for path in (root, temporary):
        path.mkdir(exist_ok=True)
    shutil.copytree(modules / "in", root / "in")
    # The linker's own temporary files are small.
    lab = Lab(root)
    compiler = lab.compiler("fake", f'head -c 1m /dev/zero > {small_disk}/hog; compile "$@"')
    environ = {"TMPDIR": str(temporary), "LTOD_CACHE_DIR": str(store)}
    done = lab.link(_FILES, compiler=compiler, environ=environ)
    (small_disk / "hog").unlink()
    _nothing_is_left(evolve(done, left=done.left - {"program"}))
    if full == "where results are kept":
        assert done.status == 0, done.stderr
        assert lab.said() == SAID
    else:
        assert done.status == 1
        assert "o space left on" in done.stderr
    lab.compiler("fake", 'compile "$@"')
    assert lab.link(_FILES, compiler=compiler, environ=environ).status == 0
    assert lab.said() == SAID


@pytest.mark.parametrize("damage", ["changed", "cut", "empty", "gone", "garbage", "entries"])
def test_damage_in_the_store_is_a_miss(plan: _Plan, place: Path, damage: str) -> None:
    lab = plan.laid_out(place)
    shutil.copytree(plan.store, place.parent / "damaged")
    (place.parent / "damaged").rename(os.environ["LTOD_CACHE_DIR"])
    store = Path(os.environ["LTOD_CACHE_DIR"])
    for path in store.glob("v1/ac/*/*" if damage == "entries" else "v1/cas/*/*"):
        content = path.read_bytes()
        path.unlink()
        match damage:
            case "changed":
                path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
            case "cut":
                path.write_bytes(content[: len(content) // 2])
            case "empty":
                path.touch()
            case "garbage" | "entries":
                path.write_bytes(b"garbage")
    done = lab.link(_FILES)
    assert done.status == 0, done.stderr
    assert done.count("hits", "misses") == (0, len(_FILES))
    assert lab.said() == SAID
    assert lab.link(_FILES).count("hits", "misses") == (len(_FILES), 0)
    assert lab.said() == SAID


@pytest.mark.parametrize(
    "state", ["deep below nothing", "a file", "below a file", "not to be written", "a broken link"]
)
def test_a_store_that_cannot_be_had_is_done_without(lab: Lab, state: str) -> None:
    base = lab.root / "in" / "base"
    store = base / "d/e/e/p"
    if state in ("a file", "below a file"):
        base.write_bytes(b"")
        store = base if state == "a file" else store
    elif state == "not to be written":
        store.mkdir(parents=True)
        store.chmod(0o500)
    elif state == "a broken link":
        store.parent.mkdir(parents=True)
        store.symlink_to(base / "nowhere" / "at all")
    for _ in range(2):
        done = lab.link(_FILES, arguments=[f"--cache-dir={store}"])
        assert done.status == 0, done.stderr
        assert lab.said() == SAID
        assert done.count("failed", "skipped", "jobs") == (0, 0, len(_FILES))
    if state == "deep":
        assert done.count("hits") == (len(_FILES),)
    elif done.count("hits") == (0,):
        assert done.stderr.count("ltod-dtlto: warning: ") == 1, done.stderr
