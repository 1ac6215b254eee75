"""Layer: e2e. What is made again after an edit without LTO, and with fat LTO; and whatever happens to the cache."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from coordinator import CacheOutcome, CodegenOptions, FatLto, OptLevel, Step, ThinLto
from tests.edited_program import Program
from tests.incremental_lab import Lab

pytestmark = pytest.mark.e2e


def program() -> dict[str, str]:
    """Modules with functions of a size that is worth a partition."""
    return Program(random.Random(3), modules=12).sources()


def edited(sources: dict[str, str]) -> dict[str, str]:
    """One constant changed, in a function of one module."""
    name = "m07"
    before, line, after = sources[name].partition("int r = x + ")
    return {**sources, name: f"{before}{line}7{after}"}


async def test_without_lto_an_edit_is_one_module_s(tmp_path: Path) -> None:
    lab = Lab(tmp_path, None)
    sources = program()
    assert (await lab.twins(sources)).made(Step.CODEGEN) == set(sources)
    again = await lab.twins(edited(sources))
    assert again.made(Step.CODEGEN) == {"m07"}
    assert again.reason("m07", Step.CODEGEN) == "recompiled because its own code changed"
    assert again.reason("m00", Step.CODEGEN) == "nothing it is made of has changed"


@pytest.mark.parametrize("lto", [ThinLto(), FatLto(partitions=2), None], ids=["thin", "fat", "none"])
async def test_another_profile_under_the_same_name_is_a_miss(lto: ThinLto | FatLto | None, tmp_path: Path) -> None:
    merge = shutil.which("llvm-profdata-22")
    if merge is None:
        pytest.skip("llvm-profdata-22 is not installed: it makes profiles")
    profile = tmp_path / "p.profdata"

    def train(count: int) -> None:
        (tmp_path / "text").write_text(f":ir\nmain\n0\n1\n{count}\n")
        subprocess.run([merge, "merge", "-o", profile, tmp_path / "text"], check=True)

    step = Step.CODEGEN if lto is None else Step.PRE_LINK
    lab = Lab(tmp_path, lto)
    sources = {"main": "int main(void) { return 0; }\n"}
    options = CodegenOptions(profile_use=profile)
    train(5)
    await lab.twins(sources, options=options)
    assert (await lab.twins(sources, options=options)).outcomes(step) == {CacheOutcome.HIT}
    train(50)
    again = await lab.twins(sources, options=options)
    assert again.made(step) == {"main"}
    assert "profile" in again.reason("main", step)


async def test_in_fat_lto_nothing_is_done_where_nothing_changed(tmp_path: Path) -> None:
    lab = Lab(tmp_path, FatLto(partitions=6))
    sources = program()
    first = await lab.twins(sources)
    assert first.made(Step.FAT_LINK) == {"program"}
    assert len(first.made(Step.FAT_CODEGEN)) == 6
    again = await lab.twins(sources)
    for step in (Step.FAT_LINK, Step.FAT_CODEGEN, Step.PRE_LINK):
        assert again.outcomes(step) == {CacheOutcome.HIT}
    moved = Lab(tmp_path / "elsewhere", FatLto(partitions=6))
    moved.cache = lab.cache
    assert (await moved.twins(sources, out="another/place")).outcomes(Step.FAT_LINK) == {CacheOutcome.HIT}


async def test_in_fat_lto_most_parts_stay_as_they_were(tmp_path: Path) -> None:
    lab = Lab(tmp_path, FatLto(partitions=6))
    sources = program()
    await lab.twins(sources)
    again = await lab.twins(edited(sources))
    assert again.made(Step.FAT_LINK) == {"program"}
    assert "`m07`" in again.reason("program", Step.FAT_LINK)
    assert 1 <= len(again.made(Step.FAT_CODEGEN)) <= 2
    assert again.outcomes(Step.FAT_CODEGEN) == {CacheOutcome.HIT, CacheOutcome.MISS}


async def test_in_fat_lto_another_option_is_another_program(tmp_path: Path) -> None:
    lab = Lab(tmp_path, FatLto(partitions=3))
    sources = program()
    await lab.twins(sources)
    again = await lab.twins(sources, options=CodegenOptions(opt_level=OptLevel.O3))
    assert again.outcomes(Step.FAT_LINK) == {CacheOutcome.MISS}
    assert "-O2 became -O3" in again.reason("program", Step.FAT_LINK)
    assert "-O2 became -O3" in again.reason("fat-lto.0", Step.FAT_CODEGEN)


@pytest.mark.parametrize("lto", [ThinLto(), FatLto(partitions=3), None], ids=["thin", "fat", "none"])
async def test_a_damaged_or_emptied_cache_makes_builds_slower_and_no_more(
    lto: ThinLto | FatLto | None, tmp_path: Path
) -> None:
    lab = Lab(tmp_path, lto)
    dice = random.Random(9)
    sources = program()
    await lab.twins(sources)
    for number in range(6):
        for path in sorted(lab.cache.rglob("*")):
            if path.is_file() and dice.random() < 0.4:
                match dice.randrange(4):
                    case 0:
                        path.unlink()
                    case 1:
                        path.chmod(0o644)
                        path.write_bytes(path.read_bytes()[: dice.randrange(100)])
                    case 2:
                        path.chmod(0o644)
                        content = bytearray(path.read_bytes() or b"x")
                        content[dice.randrange(len(content))] ^= 0x55
                        path.write_bytes(content)
                    case _:
                        path.unlink()
                        path.mkdir()
        await lab.twins(edited(sources) if number % 2 else sources)
    shutil.rmtree(lab.cache)
    lab.cache.write_text("no directory at all")
    await lab.twins(sources)


@pytest.mark.parametrize("lto", [ThinLto(), None], ids=["thin", "none"])
async def test_a_hit_is_a_file_like_any_other(lto: ThinLto | None, tmp_path: Path) -> None:
    lab = Lab(tmp_path, lto)
    sources = {"main": "int main(void) { return 0; }\n"}
    await lab.build(sources)
    output = tmp_path / "out" / "main.o"
    output.chmod(0o4755)
    await lab.build(sources)
    assert output.stat().st_mode & 0o7133 == 0
    (tmp_path / "mine").hardlink_to(output)
    await lab.twins(sources)
    assert output.stat().st_nlink == 1


async def test_an_output_may_be_edited_without_harm_to_others(tmp_path: Path) -> None:
    lab = Lab(tmp_path, ThinLto())
    sources = program()
    built = await lab.build(sources)
    await lab.build(sources)
    for artifact in built.result.artifacts:
        with artifact.path.open("r+b") as file:
            file.write(b"edited")
    again = await lab.twins(sources)
    assert again.outcomes(Step.THIN_BACKEND) == {CacheOutcome.HIT}
