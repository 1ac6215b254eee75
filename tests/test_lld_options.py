"""Layer: process. lld knows the options that we know, and takes values as we think."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.samples import zig
from workers.llvm.lld_options import _BY_SPELLING, Effect, Word, parsed

pytestmark = pytest.mark.process

_TELLS = {"-v", "-V", "-version", "--version", "-help", "--help"}
"""Options after which lld does nothing else."""


def asked(*words: str) -> str:
    """What lld says about words."""
    said = subprocess.run([zig(), "ld.lld", "-shared", "-o", "/dev/null", *words], capture_output=True, check=False)
    return said.stderr.decode()


def test_lld_takes_the_next_word_where_we_think_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for spelling, option in _BY_SPELLING.items():
        if spelling not in _TELLS:
            said = asked(spelling)
            assert "unknown argument" not in said, spelling
            assert ("missing argument" in said) is option.takes_next, spelling
            if not option.takes_rest:
                read = list(parsed([spelling + "x"]))
                assert ("unknown argument" in asked(spelling + "x", "--error-limit=0")) is (
                    read == [Word(Effect.UNKNOWN, spelling + "x")]
                ), spelling


def test_no_option_of_lld_is_unknown() -> None:
    listed = subprocess.run([zig(), "ld.lld", "--help"], capture_output=True, check=True, text=True).stdout
    names = re.findall(r"^  (-\S+)", listed, re.MULTILINE)
    assert len(names) > 250
    for name in names:
        (word, *_) = parsed([re.sub(r"[<\[].*|(?<==)\w+$", "", name) if "icf" not in name else name])
        assert word.effect is not Effect.UNKNOWN, name
