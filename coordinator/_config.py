"""What a build is asked to make."""

from __future__ import annotations

from pathlib import Path

from attrs import field, frozen

from lto.fat import FatLto
from lto.thin import ThinLto
from workers.errors import RequestError
from workers.fat import PARTITION_PREFIX
from workers.work import LINKABLE, CodegenOptions, LinkKind, LinkOptions, typed, typed_members

__all__ = ["BuildConfig", "check_config"]

_DEFAULTS = CodegenOptions()


@frozen(kw_only=True)
class BuildConfig:
    """What to build.

    `out_dir` is made when it is missing. `name` is for logs. With `keep_going` a failure does not stop the other
    modules. `reproducer_dir` is where failures that need one leave a reproducer; `None` is `reproducers` in
    `out_dir`.

    `exports` names the symbols that stay visible from outside. By default these are what a program or shared library
    has to export, and everything where nothing is linked, or a static library is made.
    """

    out_dir: Path = field(validator=typed(Path))
    codegen: CodegenOptions = field(default=_DEFAULTS, validator=typed(CodegenOptions))
    lto: ThinLto | FatLto | None = field(default=None, validator=typed(ThinLto, FatLto, None))
    link: LinkOptions | None = field(default=None, validator=typed(LinkOptions, None))
    exports: tuple[str, ...] = field(default=(), validator=typed_members(tuple, str))
    keep_going: bool = False
    reproducer_dir: Path | None = field(default=None, validator=typed(Path, None))
    name: str = "build"


def check_config(config: BuildConfig) -> None:
    """What contradicts itself whatever the modules. Raises `RequestError`."""
    if config.link is not None and not config.codegen.emit & LINKABLE:
        raise RequestError("linking needs objects: add 'obj' to what is emitted")
    linked = config.link is not None and config.link.kind is not LinkKind.STATIC
    if config.exports and config.lto is None and not linked:
        raise RequestError("exports mean something for programs, shared libraries and with LTO: objects hide nothing")
    if config.exports and isinstance(config.lto, ThinLto) and config.lto.local:
        raise RequestError("exports with thin-local LTO, which leaves every symbol visible: ask for thin LTO")
    if config.link is not None and config.link.output.absolute().parent == config.out_dir.absolute():
        name = config.link.output.name
        if isinstance(config.lto, FatLto) and name.startswith(PARTITION_PREFIX):
            raise RequestError(f"{config.link.output} is what fat LTO may call an output of its own: choose another")
    for symbol in config.exports:
        if not symbol or not symbol.isprintable():
            raise RequestError(f"{symbol!r} cannot be the name of a symbol to export")
