"""What a module is made into, as far as it decides which of LLVM's pipelines runs."""

from __future__ import annotations

import enum
from typing import assert_never

from workers.work import PreLink

__all__ = ["Form"]


class Form(enum.Enum):
    """What a module is on its way to; the value is what the driver is told, for it decides which pipeline runs."""

    # Text: of an empty tuple, the enum module of Python 3.11.2, which is Debian 12's, makes something else.
    CODE = ""
    THIN = "-flto=thin"
    FAT = "-flto=full"
    UNIFIED = "-flto=thin -funified-lto"
    """Bitcode for either kind of LTO."""
    FAT_OBJECT = "-flto=thin -funified-lto -ffat-lto-objects"
    """An object with bitcode for either kind of LTO, in a single run."""

    @property
    def is_bitcode(self) -> bool:
        """Whether it is bitcode for LTO."""
        return self in (Form.THIN, Form.FAT, Form.UNIFIED)

    @classmethod
    def of(cls, pre_link: PreLink) -> Form:
        """The bitcode that a pre-link pipeline ends with."""
        match pre_link:
            case PreLink.THIN:
                return cls.THIN
            case PreLink.FAT:
                return cls.FAT
        assert_never(pre_link)
