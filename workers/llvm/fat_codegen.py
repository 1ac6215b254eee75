"""The second step of fat LTO: a part of the program goes through ld.lld alone, as a relocatable link of one module.

lld runs what is left of the pipeline and generates code, as it would have done in the merge. Everything in a part is
kept: what the program does not need is gone by then.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import trio
from attrs import define, evolve, field, frozen

from workers.action import Action, ActionResult, run
from workers.errors import InternalError
from workers.fat import FatPartition
from workers.llvm.bitstream import BitcodeError
from workers.llvm.content import ContentError, open_file
from workers.llvm.failures import judge
from workers.llvm.fat_crash import place_of_crash
from workers.llvm.fat_symbols import Promotion, hidden_names, promoted, rename_promoted
from workers.llvm.one_module import Tools, is_foreign
from workers.llvm.passes import PassReader
from workers.llvm.planner import tool_name
from workers.llvm.reproducer import Reproducer, write_reproducer
from workers.llvm.sections import ObjectError
from workers.placing import place
from workers.work import (
    Artifact,
    CodegenOptions,
    Diagnostic,
    EmitKind,
    Engine,
    Failed,
    Finished,
    Severity,
    Step,
    artifact_path,
    count,
)

__all__ = ["FatProgram", "fat_codegen"]

_NOTHING = "no-op-module"
_INPUT = "part.bc"
_OUTPUT = {
    EmitKind.OBJECT: "output.o",
    EmitKind.ASSEMBLY: "output.lto.s",  # lld appends to the name that it is told
    EmitKind.BITCODE: "output.bc",
    EmitKind.IR: "output.ll",
}


@frozen(kw_only=True)
class FatProgram:
    """What the parts of one program have in common: how code is generated for them, and where it goes.

    `arguments` are lld's, `pipeline` is what it runs before (`None`: nothing is left to run), `names` are those that
    symbols keep in objects (`None`: all), `owners` the modules that symbols are defined in, as far as that is clear;
    `time_limit` is in seconds for one part.
    """

    options: CodegenOptions
    arguments: tuple[str, ...]
    pipeline: str | None
    names: Promotion | None
    owners: Mapping[str, str] = field(repr=count)
    triple: str
    out_dir: Path
    reproducer_dir: Path
    time_limit: float


async def fat_codegen(partition: FatPartition, tools: Tools) -> Finished | Failed:
    """Generate code for a partition; the contract is `workers.fat.FatLtoBackend`'s."""
    if not isinstance(partition.link, FatProgram):
        raise InternalError(f"{partition.name} is a partition of another backend")
    part = _Part(partition, partition.link, tools)
    artifacts = []
    for kind in EmitKind:
        if kind in partition.link.options.emit:
            artifact = await part.emit(kind)
            if artifact is None:
                return Failed(
                    partition.name,
                    Engine.TOOLCHAIN,
                    part.seconds,
                    part.peak,
                    tuple(part.diagnostics),
                    Step.FAT_CODEGEN,
                )
            artifacts.append(artifact)
    return Finished(
        partition.name,
        tuple(artifacts),
        Engine.TOOLCHAIN,
        part.seconds,
        part.peak,
        tuple(dict.fromkeys(part.diagnostics)),
        tuple(part.passes),
        Step.FAT_CODEGEN,
    )


