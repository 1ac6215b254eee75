"""Layer: pure. What clang's driver may ask for without making results depend on what no key knows."""

from __future__ import annotations

import pytest

from workers.llvm.cc1_words import unknown_word

pytestmark = pytest.mark.pure

PLAIN = ["-triple", "x86_64-unknown-linux-gnu", "-O2", "-target-cpu", "x86-64", "-target-feature", "+avx2"]


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["-fsanitize=address"],
        ["-flto=thin", "-flto-unit"],
        ["-fdebug-compilation-dir=."],
        ["-fprofile-instrument-use-path=profile.profdata"],
        ["-D_REENTRANT"],
        ["-mllvm", "-machine-sink-split=0"],
    ],
)
def test_what_says_all_by_itself_is_known(more: list[str]) -> None:
    assert unknown_word([*PLAIN, *more]) is None


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["-fplugin=x.so"], "-fplugin=x.so"),
        (["-fpass-plugin=./p.so"], "-fpass-plugin=./p.so"),
        (["-fsanitize-ignorelist=/etc/list"], "-fsanitize-ignorelist=/etc/list"),
        (["-fdebug-compilation-dir=/home/you"], "-fdebug-compilation-dir=/home/you"),
        (["-fprofile-instrument-use-path=/tmp/other"], "-fprofile-instrument-use-path=/tmp/other"),
        (["-load", "x.so"], "-load"),
        (["-mllvm", "-load-pass-plugin=x"], "-mllvm -load-pass-plugin=x"),
        (["-mllvm"], "-mllvm "),
        (["-target-cpu", "native"], "-target-cpu native"),
        (["-target-cpu", "../x"], "-target-cpu ../x"),
        (["-fnew-option"], "-fnew-option"),
        (["-mcmodel=/dev/null"], "-mcmodel=/dev/null"),
        (["file.c"], "file.c"),
    ],
)
def test_what_may_depend_on_more_is_not(more: list[str], word: str) -> None:
    assert unknown_word([*PLAIN, *more]) == word
