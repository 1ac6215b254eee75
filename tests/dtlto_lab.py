"""Links by the wheel's lld of programs that need no libc, with compilers that do as they are told by a test.

Shared by the tests of what goes wrong in and around `ltod-dtlto`.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from attrs import define, evolve, field, frozen

from tests.dtlto_site import dtlto_program
from tests.samples import TRIPLE, zig

__all__ = ["PROGRAM", "SAID", "Lab", "Linked", "library", "main_source", "planned"]

_SECONDS = 120.0

_MAIN = """\
static void put(unsigned v) {
  char b[12]; int n = 12; long r;
  b[--n] = '\\n';
  do { b[--n] = '0' + v % 10; v /= 10; } while (v);
  __asm__ volatile("syscall" : "=a"(r) : "0"(1L), "D"(1L), "S"(b + n), "d"((long)(12 - n)) : "rcx", "r11", "memory");
}
__attribute__((force_align_arg_pointer, noreturn)) void _start(void) {
  put(VALUE);
  __asm__ volatile("syscall" :: "a"(60L), "D"(0L));
  __builtin_unreachable();
}
"""

_STEPS = """
int mix(int x) { for (int k = 0; k < x; k++) x = x * 3 ^ k; return x; }
int deep(int n) { return n > 3 ? mix(n) + deep(n - 1) : mix(n + 1) ^ mix(n + 2); }
"""


def main_source(value: str, *declared: str) -> str:
    """A program that prints `value`, an expression that may use what is `declared`."""
    return "".join(f"extern int {name}(int);\n" for name in declared) + _MAIN.replace("VALUE", value)


def library(count: int) -> dict[str, str]:
    """Sources of `count` modules, each of which imports from the next one; `step0` leads through all of them."""
    sources = {}
    for number in range(count):
        after = f"step{number + 1}(n + 1)" if number + 1 < count else "n"
        text = _STEPS.replace("mix", f"mix{number}").replace("deep", f"deep{number}")
        declared = f"extern int step{number + 1}(int);\n" if number + 1 < count else ""
        sources[f"lib{number}"] = (
            f"{declared}{text}int step{number}(int n) {{ return deep{number}(n & 7) ^ {after}; }}\n"
        )
    return sources


# The smallest comes last in ltod's order: what is wrong with it, the others are done.
PROGRAM = {
    "main": main_source("step0(5) + bad(2)", "step0", "bad"),
    **library(2),
    "bad": "int marked_as_bad = 1; int bad(int x) { return x + 40; }\n",
}
SAID = b"1885313427\n"

# Runs the script that is called as it is, and `.sh`.
_SHIM = """\
static long call(long n, long a, long b, long c) {
  long r;
  __asm__ volatile("syscall" : "=a"(r) : "0"(n), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
  return r;
}
void begin(long *stack) {
  char **old = (char **)(stack + 1), *words[4096], script[4096];
  long count = *stack < 4000 ? *stack : 4000, size = 0;
  for (char *from = old[0]; *from && size < 4000; from++) script[size++] = *from;
  for (char *from = ".sh"; *from; from++) script[size++] = *from;
  script[size] = 0;
  words[0] = "sh";
  words[1] = script;
  for (long at = 1; at < count; at++) words[at + 1] = old[at];
  words[count + 1] = 0;
  call(59, (long)"/bin/sh", (long)words, (long)(old + *stack + 1));
  call(60, 127, 0, 0);
}
__attribute__((naked)) void _start(void) { __asm__("mov %rsp,%rdi\\n\\tand $-16,%rsp\\n\\tcall begin"); }
"""

_HEAD = """\
PATH=/usr/bin:/bin
case "$*" in *'-###'*|*--version*) exec ZIG clang "$@";; esac
compile() { ZIG clang "$@"; }
is_bad() { grep -q marked_as_bad "$in"; }
in= out= previous=
for word; do
  case $previous in
    -o) out=$word ;;
    *) case $word in -*) ;; *.o|*.bc) in=$word ;; esac ;;
  esac
  previous=$word
