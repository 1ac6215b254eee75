"""A backend without a compiler: for the simulator, the timing tests and the benchmark of the main loop.

It keeps the contract of `workers.backend`: artifacts are real files whose bytes depend on the module alone. What
a module does is written in its content, so that tests need no second channel: `fail`, `hang`, `crash` or
anything else for success. `seconds=<float>` is how long it takes, `guess=<float>` what is expected instead; with
`until=<path>` it takes until that file is there, and `<path>.begun` once it has begun. `warn=<word>` is a warning.
In LTO, `link-fail` fails the link of all modules, `lto-fail` what comes of this module behind it, and a lazy module
is needed if another one says so (`needs=<name>`); `regular-part` is compiled by a thin link itself, and
`reads=<path>` is a file that a link reads as well, for the names of needed modules. Native objects may say `link-fail`,
`warn=` and `reads=` to the last link. What says that there is no key is in `workers.fake_keys`.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import trio
from attrs import field, frozen

from workers.backend import Inspection
from workers.errors import ModuleError, RequestError
from workers.fat import FatLink, FatLinked, FatPartition, partition_name
from workers.thin import REGULAR_PART, ThinCompile, ThinLink, ThinLinked
from workers.work import (
    Artifact,
    CodegenOptions,
    Diagnostic,
    EmitKind,
    Engine,
    Estimate,
    Failed,
    Finished,
    Link,
    Linked,
    LinkOptions,
    Module,
    NeedsFatLto,
    NeedsThinLto,
    Optimize,
    PreLink,
    Severity,
    Step,
    Target,
    artifact_path,
)

__all__ = ["FakeBackend", "says"]

_POLL_SECONDS = 0.01


@frozen
class FakeBackend:
    """A stand-in for a compiler. With `write=False` there are no artifacts, and so no I/O at all."""

    write: bool = True
    made: list[tuple[Step, str]] = field(factory=list, init=False, eq=False, repr=False)
    """What there was to do so far, in the order of beginning."""
    _between: dict[Path, bytes] = field(factory=dict, init=False, eq=False, repr=False)
    """What passes between the steps of a build, by the path of the file that it would be if we wrote any."""

    def check(self, options: CodegenOptions) -> None:
        """Honour everything but a CPU named `nonesuch`."""
        if options.target_cpu == "nonesuch":
            raise RequestError("unknown target CPU 'nonesuch': name one that the compiler knows")

    async def prepare(self, target: Target, options: CodegenOptions) -> None:
        """Take every target but `nonesuch`."""
        if target.triple.startswith("nonesuch"):
            raise RequestError("no such target: nonesuch")
        await trio.lowlevel.checkpoint()

    def check_lto(self, options: CodegenOptions, target: Target) -> None:
        """Do LTO for every target but `ltoless`."""
        if target.triple.startswith("ltoless"):
            raise RequestError("no LTO for an ltoless target")

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A directory, or the name of one that is not needed."""
        if not self.write:
            yield Path("/nonexistent")
            return
        with tempfile.TemporaryDirectory() as directory:
            yield Path(directory)

    def inspect(self, module: Module, options: CodegenOptions, pre_link: PreLink | None = None) -> Inspection:
        """Take the content for what it is; only what cannot be read is refused."""
        content = self.content(module)
        target = re.search(rb"target=(\S+)", content)
        triple = target[1].decode() if target else "fake-unknown-none"
        cost = _seconds(content, rb"guess=([\d.]+)") or _seconds(content)
        layout = re.search(rb"layout=(\S*)", content)
        return Inspection(
            Target(triple, layout[1].decode() if layout else "e"), len(content), Estimate(cost, 2**20, "fake")
        )

    def at_once(self, item: Optimize) -> None:
        """Nothing is without work here."""

    async def compile(self, batch: Sequence[Optimize]) -> Sequence[Finished | NeedsThinLto | NeedsFatLto | Failed]:
        """Do what each module's content says."""
        return [await self._compile(item) for item in batch]

    def check_link(self, link: LinkOptions, target: Target) -> None:
        """Link for every target but `unlinkable`."""
        if target.triple.startswith("unlinkable"):
            raise RequestError(f"cannot link {link.output} for an unlinkable target")

    async def link(self, item: Link) -> Linked | Failed:
        """Concatenate the objects. Native ones may say something, too."""
        self.made.append((Step.LINK, item.name))
        contents = [file.path.read_bytes() for file in item.objects]
        if any(says(content, "link-fail") for content in contents):
            return _failed_step(item.name, "the link fails", Step.LINK)
        data = b"".join(contents)
        item.link.output.write_bytes(data)
        warnings = _warnings(item.name, b"\n".join(contents))
        return Linked(
            item.name, item.link.output, len(data), Engine.TOOLCHAIN, 0.0, 0, warnings, reads=_reads(contents)
        )

    def thin_estimate(self, item: ThinLink) -> Estimate:
        """Next to nothing."""
        return Estimate(0.01, 2**20)

    async def thin_link(self, item: ThinLink) -> ThinLinked | Failed:
        """Every module that is not lazy takes part, and those that one of them needs."""
        self.made.append((Step.THIN_LINK, item.name))
        modules = {file: self.passed(file.bitcode) for file in item.files if isinstance(file, NeedsThinLto)}
        if any(says(content, "link-fail") for content in modules.values()):
            return _failed_step(item.name, "the link fails", Step.THIN_LINK)
        unneeded = _unneeded(modules)
        taking_part = {file: content for file, content in modules.items() if file.module not in unneeded}
        whole = b"\n".join(content for content in taking_part.values() if says(content, "regular-part"))
        return ThinLinked(
            item.name,
            tuple(
                ThinCompile(file.module, file.bitcode, file.bitcode, _cost(content), item)
                for file, content in taking_part.items()
                if not says(content, "regular-part")
            ),
            unneeded,
            await self._generate(REGULAR_PART, whole, item, Step.THIN_LINK) if whole else None,
            0.01,
            2**20,
            _warnings(item.name, b"\n".join(modules.values())),
            reads=_reads(modules.values()),
        )

    async def thin_compile(
        self, batch: Sequence[ThinCompile], *, keep_going: bool = True
    ) -> Sequence[Finished | Failed]:
        """Do what each module's content says."""
        results: list[Finished | Failed] = []
        for one in batch:
            results.append(await self._compile_whole(one.name, self.passed(one.bitcode), one.link, Step.THIN_BACKEND))
            if isinstance(results[-1], Failed) and not keep_going:
                break
        return results

    def fat_estimate(self, item: FatLink) -> Estimate:
        """Next to nothing."""
        return Estimate(0.01, 2**20)

    async def fat_link(self, item: FatLink, ready: Callable[[FatPartition], None]) -> FatLinked | Failed:
        """Deal the modules out to the partitions, two if the item does not say how many."""
        self.made.append((Step.FAT_LINK, item.name))
        modules = {file: self.passed(file.bitcode) for file in item.files if isinstance(file, NeedsFatLto)}
        if any(says(content, "link-fail") for content in modules.values()):
            return _failed_step(item.name, "the link fails", Step.FAT_LINK)
        unneeded = _unneeded(modules)
        needed = [content for file, content in modules.items() if file.module not in unneeded]
        count = item.partitions or 2
        for number in range(count):
            path, content = item.directory / f"part{number}", b"\n".join(needed[number::count])
            self._pass_on(path, content)
            ready(FatPartition(partition_name(number), path, _cost(content), item))
            await trio.lowlevel.checkpoint()
        return FatLinked(
            item.name,
            count,
            unneeded,
            0.01,
            2**20,
            _warnings(item.name, b"\n".join(modules.values())),
            needs={name: (file.module,) for file, content in modules.items() for name in _needs(content)},
            reads=_reads(modules.values()),
        )

    async def fat_codegen(self, partition: FatPartition) -> Finished | Failed:
        """Do what the modules' contents say."""
        content = self.passed(partition.bitcode)
        return await self._compile_whole(partition.name, content, partition.link, Step.FAT_CODEGEN)

    def passed(self, path: Path) -> bytes:
        """What an earlier step passed on."""
        return path.read_bytes() if self.write else self._between[path]

    def _pass_on(self, path: Path, content: bytes) -> None:
        if self.write:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        else:
            self._between[path] = content

    async def _compile_whole(
        self, name: str, content: bytes, link: ThinLink | FatLink, step: Step
    ) -> Finished | Failed:
        self.made.append((step, name))
        if says(content, "lto-fail"):
            await _take_time(content)
            return _failed_step(name, "the compiler crashed", step)
        return await self._generate(name, content, link, step)

    async def _generate(self, name: str, content: bytes, link: ThinLink | FatLink, step: Step) -> Finished:
        started = trio.current_time()
        await _take_time(content)
        kinds = sorted(link.options.emit, key=lambda kind: kind.value) if self.write else ()
        artifacts = tuple(_write(name, content, link.out_dir, kind) for kind in kinds)
        elapsed = trio.current_time() - started
        return Finished(name, artifacts, Engine.TOOLCHAIN, elapsed, 2**20, _warnings(name, content), step=step)

    async def _compile(self, item: Optimize) -> Finished | NeedsThinLto | NeedsFatLto | Failed:
        content = self.content(item.module)
        self.made.append((Step.CODEGEN if item.pre_link is None else Step.PRE_LINK, item.name))
        started = trio.current_time()
        hangs = says(content, "hang")
        if hangs:
            await trio.sleep(item.options.time_limit)
        else:
            await _take_time(content)
        elapsed = trio.current_time() - started
        if hangs:
            return _failed(item, elapsed, f"still running after its time limit of {item.options.time_limit:g} s")
        if says(content, "crash"):
            return _failed(item, elapsed, "the compiler crashed")
        if says(content, "fail"):
            return _failed(item, elapsed, "it does not parse")
        if item.pre_link is not None and item.bitcode is not None:
            self._pass_on(item.bitcode, content)
            needs = NeedsThinLto if item.pre_link is PreLink.THIN else NeedsFatLto
            one = item.module
            return needs(
                one.name,
                item.bitcode,
                len(content),
                one.lazy,
                one.linker_name,
                Engine.TOOLCHAIN,
                elapsed,
                2**20,
                _warnings(one.name, content),
            )
        kinds = sorted(item.options.emit, key=lambda kind: kind.value) if self.write else ()
        artifacts = tuple(_write(item.name, content, item.out_dir, kind) for kind in kinds)
        return Finished(item.name, artifacts, Engine.TOOLCHAIN, elapsed, 2**20, _warnings(item.name, content))

    def content(self, module: Module) -> bytes:
        """What is in a module. Raises `ModuleError`."""
        if isinstance(module.content, bytes):
            return module.content
        try:
            return module.content.read_bytes()
        except OSError as error:
            raise ModuleError(module.name, f"cannot read {module.content}: {error.strerror}") from error


