"""Layer: end-to-end. What README.md shows works: its programs run, its options and keys exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import ltod, ltod_json, write
from tests.samples import GOOD_IR, compile_c, small_c

pytestmark = pytest.mark.e2e

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.parametrize("program", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_an_example_of_embedding_runs(place: Path, program: str) -> None:
    compile_c({f"m{n}": small_c(n, 3) for n in range(3)}, place / "bc")
    write("example.py", program)
    process = subprocess.run([sys.executable, "example.py"], capture_output=True, timeout=120, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert sorted(path.name for path in (place / "out").iterdir()) == ["m0.o", "m1.o", "m2.o"]
    assert str(place / "out/m2.o") in process.stdout


def test_every_option_that_is_shown_exists_and_the_other_way_round(place: Path) -> None:
    section = README.partition("## `ltod build`")[2].partition("###")[0]
    shown = re.findall(r"(?<![\w-])--[a-z\[][a-z\[\]-]*[a-z]", section)
    options = {name for option in shown for name in both(option)}
    offered = set(re.findall(r"--[a-z][a-z-]*[a-z]", ltod("build", "--help").stdout))
    # The short forms of these are shown.
    assert offered - options == {"--jobs", "--quiet", "--verbose", "--help"}
    assert options <= offered


def both(option: str) -> list[str]:
    if "[no-]" in option:
        return [option.replace("[no-]", ""), option.replace("[no-]", "no-")]
    return [option]


def test_every_key_of_the_object_is_described(place: Path) -> None:
    write("good.ll", GOOD_IR)
    table = README.partition("| key | value |")[2].partition("\n\n")[0]
    answer = ltod_json("good.ll", "--out-dir", "out", "--print-passes")
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == list(answer)
    for key in ("artifacts", "items"):
        [row] = re.findall(rf"^\| `{key}` \|.*$", table, re.MULTILINE)
        assert all(f"`{name}`" in row for name in answer[key][0])


def test_the_commands_are_there() -> None:
    root = Path(__file__).parents[1]
    for name in re.findall(r"^\./(\S+)", README, re.MULTILINE):
        assert (root / name).stat().st_mode & 0o111, name


def test_the_example_of_a_failing_llvm_can_be_followed(place: Path) -> None:
    section = README.partition("## When LLVM fails")[2].partition("\n## ")[0]
    [script] = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    [(command, shown)] = re.findall(r"```console\n\$ ltod (.*)\n(error: .*)\n", section)
    Path("build").mkdir()
    subprocess.run(["sh", "-c", script], check=True)
    process = ltod(*command.split())
    assert process.returncode == 1
    assert process.stderr.startswith(shown + "\n  reproduce with: ")
    assert (place / "build/out/reproducers/abort/repro.sh").exists()


def test_the_tour_writes_where_git_looks_away() -> None:
    written = re.findall(r"(?:--out-dir| >) (\S+)", "".join(re.findall(r"^\$ .*$", README, re.MULTILINE)))
    assert written
    assert all(path.startswith("build/") for path in written)
