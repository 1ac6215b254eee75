"""The three families of error that leave ltod; every foreign exception is translated into one of them at a seam.

* `RequestError`: what was asked for is wrong. Nothing was started; ask differently.
* `ModuleError`: one module cannot be built. The build it belongs to fails, other builds do not notice.
* `InternalError`: ltod itself is wrong. It is never caught inside ltod.
"""

from __future__ import annotations

import traceback
from pathlib import Path

__all__ = ["InternalError", "ModuleError", "RequestError", "bug_message"]


class RequestError(ValueError):
    """The request is wrong: an unknown option value, a duplicate name, an option the tool does not have.

    The message says what is wrong and what to do. The command line ends with exit code 2.
    """


class ModuleError(Exception):
    """One module cannot be built, and `module` says which.

    The message says what is wrong and what to do, without repeating the module's name.
    """

    def __init__(self, module: str, message: str) -> None:
        super().__init__(module, message)
        self.module = module
        self.message = message

    def __str__(self) -> str:
        return f"{self.module}: {self.message}"


class InternalError(RuntimeError):
    """An invariant of ltod does not hold. Please report it with the story it carries."""


def bug_message(error: Exception) -> str:
    """What to say of an exception that nothing should have raised: where it came from, and out of which group."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({Path(one.filename).name}:{one.lineno})" for one in frame)
    return f"internal error, please report it: {type(error).__name__}: {error}{where}"
