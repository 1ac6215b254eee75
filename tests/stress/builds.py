"""Many builds at once on one coordinator, with cancels, aborts, failing modules and killed workers.

    python -m tests.stress.builds [--builds 200] [--seed N]

Tokens come from a real jobserver. At the end no process, file descriptor, token or temporary file may be left,
and every build must have ended the way its modules and its fate say. The same seed makes the same builds; who is
killed when is up to the clock.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import os
import random
import signal
import sys
import tempfile
from pathlib import Path

import trio
from attrs import define, field, frozen

from coordinator import (
    BuildConfig,
    BuildFailed,
    BuildResult,
    CodegenOptions,
    Coordinator,
    Finished,
    Module,
    Severity,
    open_coordinator,
)
from tests.samples import ABORTING_IR, GOOD_IR, UNPARSABLE_IR, compile_c, small_c

_JOBS = 4
_TOKENS = b"+" * (_JOBS - 1)


@frozen
class _Plan:
    """What one build is made of, and when it is cancelled (seconds), if it is."""

    number: int
    good: tuple[Path, ...]
    bad: tuple[Module, ...]
    keep_going: bool
    cancel_after: float | None
    leave: bool


@define
class _Stress:
    root: Path
    plans: list[_Plan]
    references: dict[str, str]
    kills: int = 0
    endings: collections.Counter[str] = field(factory=collections.Counter)
    wrong: list[str] = field(factory=list)
    done: bool = False

    async def run_build(self, coordinator: Coordinator, plan: _Plan) -> None:
        out_dir = self.root / "out" / str(plan.number)
        config = BuildConfig(
            out_dir=out_dir, keep_going=plan.keep_going, codegen=CodegenOptions(time_limit=60), name=str(plan.number)
        )
        modules = [Module(path.stem, path) for path in plan.good] + list(plan.bad)
        random.Random(plan.number).shuffle(modules)
        delay = plan.cancel_after
        with trio.CancelScope(deadline=trio.current_time() + delay if delay is not None else float("inf")) as scope:
            try:
                async with coordinator.build(config) as build:
                    for module in modules:
                        await build.submit(module)
                    if plan.leave:
                        self.endings["left"] += 1
                        return
                    await build.finish()
                    self.endings["ok"] += 1
            except BuildFailed:
                self.endings["failed"] += 1
        if scope.cancelled_caught:
            self.endings["cancelled"] += 1
        assert build.result is not None
        self.check(plan, build.result, cancelled=scope.cancelled_caught)

    def check(self, plan: _Plan, result: BuildResult, *, cancelled: bool) -> None:
        def complain(what: str) -> None:
            self.wrong.append(f"build {plan.number}: {what}")

        errors = [d for d in result.diagnostics if d.severity is Severity.ERROR]
        bad = {module.name for module in plan.bad}
        for artifact in result.artifacts:
            if hashlib.sha256(artifact.path.read_bytes()).hexdigest() != self.references[artifact.module]:
                complain(f"{artifact.path} differs from the reference")
        for diagnostic in errors:
            if diagnostic.module not in bad and "SIGKILL" not in diagnostic.message:
                complain(f"unexpected: {diagnostic}")
            if diagnostic.reproducer is not None and not (diagnostic.reproducer / "repro.sh").is_file():
                complain(f"incomplete reproducer: {diagnostic.reproducer}")
        if cancelled:
            return
        named = {d.module for d in errors}
        if bad and not named:
            complain("bad modules, but no error")
        if plan.keep_going:
            finished = {r.module for r in result.results if isinstance(r, Finished)}
            missing = {path.stem for path in plan.good} - finished - named
            if missing or result.skipped:
                complain(f"kept going, but {missing or result.skipped} did not finish")
            if bad - named:
                complain(f"no error names {bad - named}")
        if not bad and not errors and not result.ok:
            complain("nothing was wrong, but it did not succeed")

    async def kill_workers(self, rng: random.Random, interval: float) -> None:
        """Kill some worker process now and then, as the kernel does when memory runs out."""
        while not self.done:
            await trio.sleep(rng.uniform(0, 2 * interval))
            victims = _children(os.getpid())
            if victims:
                try:
                    os.kill(rng.choice(victims), signal.SIGKILL)
                    self.kills += 1
                except ProcessLookupError:
                    pass


def _children(of: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            if int(stat.rpartition(")")[2].split()[1]) == of:
                found.append(int(entry.name))
    return found


def _descriptors() -> set[str]:
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists the directory
            found.add(f"{fd.name} -> {fd.readlink()}")
    return found


def _plan(rng: random.Random, number: int, modules: list[Path]) -> _Plan:
    bad = []
    if rng.random() < 0.4:
        for kind in rng.sample(["unparsable", "aborting", "truncated", "missing"], rng.randint(1, 2)):
            content: Path | bytes
            match kind:
                case "unparsable":
                    content = UNPARSABLE_IR.encode()
                case "aborting":
                    content = ABORTING_IR.encode()
                case "truncated":
                    content = modules[0].read_bytes()[:1000]
                case _:
                    content = Path("/nonexistent.bc")
            bad.append(Module(kind, content))
    return _Plan(
        number,
        tuple(rng.sample(modules, rng.randint(1, 12))),
        tuple(bad),
        keep_going=rng.random() < 0.5,
        cancel_after=rng.uniform(0, 10) if rng.random() < 0.25 else None,
        leave=rng.random() < 0.1,
    )


async def _references(modules: list[Path], root: Path) -> dict[str, str]:
    """Each module compiled alone, with nothing going on beside it."""
    digests = {}
    async with open_coordinator(jobs=1, environ={}) as coordinator:
        for path in modules:
            async with coordinator.build(BuildConfig(out_dir=root / "reference")) as build:
                await build.submit(Module(path.stem, path))
                [artifact] = (await build.finish()).artifacts
                digests[path.stem] = hashlib.sha256(artifact.path.read_bytes()).hexdigest()
    return digests


async def stress(root: Path, builds: int, seed: int) -> list[str]:
    """Run it in `root`; what went wrong, in words."""
    rng = random.Random(seed)
    sources = {f"m{number:02}": small_c(number, 40) for number in range(30)}
    modules = compile_c(sources, root / "in")
    for number in range(10):
        modules.append(root / "in" / f"t{number}.ll")
        modules[-1].write_text(GOOD_IR.replace("@good", f"@good{number}"))
    fifo = root / "jobserver"
    os.mkfifo(fifo)
    jobserver = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    os.write(jobserver, _TOKENS)
    scratch = root / "scratch"
    scratch.mkdir()
    environ = {"MAKEFLAGS": f" -j{_JOBS} --jobserver-auth=fifo:{fifo}"}
    tempfile.tempdir = str(scratch)
    try:
        job = _Stress(root, [_plan(rng, n, modules) for n in range(builds)], await _references(modules, root))
        before = _descriptors()
        async with open_coordinator(environ=environ) as coordinator, trio.open_nursery() as killing:
            killing.start_soon(job.kill_workers, rng, 0.15)
            async with trio.open_nursery() as nursery:
                for plan in job.plans:
                    nursery.start_soon(job.run_build, coordinator, plan)
            job.done = True
        wrong = job.wrong
        if left := _children(os.getpid()):
            wrong.append(f"processes are left: {left}")
        if left_open := _descriptors() - before:
            wrong.append(f"descriptors are left: {sorted(left_open)}")
        tokens = os.read(jobserver, 100)
        if tokens != _TOKENS:
            wrong.append(f"tokens in the jobserver: {tokens!r}, but it had {_TOKENS!r}")
        if left_files := [str(path) for path in scratch.rglob("*")]:
            wrong.append(f"temporary files are left: {left_files}")
        expected = {f"{name}.o" for name in job.references}
        strangers = [
            str(path)
            for path in (root / "out").rglob("*")
            if path.is_file() and "reproducers" not in path.parts and path.name not in expected
        ]
        if strangers:
            wrong.append(f"strange files in the output directories: {strangers}")
    finally:
        tempfile.tempdir = None
        os.close(jobserver)
    endings = ", ".join(f"{count} {ending}" for ending, count in sorted(job.endings.items()))
    print(f"{builds} builds (seed {seed}): {endings}; {job.kills} workers killed; {len(wrong)} things wrong")
    return wrong


def main() -> None:
    """Run the stress from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--builds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ltod-stress-") as root:
        wrong = trio.run(stress, Path(root), arguments.builds, arguments.seed)
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
