"""Under which names lld gets the modules of a thin link. Layer: pure, but for the files that names stand for."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.llvm.thin_layout import Layout, lay_out
from workers.thin import ThinLink
from workers.work import CodegenOptions, Engine, LinkFile, NeedsThinLto, Target

pytestmark = pytest.mark.pure


def laid_out(place: Path, *files: str, origins: tuple[str, ...] = (), gone: str | None = None) -> Layout:
    """The layout of a link of files below `place`, in this order, of which one may be `gone`."""
    modules: list[NeedsThinLto | LinkFile] = []
    for number, name in enumerate(files):
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"BC")
        origin = origins[number] if origins else str(path)
        modules.append(
            NeedsThinLto(
                module=f"m{number}",
                bitcode=path,
                code_bytes=1,
                lazy=number == 1,
                origin=origin,
                engine=Engine.TOOLCHAIN,
                seconds=0.0,
                peak_rss_bytes=0,
            )
        )
    if gone is not None:
        (place / gone).unlink()
    own = place / "own"
    item = ThinLink(tuple(modules), None, (), CodegenOptions(), Target("", ""), place, own, own)
    return lay_out(item, own)


def test_modules_are_taken_where_they_lie(tmp_path: Path) -> None:
    layout = laid_out(tmp_path, "b.bc", "dir/a.bc", "a.bc")
    assert layout.files == (
        (f"{tmp_path}/b.bc", False),
        (f"{tmp_path}/dir/a.bc", True),
        (f"{tmp_path}/a.bc", False),
    )
    assert layout.labels == {
        f"{tmp_path}/a.bc": "00000.bc",
        f"{tmp_path}/b.bc": "00001.bc",
        f"{tmp_path}/dir/a.bc": "00002.bc",
    }
    assert layout.names == {str(path): name for name, path in layout.paths.items()}
    assert set(layout.stamps) == set(layout.labels)


@pytest.mark.parametrize(
    "files",
    [
        ("a.bc", "a.bc2"),
        ("a\nb.bc", "c.bc"),
        ("x/../a.bc", "b.bc"),
    ],
    ids=["beginning", "newline", "climbing"],
)
def test_names_that_lld_would_mistake_are_replaced(tmp_path: Path, files: tuple[str, ...]) -> None:
    layout = laid_out(tmp_path, *files)
    assert sorted(path for path, _ in layout.files) == [f"{tmp_path}/own/00000.bc", f"{tmp_path}/own/00001.bc"]
    assert all(Path(path).read_bytes() == b"BC" for path, _ in layout.files)


@pytest.mark.parametrize("behind", ["", "2", "/m.bc"])
def test_a_name_that_is_within_another_is_replaced(tmp_path: Path, behind: str) -> None:
    inner = Path(f"{tmp_path}/deep{tmp_path}/a.bc{behind}")
    layout = laid_out(tmp_path, "a.bc", str(inner))
    assert all(path.startswith(f"{tmp_path}/own/") for path, _ in layout.files)
    other = laid_out(tmp_path, "a.bc", "deep/b.bc")
    assert not any(path.startswith(f"{tmp_path}/own/") for path, _ in other.files)


def test_the_order_is_that_of_the_names_that_linkers_know(tmp_path: Path) -> None:
    layout = laid_out(tmp_path, "1.bc", "2.bc", origins=("lib.a(b.o at 8)", "lib.a(a.o at 90)"))
    assert [path for path, _ in layout.files] == [f"{tmp_path}/own/00001.bc", f"{tmp_path}/own/00000.bc"]


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="the bitcode of m1 is gone: No such file"):
        laid_out(tmp_path, "a.bc", "b.bc", gone="b.bc")
