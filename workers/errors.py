"""The three families of error that leave ltod; every foreign exception is translated into one of them at a seam.

* `RequestError`: what was asked for is wrong. Nothing was started; ask differently.
* `ModuleError`: one module cannot be built. The build it belongs to fails, other builds do not notice.
* `InternalError`: ltod itself is wrong. It is never caught inside ltod.
"""

from __future__ import annotations

__all__ = ["InternalError", "ModuleError", "RequestError"]


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
