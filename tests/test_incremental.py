"""Layer: e2e. After an edit, exactly what sees it is compiled again, and the program is that of a cold build."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from coordinator import CacheOutcome, CodegenOptions, OptLevel, Step, ThinLto
from tests.incremental_lab import Lab
from tests.samples import TRIPLE, zig

pytestmark = pytest.mark.e2e

MAIN = """
int add(int, int); int twice(int); int other(int);
int main(int argc, char **argv) { return add(argc, 1) + twice(argc) + other(argc); }
"""
PROGRAM = {
    "main": MAIN,
    "add": "int add(int a, int b) { return a + b; }\n",
    "twice": "int twice(int a) { return a * 2; }\nint unused(int a) { return a - 9; }\n",
    "other": "int far(int); int other(int a) { return far(a) + 1; }\n",
    "far": "int far(int a) { return a ^ 5; }\nint hidden(int a) { return a ^ 77; }\n",
}


def calling(function: str) -> str:
    """`main`, with one more call."""
    return f"int {function}(int);" + MAIN.replace("other(argc);", f"other(argc) + {function}(argc);")


@frozen
class Edit:
    """What becomes of the program's modules, what has to be compiled again then, and words of the reasons."""

    name: str
    changes: dict[str, str]
    again: set[str]
    words: dict[str, str]


EDITS = [
    Edit(
        "the body of an imported function changed",
        {"add": "int add(int a, int b) { return a - b; }\n"},
        {"add", "main"},
        {"main": "`add`", "add": "its own code changed"},
    ),
    Edit(
        "a body deep down changed",
        {"far": PROGRAM["far"].replace("5", "6")},
        {"far", "other", "main"},
        {"far": "its own code changed", "other": "`far`"},
    ),
    Edit(
        "import added",
        {"main": calling("far")},
        {"main"},
        {"main": "its own code changed"},
    ),
    Edit(
        "import removed",
        {"main": MAIN.replace(" + twice(argc)", "")},
        {"main", "twice"},
        {"main": "its own code changed", "twice": "`twice`"},
    ),
    Edit(
        "export added",
        {"main": calling("unused")},
        {"main", "twice"},
        {"twice": "`unused`"},
    ),
    Edit(
        "export removed",
        {"other": "int other(int a) { return 1 - a; }\n"},
        {"main", "other", "far"},
        {"far": "`far`"},
    ),
    Edit(
        "function moved between modules",
        {
            "twice": "int unused(int a) { return a - 9; }\n",
            "add": PROGRAM["add"] + "int twice(int a) { return a * 2; }\n",
        },
        {"main", "add", "twice"},
        {"main": "`twice`"},
    ),
    Edit(
        "a dead symbol came alive in a module that nobody else looks into",
        {"far": PROGRAM["far"].replace("a ^ 5", "hidden(a) ^ 5").replace("int far", "int hidden(int);\nint far")},
        {"far", "other", "main"},
        {"far": "its own code changed"},
    ),
    Edit("nothing changed", {}, set(), {}),
]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name)
async def test_exactly_what_sees_an_edit_is_compiled_again(edit: Edit, tmp_path: Path) -> None:
    lab = Lab(tmp_path, ThinLto())
    first = await lab.twins(PROGRAM)
    assert first.made(Step.THIN_BACKEND) == set(PROGRAM)
    again = await lab.twins({**PROGRAM, **edit.changes})
    assert again.made(Step.THIN_BACKEND) == edit.again
    assert again.made(Step.PRE_LINK) == set(edit.changes)
    for module, words in edit.words.items():
        assert words in again.reason(module, Step.THIN_BACKEND)
    # What was made before need not be made again.
    assert (await lab.twins(PROGRAM)).made(Step.THIN_BACKEND) == set()


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name)
def test_lld_compiles_no_less(edit: Edit, tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    def entries(sources: dict[str, str]) -> set[Path]:
        objects = []
        for name, text in sources.items():
            (tmp_path / f"{name}.c").write_text(text)
            flags = ["-O2", "-flto=thin", "-flto-unit", "-emit-llvm-bc", "-triple", TRIPLE]
            subprocess.run([zig(), "clang", "-cc1", *flags, f"{name}.c", "-o", f"{name}.o"], check=True, cwd=tmp_path)
            objects.append(f"{name}.o")
        command = [zig(), "ld.lld", "-pie", "-e", "main", *objects, f"--thinlto-cache-dir={cache}", "-o", "program"]
        subprocess.run(command, check=True, cwd=tmp_path)
        return set(cache.glob("llvmcache-*"))

    before = entries(PROGRAM)
    assert len(before) == len(PROGRAM)
    assert len(entries({**PROGRAM, **edit.changes}) - before) >= len(edit.again)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"options": CodegenOptions(opt_level=OptLevel.O3)}, "-O2 became -O3"),
        ({"options": CodegenOptions(vectorize_loops=False)}, "vectorize-loops"),
        ({"options": CodegenOptions(target_cpu="x86-64-v3")}, "x86-64-v3"),
        ({"options": CodegenOptions(target_features=("+avx2",))}, "+avx2"),
        ({"arguments": ("-Wl,-mllvm,-inline-threshold=1",)}, "-inline-threshold=1"),
        ({"arguments": ("-Wl,--lto-O1",)}, "lto-O"),
    ],
    ids=str,
)
async def test_an_option_that_may_change_objects_is_a_miss(change: Any, words: str, tmp_path: Path) -> None:
    lab = Lab(tmp_path, ThinLto())
    await lab.build(PROGRAM)
    again = await lab.twins(PROGRAM, **change)
    assert again.made(Step.THIN_BACKEND) == set(PROGRAM)
    assert words in again.reason("main", Step.THIN_BACKEND)