done
"""


@cache
def _shim() -> bytes:
    with tempfile.TemporaryDirectory() as place:
        flags = ["-triple", TRIPLE, "-O0", "-emit-obj", "-xc", "-", "-o", "shim.o"]
        subprocess.run([zig(), "clang", "-cc1", *flags], input=_SHIM.encode(), cwd=place, check=True, timeout=_SECONDS)
        link = [zig(), "ld.lld", "-static", "shim.o", "-o", "shim"]
        subprocess.run(link, cwd=place, check=True, timeout=_SECONDS)
        return Path(place, "shim").read_bytes()


@frozen
class Linked:
    """What came of a run. `left` are the files that were not there before, by their paths below the lab."""

    status: int
    stderr: str = field(repr=False)
    stats: Mapping[str, Any] | None
    left: frozenset[str]

    def count(self, *names: str) -> tuple[int, ...]:
        """Of the figures, these."""
        assert self.stats is not None, self.stderr
        return tuple(self.stats[name] for name in names)


@define
class Lab:
    """A directory to work in, `root`, and one for compilers beside it."""

    root: Path
    tools: Path = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.tools = self.root.with_name(f"{self.root.name}-tools")
        self.tools.mkdir()

    def compile(self, sources: Mapping[str, str], directory: str = "in") -> list[str]:
        """Each source as a module of thin LTO; gives their paths, relative to the lab, in the same order."""
        (self.root / directory).mkdir(exist_ok=True)

        def one(name: str) -> str:
            output = f"{directory}/{name}.o"
            flags = ["-triple", TRIPLE, "-O2", "-flto=thin", "-flto-unit", "-emit-llvm-bc", "-xc", "-", "-o", output]
            command = [zig(), "clang", "-cc1", *flags]
            subprocess.run(command, input=sources[name].encode(), cwd=self.root, check=True, timeout=_SECONDS)
            return output

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(one, sources))

    def archive(self, files: Sequence[str], output: str) -> str:
        """Put modules into an archive."""
        subprocess.run([zig(), "ar", "rcs", output, *files], cwd=self.root, check=True, timeout=_SECONDS)
        return output

    def compiler(self, name: str, body: str, *, program: bool = True) -> Path:
        """A compiler that answers its driver's question truly, and compiles by `body`, shell words.

        They see the module as `$in`, the object as `$out`, and `compile "$@"` does what was asked for. Written again
        under the same name, a `program` stays the same compiler to all who look at it; else it is a plain script.
        """
        script = self.tools / (f"{name}.sh" if program else name)
        script.write_text("#!/bin/sh\n" + _HEAD.replace("ZIG", zig()) + body + "\n")
        script.chmod(0o755)
        if not program:
            return script
        path = self.tools / name
        if not path.exists():
            path.write_bytes(_shim())
            path.chmod(0o755)
        return path

    def command(
        self,
        files: Sequence[str],
        *options: str,
        output: str = "program",
        compiler: Path | None = None,
        distributor: Path | None = None,
        arguments: Sequence[str] = (),
    ) -> list[str]:
        """The command of a link, to be run in the lab. `arguments` are the distributor's."""
        told = ["--thinlto-remote-compiler=" + (zig() if compiler is None else str(compiler))]
        if compiler is None:
            told.append("--thinlto-remote-compiler-prepend-arg=clang")
        told += [f"--thinlto-distributor-arg={argument}" for argument in arguments]
        program = dtlto_program() if distributor is None else distributor
        own = [f"--thinlto-distributor={program}", *told, *options]
        return [zig(), "ld.lld", "-static", "-o", output, *own, *files]

    def link(
        self,
        files: Sequence[str],
        *options: str,
        output: str = "program",
        compiler: Path | None = None,
        arguments: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> Linked:
        """Link through ltod-dtlto."""
        stats = self.root.with_name(f"{self.root.name}-stats.json")
        command = self.command(
            files, *options, output=output, compiler=compiler, arguments=[f"--stats={stats}", *arguments]
        )
        return self._run(command, stats, environ)

    def plan(self, files: Sequence[str]) -> dict[str, Any]:
        """The job file of a link, all of whose files are there to stay."""
        command = self.command(files, "--save-temps", distributor=Path("/bin/false"))
        subprocess.run(command, cwd=self.root, capture_output=True, timeout=_SECONDS, check=False)
        (path,) = self.root.glob("*.dist-file.json")
        content: dict[str, Any] = json.loads(path.read_bytes())
        for left in self.root.glob("program*"):
            left.unlink()
        return content

    def distribute(self, jobs: object, *arguments: str, environ: Mapping[str, str] | None = None) -> Linked:
        """Run ltod-dtlto as a linker does, on a job file of ours: an object, or what is to be in the file."""
        path = self.root / "jobs.json"
        path.write_bytes(jobs if isinstance(jobs, bytes) else json.dumps(jobs).encode())
        stats = self.root.with_name(f"{self.root.name}-stats.json")
        done = self._run([str(dtlto_program()), f"--stats={stats}", *arguments, path.name], stats, environ)
        assert "jobs.json" in done.left
        return evolve(done, left=done.left - {"jobs.json"})

    def _run(self, command: Sequence[str], stats: Path, environ: Mapping[str, str] | None) -> Linked:
        stats.unlink(missing_ok=True)
        before = self.files() - {"jobs.json"}
        done = subprocess.run(
            command,
            cwd=self.root,
            env={**os.environ, **(environ or {})},
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
        stderr = done.stderr.decode(errors="replace")
        assert "Traceback" not in stderr, stderr
        figures = json.loads(stats.read_bytes()) if stats.exists() else None
        return Linked(done.returncode, stderr, figures, frozenset(self.files() - before))

    def said(self, program: str = "program") -> bytes:
        """What a program prints that was linked here."""
        return subprocess.run([self.root / program], stdout=subprocess.PIPE, check=True, timeout=_SECONDS).stdout

    def files(self) -> set[str]:
        """All files below the lab, whatever they are called."""
        return {os.path.relpath(path, self.root) for path in self.root.rglob("*") if not path.is_dir()}


def planned(jobs: Mapping[str, Any], change: Callable[[dict[str, Any]], object], name: str) -> dict[str, Any]:
    """A job file with just the job of the module `name`, changed."""
    (job,) = (json.loads(json.dumps(one)) for one in jobs["jobs"] if one["inputs"][0] == name)
    change(job)
    return {"common": jobs["common"], "jobs": [job]}