@define
class _Part:
    partition: FatPartition
    program: FatProgram
    tools: Tools
    seconds: float = 0.0
    peak: int = 0
    diagnostics: list[Diagnostic] = field(factory=list)
    passes: list[str] = field(factory=list)

    async def emit(self, kind: EmitKind) -> Artifact | None:
        """Make one kind of output and put it into its place; `None` if that failed."""
        destination = artifact_path(self.program.out_dir, self.partition.name, kind)
        if kind is EmitKind.IR:
            bitcode = self.partition.bitcode.with_suffix(".final")
            if await self.run(EmitKind.BITCODE, self.lld(EmitKind.BITCODE), self.partition.bitcode, bitcode) is None:
                return None
            size = await self.run(kind, self.disassembler(), bitcode, destination)
        else:
            size = await self.run(kind, self.lld(kind), self.partition.bitcode, destination)
        return None if size is None else Artifact(self.partition.name, kind, destination, size)

    def lld(self, kind: EmitKind) -> tuple[str, ...]:
        program, lld, output = self.program, self.tools.toolchain.lld, _OUTPUT[kind]
        if lld is None:
            raise InternalError("a part of a program without ld.lld: it was made by one")
        argv = [*lld, "-r", "--no-dependent-libraries", *program.arguments]
        argv.append(f"--lto-newpm-passes={program.pipeline or _NOTHING}")
        match kind:
            case EmitKind.OBJECT:
                argv += [f"--lto-obj-path={output}", "-o", "linked.o"]
            case EmitKind.ASSEMBLY:
                argv += ["--lto-emit-asm", "-o", output.removesuffix(".lto.s")]
            case EmitKind.BITCODE:
                argv += ["--lto-emit-llvm", "-o", output]
            case _:
                raise InternalError(f"lld does not make {kind.value} of a part")
        if program.options.print_passes and kind is not EmitKind.BITCODE:
            argv.append("--mllvm=-debug-pass=Executions")
        return (*argv, _INPUT)

    def disassembler(self) -> tuple[str, ...]:
        cc1 = ("-cc1", "-triple", self.program.triple, "-Wno-override-module", "-emit-llvm", "-disable-llvm-passes")
        return (*self.tools.toolchain.clang, *cc1, "-o", _OUTPUT[EmitKind.IR], "-x", "ir", _INPUT)

    async def run(self, kind: EmitKind, argv: tuple[str, ...], source: Path, destination: Path) -> int | None:
        """One run of a tool, with its output at `destination` if all is well. Returns the output's bytes."""
        options, output = self.program.options, _OUTPUT[kind]
        action = Action(
            argv=argv,
            inputs={_INPUT: source},
            outputs=(output,),
            time_limit=self.program.time_limit - self.seconds,
            memory_limit=options.memory_limit,
        )
        reader = PassReader()
        async with run(action, self.tools.scratch, stderr_to=reader.read if options.print_passes else None) as result:
            if options.print_passes:
                result = evolve(result, stderr=reader.diagnostics())
            self.seconds += result.seconds
            self.peak = max(self.peak, result.peak_rss_bytes)
            if not self.passes:
                self.passes += reader.passes
            written = result.directory / output
            if result.succeeded and is_foreign(kind, written):
                result = evolve(result, missing=(output,))
            if await self.has_failed(action, result):
                return None
            try:
                if kind is EmitKind.OBJECT and self.program.names is not None:
                    await trio.to_thread.run_sync(_rename, written, self.program.names, self.partition.bitcode)
                return place(written, destination)
            except ObjectError as error:
                self.error(f"ld.lld wrote {error}")
            except (BitcodeError, ContentError) as error:
                self.error(f"its bitcode cannot be read: {error}")
            except OSError as error:
                self.error(f"cannot write {destination}: {error.strerror or error}")
            return None

    async def has_failed(self, action: Action, result: ActionResult) -> bool:
        """Take down what the tool said."""
        verdict = judge(
            result,
            tool=tool_name(action.argv),
            names={_INPUT: self.partition.name},
            time_limit=self.program.time_limit,
            memory_limit=action.memory_limit,
            out_of_memory=result.signal is not None and self.tools.oom.killed_again(),
        )
        if verdict.fault:
            message = verdict.messages[0].text
            again = evolve(action, inputs={name: result.directory / name for name in action.inputs})
            place = await place_of_crash(again, result, self.tools.scratch)
            if place is not None:
                message = f"{message}\n{place.described(self.program.owners)}"
            await trio.to_thread.run_sync(self.reproduce, message, action, result)
        else:
            name = self.partition.name
            self.diagnostics += [Diagnostic(one.severity, name, one.text) for one in verdict.messages]
        return verdict.failed

    def reproduce(self, message: str, action: Action, result: ActionResult) -> None:
        reproducer = Reproducer(
            module=self.partition.name,
            message=message,
            argv=action.argv,
            inputs={name: result.directory / name for name in action.inputs},
            stderr=result.stderr,
            versions=self.tools.versions(),
            hang=self.program.time_limit if result.timed_out else None,
            memory_limit=action.memory_limit,
        )
        parent = self.program.reproducer_dir
        try:
            where = write_reproducer(parent, reproducer)
        except OSError as error:
            self.error(f"{message}\n(no reproducer: {error.strerror or error}, {parent})")
        else:
            self.diagnostics.append(Diagnostic(Severity.ERROR, self.partition.name, message, where))

    def error(self, message: str) -> None:
        self.diagnostics.append(Diagnostic(Severity.ERROR, self.partition.name, message))


def _rename(path: Path, names: Promotion, bitcode: Path) -> None:
    with open_file(bitcode) as view:
        hidden = hidden_names(view)
    path.write_bytes(rename_promoted(path.read_bytes(), promoted(hidden, names), names.suffix))