@pytest.mark.parametrize(
    "arguments",
    [("-Wl,--gc-sections",), ("-Wl,-rpath,/nowhere",), ("-Wl,-Map=/dev/null",), ("-Wl,--build-id=sha1",), ("-Wl,-O2",)],
    ids=str,
)
async def test_an_option_that_is_for_the_linker_alone_is_a_hit(arguments: tuple[str, ...], tmp_path: Path) -> None:
    lab = Lab(tmp_path, ThinLto())
    await lab.build(PROGRAM)
    again = await lab.twins(PROGRAM, arguments=arguments)
    assert again.outcomes(Step.THIN_BACKEND) == {CacheOutcome.HIT}


async def test_an_option_that_is_not_known_to_be_safe_is_neither(tmp_path: Path) -> None:
    lab = Lab(tmp_path, ThinLto())
    for _ in range(2):
        built = await lab.build(PROGRAM, arguments=("-Wl,-mllvm,-print-after-all",))
        assert built.outcomes(Step.THIN_BACKEND) == {CacheOutcome.OFF}
        (warning,) = (one for one in built.result.diagnostics if "not cached" in one.message)
        assert "-print-after-all" in warning.message


@pytest.mark.skipif(not Path("/usr/bin/clang-22").exists(), reason="there is no second clang of this version")
async def test_another_build_of_the_same_compiler_is_a_miss(tmp_path: Path) -> None:
    lab = Lab(tmp_path, ThinLto())
    await lab.build(PROGRAM)
    again = await lab.build(PROGRAM, toolchain=Path("/usr/bin"))
    assert again.made(Step.THIN_BACKEND) == set(PROGRAM)
    assert "the compiler changed" in again.reason("main", Step.THIN_BACKEND)


async def test_a_moved_checkout_is_all_hits(tmp_path: Path) -> None:
    lab = Lab(tmp_path, ThinLto())
    await lab.build(PROGRAM)
    moved = Lab(tmp_path / "elsewhere", ThinLto())
    moved.cache = lab.cache
    built = await moved.twins(PROGRAM, out="another/output")
    assert built.outcomes(Step.THIN_BACKEND) == {CacheOutcome.HIT}
    assert built.outcomes(Step.PRE_LINK) == {CacheOutcome.HIT}
    assert "in another build" in built.reason("main", Step.THIN_BACKEND)
