"""`ltod build`: its options, and the request they make."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import attrs
import click

from coordinator._cache import Cache
from coordinator._config import BuildConfig
from coordinator.cli._exit import ExitCode
from coordinator.cli._inputs import read_build_inputs
from coordinator.cli._log import configure_logging
from coordinator.cli._progress import open_progress
from coordinator.cli._report import Outcome, json_text, passes_text, summary
from coordinator.cli._run import BuildRequest, run_build
from coordinator.cli._signals import StopSignals
from coordinator.cli._terminal import put, say
from coordinator.cli._types import EnumValue, ListOf, Seconds, Size
from lto.fat import FatLto
from lto.thin import ThinLto
from workers.errors import RequestError
from workers.work import (
    CodegenOptions,
    CodeModel,
    Diagnostic,
    EmitKind,
    Engine,
    LinkKind,
    LinkOptions,
    OptLevel,
    RelocationModel,
    Sanitizer,
    Severity,
)

__all__ = ["build"]

_Command = TypeVar("_Command", bound=Callable[..., Any])
# Whether files can be read shows when they are: click would end the whole request for one of them.
_FILE = click.Path(dir_okay=False, readable=False, path_type=Path)
_DIRECTORY = click.Path(file_okay=False, readable=False, path_type=Path)


def _switches(*switches: tuple[str, str]) -> Callable[[_Command], _Command]:
    """An option `--NAME/--no-NAME` each; neither leaves the choice to LLVM."""

    def add(command: _Command) -> _Command:
        for name, what in reversed(switches):
            command = click.option(f"--{name}/--no-{name}", default=None, help=f"{what} [default: as clang does]")(
                command
            )
        return command

    return add


@click.command(short_help="Compile modules, and link them if asked to.")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...", type=click.Path(readable=False, allow_dash=True))
@click.option("-O", "opt_level", type=EnumValue(OptLevel, "level"), default="2", help="Optimisation level [default: 2]")
@click.option(
    "--emit",
    type=ListOf(EnumValue(EmitKind, "output form")),
    multiple=True,
    default=["obj"],
    help="What to write for each module [default: obj]",
)
@click.option("--out-dir", type=_DIRECTORY, default=".", help="Where to write it [default: the current directory]")
@click.option("--link", type=EnumValue(LinkKind, "kind"), help="Link the objects to a program or library; needs -o")
@click.option("-o", "output", type=_FILE, help="What to call the linked file")
@click.option("--lto", type=click.Choice(["thin", "thin-local", "fat"]), help="Optimise across modules")
@click.option("--no-lto", "no_lto", multiple=True, metavar="MODULE", help="Keep MODULE out of LTO (repeatable)")
@click.option("--fat-partitions", type=click.IntRange(1, 256), help="Generate code in so many parts [default: by size]")
@click.option(
    "--export", "exports", multiple=True, metavar="SYMBOL", help="Keep SYMBOL visible from outside (repeatable)"
)
@click.option("--export-file", "export_files", multiple=True, type=_FILE, help="A file of such symbols, one on a line")
@click.option("--link-arg", "link_args", multiple=True, metavar="ARG", help="Pass ARG to the linker (repeatable)")
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="Run so many at once [default: one per CPU, or make's]")
@click.option("--keep-going", is_flag=True, help="Build what can be built when a module fails")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output")
@click.option("-q", "--quiet", is_flag=True, help="Show diagnostics only")
@click.option("-v", "--verbose", is_flag=True, help="Show what is started, too, and log lines")
@click.option("--target", "target_triple", metavar="TRIPLE", help="Compile for TRIPLE instead of the modules' own")
@click.option("--target-cpu", metavar="CPU", help="Compile for CPU, such as x86-64-v3")
@click.option("--target-features", multiple=True, metavar="LIST", help="Such as +avx2,-sse4a")
@click.option(
    "--relocation-model",
    type=EnumValue(RelocationModel, "relocation model"),
    help="How code refers to addresses [default: as clang does]",
)
@click.option("--code-model", type=EnumValue(CodeModel, "code model"), help="How far apart code and data may lie")
@_switches(
    ("vectorize-loops", "Vectorise loops"),
    ("vectorize-slp", "Vectorise straight-line code"),
    ("unroll-loops", "Unroll loops"),
    ("merge-functions", "Merge equal functions"),
)
@click.option("--passes", multiple=True, metavar="PIPELINE", help="Passes to run after the level's own (opt -passes=)")
@click.option("--no-prepopulate-passes", is_flag=True, help="Run those of --passes only")
@click.option("--print-passes", is_flag=True, help="Print the passes that ran, in order")
@click.option(
    "--profile-use",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Optimise by this profile (llvm-profdata merge)",
)
@click.option("--sanitize", multiple=True, type=ListOf(EnumValue(Sanitizer, "sanitizer")), help="Sanitizers to run")
@click.option("--engine", type=EnumValue(Engine, "engine"), default="auto", help="What compiles [default: auto]")
@click.option("--time-limit", type=Seconds(), default="600", help="For one module [default: 600]")
@click.option("--memory-limit", type=Size(), help="Of address space, for one run of a tool, such as 2G")
@click.option("--memory-budget", type=Size(), help="For all that runs at once [default: 80 % of what there is]")
@click.option("--toolchain", type=_DIRECTORY, metavar="DIR", help="Where clang and lld are [default: $LTOD_TOOLCHAIN]")
@click.option("--reproducer-dir", type=_DIRECTORY, help="Where crashes leave a reproducer [default: in --out-dir]")
@click.option("--cache-dir", type=_DIRECTORY, help="Where results are kept [default: see ltod cache]")
@click.option("--cache-remote", metavar="URL", help="A second cache behind it, over HTTP [default: $LTOD_CACHE_REMOTE]")
@click.option("--no-cache", is_flag=True, help="Make everything, and keep nothing")
@click.pass_obj
def build(
    signals: StopSignals,
    *,
    inputs: Sequence[str],
    opt_level: OptLevel,
    emit: Sequence[frozenset[EmitKind]],
    out_dir: Path,
    link: LinkKind | None,
    output: Path | None,
    lto: str | None,
    no_lto: tuple[str, ...],
    fat_partitions: int | None,
    exports: tuple[str, ...],
    export_files: tuple[Path, ...],
    link_args: tuple[str, ...],
    jobs: int | None,
    keep_going: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    target_triple: str | None,
    target_cpu: str | None,
    target_features: Sequence[str],
    relocation_model: RelocationModel | None,
    code_model: CodeModel | None,
    vectorize_loops: bool | None,
    vectorize_slp: bool | None,
    unroll_loops: bool | None,
    merge_functions: bool | None,
    passes: Sequence[str],
    no_prepopulate_passes: bool,
    print_passes: bool,
    profile_use: Path | None,
    sanitize: Sequence[frozenset[Sanitizer]],
    engine: Engine,
    time_limit: float,
    memory_limit: int | None,
    memory_budget: int | None,
    toolchain: Path | None,
    reproducer_dir: Path | None,
    cache_dir: Path | None,
    cache_remote: str | None,
    no_cache: bool,
) -> int:
    """Compile LLVM modules, and link them if asked to.

    INPUT is bitcode, textual IR, an object with bitcode in it (FatLTO), an archive of these, or - for standard
    input. With --link also native objects, archives of them, and shared libraries.
    """
    configure_logging(verbose, os.environ)
    for option, value in (("--target", target_triple), ("--target-cpu", target_cpu)):
        if value is not None and not value.strip():
            raise RequestError(f"{option} is empty: name one, or leave the option out")
    codegen = CodegenOptions(
        opt_level=opt_level,
        emit=frozenset().union(*emit),
        vectorize_loops=vectorize_loops,
        vectorize_slp=vectorize_slp,
        unroll_loops=unroll_loops,
        merge_functions=merge_functions,
        extra_passes=",".join(passes),
        prepopulate_passes=not no_prepopulate_passes,
        print_passes=print_passes,
        target_triple=target_triple,
        target_cpu=target_cpu,
        target_features=_features(target_features),
        relocation_model=relocation_model,
        code_model=code_model,
        profile_use=_absolute(profile_use) if profile_use is not None else None,
        sanitizers=frozenset().union(*sanitize),
        engine=engine,
        time_limit=time_limit,
        memory_limit=memory_limit,
    )
    request = BuildRequest(
        config=BuildConfig(
            out_dir=_made(out_dir),
            codegen=codegen,
            lto=_lto(lto, fat_partitions),
            link=_link_options(link, output, link_args),
            exports=(*exports, *(symbol for path in export_files for symbol in _symbols(path))),
            keep_going=keep_going,
            reproducer_dir=reproducer_dir,
        ),
        jobs=jobs,
        memory_budget=memory_budget,
        toolchain=toolchain,
        cache=_cache(cache_dir, cache_remote, no_cache),
    )
    if no_lto and lto is None:
        raise RequestError("--no-lto keeps modules out of LTO: add --lto thin or fat, or leave it out")
    outcome = _perform(request, inputs, no_lto, signals, quiet=quiet, verbose=verbose)
    signals.defer()
    if not quiet:
        say(summary(outcome))
    if as_json:
        put(json_text(outcome))
    elif lines := passes_text(outcome):
        put(lines)
    if outcome.ok:
        return ExitCode.OK
    # One that came after the outcome was known has not stopped anything.
    return signals.received.exit_code if signals.received is not None and outcome.cancelled else ExitCode.FAILED


def _perform(
    request: BuildRequest,
    arguments: Sequence[str],
    no_lto: Sequence[str],
    signals: StopSignals,
    *,
    quiet: bool,
    verbose: bool,
) -> Outcome:
    """Read the inputs and build them. Raises `RequestError`."""
    config = request.config
    with ExitStack() as stack:
        inputs = read_build_inputs(arguments, stack, no_lto, linking=config.link is not None)
        progress = open_progress(len(inputs.modules), quiet=quiet, verbose=verbose)
        for diagnostic in inputs.diagnostics:
            progress.diagnostic(diagnostic)
        diagnostics = list(inputs.diagnostics)
        result = None
        if not inputs.broken or (config.keep_going and inputs.modules):
            files = inputs.files
            if inputs.broken:
                # A program without some of its modules is none: what is missing shows up later, if at all.
                config = attrs.evolve(config, link=None)
                files = inputs.modules
            result, warnings = run_build(attrs.evolve(request, config=config), files, progress, signals)
            diagnostics += warnings
    # A signal that came when everything was there changes nothing.
    stopped = signals.received is not None and (result is None or not result.ok)
    if signals.received is not None and stopped:
        diagnostics.append(Diagnostic(Severity.ERROR, None, signals.received.message))
    return Outcome(
        modules=[module.name for module in inputs.modules],
        out_dir=config.out_dir,
        link=config.link,
        result=result,
        diagnostics=diagnostics,
        cancelled=stopped,
        print_passes=config.codegen.print_passes,
    )


def _features(lists: Sequence[str]) -> tuple[str, ...]:
    """`+name` and `-name` each, of lists with commas between them. Raises `RequestError`."""
    features = tuple(feature.strip() for text in lists for feature in text.split(",") if feature.strip())
    for feature in features:
        if feature[0] not in "+-" or len(feature) == 1:
            raise RequestError(f"--target-features: {feature!r} neither adds nor removes: write +{feature.strip('+-')}")
    return features


def _lto(kind: str | None, partitions: int | None) -> ThinLto | FatLto | None:
    """Which LTO to do. Raises `RequestError` where the options do not go together."""
    if partitions is not None and kind != "fat":
        raise RequestError("--fat-partitions is for fat LTO: add --lto fat, or leave it out")
    match kind:
        case None:
            return None
        case "fat":
            return FatLto(partitions)
        case _:
            return ThinLto(local=kind == "thin-local")


def _cache(directory: Path | None, remote: str | None, without: bool) -> Cache | None:
    """Where results are kept. Raises `RequestError` where the options do not go together."""
    if not without:
        return Cache(directory=directory, remote=remote)
    if directory is not None or remote is not None:
        raise RequestError("--no-cache with a cache: name one or leave it out, not both")
    return None


def _symbols(path: Path) -> list[str]:
    """One symbol on each line; empty lines and those that begin with `#` do not count. Raises `RequestError`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--export-file {path} cannot be read: {error}") from error
    return [symbol for line in lines if (symbol := line.strip()) and not symbol.startswith("#")]


def _link_options(kind: LinkKind | None, output: Path | None, arguments: tuple[str, ...]) -> LinkOptions | None:
    """What to link. Raises `RequestError` where the options do not go together."""
    if kind is None:
        if output is not None:
            raise RequestError(
                "-o names what is linked: add --link exe, shared or static. "
                "Without it every module is a file of its own, named after it, in --out-dir"
            )
        if arguments:
            raise RequestError("--link-arg goes to the linker: add --link exe, shared or static")
        return None
    if output is None:
        raise RequestError(f"--link {kind.value} needs a name for what it makes: add -o FILE")
    output = _absolute(output)
    _made(output.parent)
    return LinkOptions(kind, output, arguments=arguments)


def _made(directory: Path) -> Path:
    """The directory, absolute, after it has been made where it was missing. Raises `RequestError`."""
    directory = _absolute(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"the directory {directory} cannot be made: {error.strerror}") from error
    return directory


def _absolute(path: Path) -> Path:
    """The path from the root, without `..`: 'a/../b' must not need an 'a'."""
    return Path(os.path.abspath(path))  # noqa: PTH100  # see above
