"""Layer: process (llvm-ar and GNU ar make the archives). Every format is read right, damage is refused."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.llvm.archive import ArchiveError, Member, read_members

pytestmark = pytest.mark.process

LONG = "a_name_that_is_longer_than_sixteen.bc"


def llvm_ar() -> list[str]:
    spec = importlib.util.find_spec("ziglang")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return [str(Path(spec.submodule_search_locations[0]) / "zig"), "ar"]


def gnu_ar() -> list[str]:
    ar = shutil.which("ar")
    if ar is None or "GNU" not in subprocess.run([ar, "--version"], capture_output=True, text=True, check=True).stdout:
        pytest.skip("GNU ar is not installed")
    return [ar]


def run(directory: Path, *command: str) -> None:
    subprocess.run(command, cwd=directory, capture_output=True, check=True, timeout=60)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """Files of odd and even size, with long names and spaces, in `tmp_path`."""
    contents = {"a.bc": b"odd", f"sub/{LONG}": b"even", "b c.o": b"", "sub/a.bc": b"the other a"}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return contents


def listed(archive: Path) -> list[tuple[str, bytes]]:
    """Names and contents of an archive's members."""
    result = []
    for member in read_members(archive.read_bytes(), archive):
        content = member.path.read_bytes()
        if member.extent is not None:
            offset, size = member.extent
            content = content[offset : offset + size]
        result.append((member.name, content))
    return result


@pytest.mark.parametrize("form", ["gnu", "bsd", "darwin", "coff"])
def test_archives_of_llvm(form: str, files: dict[str, bytes], tmp_path: Path) -> None:
    run(tmp_path, *llvm_ar(), f"--format={form}", "qcs", "x.a", *files)
    found = listed(tmp_path / "x.a")
    assert [name for name, _ in found] == ["a.bc", LONG, "b c.o", "a.bc"]
    # Darwin's format fills members up with newlines.
    assert [content.rstrip(b"\n") for _, content in found] == list(files.values())
    if form != "darwin":
        assert [content for _, content in found] == list(files.values())


def test_archives_of_gnu(files: dict[str, bytes], tmp_path: Path) -> None:
    run(tmp_path, *gnu_ar(), "qcs", "x.a", *files)
    assert listed(tmp_path / "x.a") == [(Path(name).name, content) for name, content in files.items()]


@pytest.mark.parametrize("ar", [llvm_ar, gnu_ar])
def test_thin_archives(ar: type, files: dict[str, bytes], tmp_path: Path) -> None:
    run(tmp_path, *ar(), "rcsT", "x.a", *files)
    assert listed(tmp_path / "x.a") == list(files.items())


