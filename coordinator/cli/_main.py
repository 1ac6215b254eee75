"""One command of ltod, and its outcome as an exit code."""

from __future__ import annotations

import gc
import importlib
import itertools
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import NoReturn

import click

from coordinator.cli._exit import ExitCode, Interrupted
from coordinator.cli._report import Outcome, json_text
from coordinator.cli._signals import StopSignals
from coordinator.cli._terminal import OutputError, open_missing_descriptors, put, say
from workers.errors import RequestError
from workers.work import Diagnostic, Severity

__all__ = ["run"]

_COMPLETE = "_LTOD_COMPLETE"

_ELSEWHERE = ("build", "cache", "doctor", "explain", "stats")
"""Commands in modules of their own, which are loaded when they are asked for: a build that finds everything in the
cache takes hardly longer than that."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted((*_ELSEWHERE, *super().list_commands(ctx)))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(importlib.import_module(f"coordinator.cli._{cmd_name}"), cmd_name)
        return command


def _print_version(ctx: click.Context, option: click.Parameter, wanted: bool) -> None:
    from coordinator.cli._doctor import print_version  # as above

    print_version(ctx, option, wanted)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the versions of ltod and of its LLVMs, and exit.",
)
def ltod() -> None:
    """Build LLVM modules into objects, libraries and programs."""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print the script that lets SHELL complete ltod's options and their values.

    To try it in bash: source <(ltod completion bash)
    """
    from click.shell_completion import get_completion_class  # only here

    kind = get_completion_class(shell)
    if kind is None:
        raise RequestError(f"this version of click cannot complete for {shell}")
    put(kind(ltod, {}, "ltod", _COMPLETE).source())
    return ExitCode.OK


ltod.add_command(completion)


def run(mask: Iterable[int]) -> NoReturn:
    """Run ltod with the arguments of this process, and exit. Signals are blocked until then; `mask` lets them in."""
    arguments = sys.argv[1:]
    open_missing_descriptors()
    with StopSignals() as signals:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            code = _run(arguments, signals)
            signals.defer()
        except Interrupted as interrupted:
            code = _give_up(interrupted.exit_code, interrupted.message, arguments, signals)
    # The interpreter would look through everything for cycles before it ends, for a tenth of a second in some runs.
    gc.freeze()
    sys.exit(code)


def _run(arguments: Sequence[str], signals: StopSignals) -> int:
    """One command; every way in which it can go wrong by itself ends here."""
    try:
        code = ltod.main(list(arguments), prog_name="ltod", complete_var=_COMPLETE, standalone_mode=False, obj=signals)
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message())
        return ExitCode.USAGE
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "ltod"
        message = f"{error.format_message().rstrip('.')} (see '{command} --help')"
        return _give_up(ExitCode.USAGE, message, arguments, signals)
    except RequestError as error:
        return _give_up(ExitCode.USAGE, str(error), arguments, signals)
    except OutputError as error:
        say(f"error: {error}")
        return ExitCode.FAILED
    except Exception as error:
        if isinstance(error, FileNotFoundError) and _is_lost():
            message = "the current directory has been removed: change to one that is there"
            return _give_up(ExitCode.USAGE, message, arguments, signals)
        say("this is a bug in ltod, please report it with all of the following:\n" + traceback.format_exc())
        return _give_up(ExitCode.BUG, f"internal error: {type(error).__name__}: {error}", arguments, signals)
    return code if isinstance(code, int) else ExitCode.OK


def _is_lost() -> bool:
    """Whether the current directory is gone, so that no relative path means anything."""
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        return True
    return False


def _give_up(code: int, message: str, arguments: Sequence[str], signals: StopSignals) -> int:
    """Say why there is no result. Who asked for an object gets one, even where the arguments made no sense."""
    signals.defer()
    diagnostic = Diagnostic(Severity.ERROR, None, message)
    say(str(diagnostic))
    if "--json" in itertools.takewhile(lambda argument: argument != "--", arguments):
        try:
            put(json_text(Outcome(diagnostics=[diagnostic], cancelled=code > 128)))
        except OutputError as error:
            say(f"error: {error}")
    return code
