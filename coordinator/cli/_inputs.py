"""From the inputs on the command line to modules and to what the linker gets beside them."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from attrs import evolve, frozen

from workers.errors import RequestError
from workers.keeper import kept_directory
from workers.llvm.inputs import NativeMember, read_inputs
from workers.work import Diagnostic, Module, Severity

__all__ = ["BuildInputs", "NativeInput", "read_build_inputs"]


@frozen
class NativeInput:
    """What only the linker needs; a `lazy` one is a member of an archive, in a file of its own."""

    path: Path
    lazy: bool = False


@frozen
class BuildInputs:
    """Modules, and native inputs if something is linked, in the order of the command line.

    `broken` if some input is of no use.
    """

    files: Sequence[Module | NativeInput]
    diagnostics: Sequence[Diagnostic]
    broken: bool

    @property
    def modules(self) -> Sequence[Module]:
        """The modules alone."""
        return [file for file in self.files if isinstance(file, Module)]


def read_build_inputs(
    arguments: Sequence[str], stack: ExitStack, no_lto: Sequence[str] = (), *, linking: bool
) -> BuildInputs:
    """Read the inputs; temporary files live as long as `stack`. `no_lto` names modules that stay out of LTO.

    Raises `RequestError` where there is nothing to do, or no such module.
    """
    found = read_inputs(arguments, _read_stdin)
    diagnostics = [Diagnostic(Severity.ERROR, problem.module, problem.message) for problem in found.problems]
    native = [path for path in found.link_inputs if isinstance(path, Path)]
    members = Counter(member.archive for member in found.link_inputs if isinstance(member, NativeMember))
    if not linking:
        if native:
            raise RequestError(f"{native[0]} has no bitcode in it, it can only be linked: add --link, or leave it out")
        for archive, count in members.items():
            what = "1 member without bitcode is" if count == 1 else f"{count} members without bitcode are"
            message = f"{what} left out, as nothing is linked: add --link if that is needed"
            diagnostics.append(Diagnostic(Severity.WARNING, str(archive), message))
    if not found.modules and not found.problems:
        raise RequestError("there is no module in the inputs: give bitcode, textual IR, or archives or objects of it")
    directory = Path()
    if linking and members:
        parent = Path(tempfile.gettempdir())
        try:
            directory = stack.enter_context(kept_directory(parent, "ltod-native-"))
        except OSError as error:
            raise RequestError(f"cannot make temporary files in {parent}: {error.strerror}; set TMPDIR") from error
    files: list[Module | NativeInput] = []
    for number, file in enumerate(_without_lto(found.files, no_lto)):
        if isinstance(file, Module):
            files.append(file)
        elif isinstance(file, NativeMember):
            if linking:
                files.append(NativeInput(_extract(file, directory / str(number)), lazy=True))
        elif linking:
            files.append(NativeInput(file))
    return BuildInputs(files, diagnostics, bool(found.problems))


def _without_lto(
    files: Sequence[Module | Path | NativeMember], names: Sequence[str]
) -> list[Module | Path | NativeMember]:
    """`files` with the modules called `names`, by the module's name or by its file, kept out of LTO."""
    out = list(files)
    for name in names:
        chosen = [
            (index, file)
            for index, file in enumerate(files)
            if isinstance(file, Module)
            and (file.name == name or (isinstance(file.content, Path) and file.content == Path(name).absolute()))
        ]
        if not chosen:
            raise RequestError(f"--no-lto {name}: there is no such module in the inputs")
        for index, module in chosen:
            out[index] = evolve(module, lto=False)
    return out


def _read_stdin() -> bytes:
    with open(0, "rb", closefd=False) as stdin:  # a descriptor
        return stdin.read()


def _extract(member: NativeMember, directory: Path) -> Path:
    """A member of an archive as a file of its own. Raises `RequestError` if that is not possible."""
    path = directory / (os.path.basename(member.name) or "member.o")  # noqa: PTH119  # may be a path of any system
    try:
        directory.mkdir()
        with member.archive.open("rb") as archive:
            archive.seek(member.offset)
            path.write_bytes(archive.read(member.size))
    except OSError as error:
        raise RequestError(f"{member.archive}({member.name}) cannot be taken out: {error.strerror}") from error
    return path