@pytest.mark.parametrize("ar", [llvm_ar, gnu_ar])
def test_a_thin_archive_elsewhere_and_one_in_another(ar: type, files: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    run(tmp_path, *ar(), "rcsT", "sub/inner.a", *files)
    run(tmp_path / "lib", *ar(), "qcsTL" if ar is llvm_ar else "rcsT", "outer.a", "../sub/inner.a")
    inner = listed(tmp_path / "sub" / "inner.a")
    outer = listed(tmp_path / "lib" / "outer.a")
    assert [content for _, content in inner] == [content for _, content in outer] == list(files.values())


def test_gnus_thin_archive_of_a_regular_one(files: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    run(tmp_path, *gnu_ar(), "rcs", "x.a", *files)
    run(tmp_path / "lib", *gnu_ar(), "rcST", "outer.a", "../x.a")
    assert listed(tmp_path / "lib" / "outer.a") == listed(tmp_path / "x.a")
    (tmp_path / "x.a").unlink()
    with pytest.raises(ArchiveError, match="no such file"):
        read_members((tmp_path / "lib" / "outer.a").read_bytes(), tmp_path / "lib" / "outer.a")


def test_a_thin_archive_whose_files_are_gone_is_still_listed(files: dict[str, bytes], tmp_path: Path) -> None:
    run(tmp_path, *llvm_ar(), "rcsT", "x.a", "a.bc")
    (tmp_path / "a.bc").unlink()
    members = read_members((tmp_path / "x.a").read_bytes(), tmp_path / "x.a")
    assert members == (Member("a.bc", tmp_path / "a.bc", None, members[0].header),)


def header(name: bytes, size: int | bytes) -> bytes:
    size = size if isinstance(size, bytes) else str(size).encode()
    return name.ljust(16) + b"0".ljust(12) + b"0".ljust(6) * 2 + b"644".ljust(8) + size.ljust(10) + b"`\n"


def regular(*members: tuple[bytes, bytes]) -> bytes:
    return b"!<arch>\n" + b"".join(header(name, len(data)) + data + b"\n" * (len(data) % 2) for name, data in members)


def names(data: bytes) -> list[str]:
    return [member.name for member in read_members(data, Path("/x/x.a"))]


def test_empty_archives() -> None:
    assert names(b"!<arch>\n") == names(b"!<thin>\n") == []


def test_tables_are_left_out() -> None:
    tables = [b"/", b"/SYM64/", b"/<ECSYMBOLS>/", b"__.SYMDEF", b"__.SYMDEF SORTED", b"__.SYMDEF_64"]
    assert names(regular(*((table, b"1234") for table in tables), (b"a.o/", b"x"))) == ["a.o"]
    assert names(regular((b"#1/20", b"__.SYMDEF SORTED\0\0\0\0data"), (b"#1/8", b"long.o\0\0data"))) == ["long.o"]


def test_the_last_members_padding_may_be_missing() -> None:
    assert names(regular((b"a.o/", b"odd"))[:-1]) == ["a.o"]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "magic"),
        (b"!<arch>", "magic"),
        (b"BC\xc0\xde", "magic"),
        (b"!<arch>\n" + b"x" * 59, "cut off"),
        (b"!<arch>\n" + b"x" * 60, "no member header at byte 8"),
        (b"!<arch>\n" + header(b"a.o/", 5) + b"1234", "takes 5 bytes, but only 4 are left"),
        (b"!<arch>\n" + header(b"a.o/", b"-5") + b"1234", "no member header"),
        (b"!<arch>\n" + header(b"a.o/", b""), "no member header"),
        (b"!<arch>\n" + header(b"a.o/", 9999999999), "cut off"),
        (regular((b"/5", b"")), "name table"),
        (regular((b"//", b"a.o/\n"), (b"/99", b"")), "name table"),
        (regular((b"//", b"\n\n"), (b"/0", b"")), "no usable name"),
        (regular((b"#1/9", b"1234")), "more than it has"),
        (regular((b"#1/4", b"\0\0\0\0")), "no usable name"),
        (regular((b"a\0b.o/", b"")), "no usable name"),
        (b"!<thin>\n" + header(b"//", 40) + b"x/\n", "cut off"),
        (b"!<thin>\n" + header(b"//", 12) + b"../nowhere/\n" + header(b"/0:8", 1), "no such file"),
    ],
)
def test_damage_is_refused_with_a_reason(data: bytes, complaint: str) -> None:
    with pytest.raises(ArchiveError, match=complaint):
        names(data)


def test_archives_that_refer_to_each_other_end(tmp_path: Path) -> None:
    for name, other in ((b"a.a", b"b.a"), (b"b.a", b"a.a")):
        data = b"!<thin>\n" + header(b"//", 6) + other + b"/\n\n" + header(b"/0:74", 1)
        (tmp_path / name.decode()).write_bytes(data)
    with pytest.raises(ArchiveError, match="itself"):
        read_members((tmp_path / "a.a").read_bytes(), tmp_path / "a.a")


def test_every_truncation_is_recognised() -> None:
    data = regular((b"//", b"a_long_name_of_a_member.o/\n"), (b"/0", b"1234"), (b"b.o/", b"5678"))
    whole = {len(data)}
    for size in range(8, len(data)):
        try:
            found = names(data[:size])
        except ArchiveError:
            continue
        assert len(found) < 2
        whole.add(size)
    # An archive that ends between two members is whole: the format has no count.
    assert len(whole) <= 5


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_bytes_give_members_or_a_clear_error(flips: list[tuple[int, int]]) -> None:
    data = bytearray(regular((b"//", b"a_long_name_of_a_member.o/\n"), (b"/0", b"1234"), (b"#1/4", b"b.o\0data")))
    for position, value in flips:
        data[position % len(data)] = value
    try:
        members = read_members(bytes(data), Path("/x/x.a"))
    except ArchiveError as error:
        assert str(error)  # noqa: PT017 - both outcomes are right
    else:
        for member in members:
            assert member.extent is None or sum(member.extent) <= len(data)