def says(content: bytes, word: str) -> bool:
    """Whether a module says a word."""
    return word.encode() in content.split()


async def _take_time(content: bytes) -> None:
    await trio.sleep(_seconds(content))
    if match := re.search(rb"until=(\S+)", content):
        Path(match[1].decode() + ".begun").touch()
        while not Path(match[1].decode()).exists():  # noqa: ASYNC110  # another process may make it
            await trio.sleep(_POLL_SECONDS)


def _needs(content: bytes) -> list[str]:
    return re.findall(r"needs=(\S+)", content.decode(errors="replace"))


def _files_read(contents: Iterable[bytes]) -> list[str]:
    return sorted(
        {name for content in contents for name in re.findall(r"reads=(\S+)", content.decode(errors="replace"))}
    )


def _reads(contents: Iterable[bytes]) -> bytes:
    return json.dumps(_files_read(contents)).encode()


def _unneeded(modules: Mapping[NeedsThinLto, bytes] | Mapping[NeedsFatLto, bytes]) -> tuple[str, ...]:
    needed = {name for content in modules.values() for name in _needs(content)}
    needed |= {name for file in _files_read(modules.values()) for name in Path(file).read_text().split()}
    return tuple(file.module for file in modules if file.lazy and file.module not in needed)


def _cost(content: bytes) -> Estimate:
    return Estimate(_seconds(content, rb"guess=([\d.]+)") or _seconds(content), 2**20, "fake")


def _warnings(name: str, content: bytes) -> tuple[Diagnostic, ...]:
    words = re.findall(r"warn=(\S+)", content.decode(errors="replace"))
    return tuple(Diagnostic(Severity.WARNING, name, word) for word in words)


def _write(name: str, content: bytes, out_dir: Path, kind: EmitKind) -> Artifact:
    data = hashlib.sha256(content + kind.value.encode()).digest()
    path = artifact_path(out_dir, name, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return Artifact(name, kind, path, len(data))


def _failed_step(name: str, message: str, step: Step) -> Failed:
    return Failed(name, Engine.TOOLCHAIN, 0.0, 0, (Diagnostic(Severity.ERROR, name, message),), step)


def _failed(item: Optimize, seconds: float, message: str) -> Failed:
    return Failed(item.name, Engine.TOOLCHAIN, seconds, 0, (Diagnostic(Severity.ERROR, item.name, message),))


def _seconds(content: bytes, pattern: bytes = rb"seconds=([\d.]+)") -> float:
    match = re.search(pattern, content) if content else None
    return float(match[1]) if match else 0.0
