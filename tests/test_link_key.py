"""Layer: process. Keys of whole links: what lld is given, and what it finds and reads by itself."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from attrs import evolve, frozen

from tests.fat_bench import Bench
from tests.samples import TRIPLE, zig
from tests.thin_site import PIE, Site, needs_cc, pre_linked
from workers.fat import FatLinked
from workers.ingredients import Ingredient, IngredientKind, Key, NoKey
from workers.llvm.link_key import LinkInput, LinkLog, LinkReads, first_key, line_words, second_key
from workers.llvm.lld_line import LldLine
from workers.work import CodegenOptions, LinkKind, LinkOptions, Step

pytestmark = pytest.mark.process

LLD = (Ingredient(IngredientKind.COMPILER, "ld.lld", "22"),)
MAIN = "int helper(int); int main(void) { return helper(1); }"
HELPER = "int helper(int x) { return x + 1; }"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def native(text: str, output: Path, *flags: str) -> Path:
    output.parent.mkdir(parents=True, exist_ok=True)
    source = output.with_suffix(".c")
    source.write_text(text)
    cc1 = [zig(), "clang", "-cc1", "-triple", TRIPLE, "-O2", "-emit-obj", *flags, str(source), "-o", str(output)]
    subprocess.run(cc1, check=True)
    source.unlink()
    return output


def archive(path: Path, *members: Path, thin: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    subprocess.run([zig(), "ar", "rcsDT" if thin else "rcsD", str(path), *map(str, members)], check=True)
    return path


@frozen
class Checkout:
    """A directory in which something is linked."""

    root: Path

    def line(self, *words: str) -> LldLine:
        return LldLine(self.root, {"LC_ALL": "C.UTF-8"}, (zig(), "ld.lld", "--error-limit=0"), words)

    def first(self, line: LldLine, own: Sequence[Path] = (), **how: bool) -> Key | NoKey:
        words = line_words(line)
        digests = {path: sha((self.root / path).read_bytes()) for _, path in words.files}
        inputs = [LinkInput(path.name, sha(path.read_bytes()), **how) for path in own]
        return first_key(Step.THIN_LINK, line, words, inputs, digests, LLD)

    def reads(self, line: LldLine, own: Sequence[Path] = (), *, wait: bool = True) -> LinkReads | None:
        """What lld finds by itself, by its own account."""
        log = LinkLog(line, [str(path) for path in own])
        if wait:
            log._since += 3600  # what was made for this test is old enough
        argv = line.argv([(str(path), False) for path in own], "out", ["--verbose", "-shared"])
        done = subprocess.run(argv, cwd=self.root, capture_output=True, check=False)
        (self.root / "said").write_bytes(done.stderr)
        with (self.root / "said").open("rb") as file:
            log.read(file)
        (self.root / "said").unlink()
        assert done.returncode == 0, log.said()
        (self.root / "out").unlink()
        return log.reads()

    def second(self, line: LldLine, reads: LinkReads | None, own: Sequence[Path] = ()) -> Key | None:
        first = self.first(line, own)
        assert isinstance(first, Key)
        assert reads is not None
        again = LinkReads.from_bytes(reads.to_bytes())
        assert again == reads
        if not again.holds(self.root):
            return None
        try:
            digests = [sha(path.read_bytes()) for path in again.paths(self.root)]
        except OSError:
            return None
        return second_key(first, again, digests)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    root = tmp_path / "check out"
    root.mkdir()
    native(MAIN, root / "main.o")
    archive(root / "second" / "libhelper.a", native(HELPER, root / "helper.o"))
    (root / "first").mkdir()
    return Checkout(root)


def test_what_lld_finds_is_in_the_second_key(checkout: Checkout) -> None:
    own = [checkout.root / "main.o"]
    line = checkout.line("-Lfirst", "-L", str(checkout.root / "second"), "-lhelper")
    reads = checkout.reads(line, own)
    assert reads is not None
    assert reads.files == ("second/libhelper.a",)
    assert {"first/libhelper.so", "first/libhelper.a", "second/libhelper.so"} <= set(reads.absent)
    key = checkout.second(line, reads, own)
    assert isinstance(key, Key)
    assert key == checkout.second(line, reads, own)
    library = Ingredient(IngredientKind.FILE, "libhelper.a", sha((checkout.root / "second/libhelper.a").read_bytes()))
    assert key.ingredients()[-1] == library
    archive(checkout.root / "second" / "libhelper.a", native(HELPER.replace("1", "2"), checkout.root / "helper.o"))
    changed = checkout.second(line, reads, own)
    assert isinstance(changed, Key)
    assert changed.digest != key.digest
    (checkout.root / "second" / "libhelper.a").unlink()
    assert checkout.second(line, reads, own) is None


@pytest.mark.parametrize("name", ["first/libhelper.so", "first/libhelper.a", "second/libhelper.so"])
def test_what_lld_would_rather_have_taken(checkout: Checkout, name: str) -> None:
    line = checkout.line("main.o", "-Lfirst", "-Lsecond", "-lhelper")
    reads = checkout.reads(line)
    assert checkout.second(line, reads) is not None
    (checkout.root / name).write_bytes(b"")
    assert checkout.second(line, reads) is None


def test_a_checkout_that_is_elsewhere_has_the_same_keys(checkout: Checkout, tmp_path: Path) -> None:
    def line(where: Checkout) -> LldLine:
        script = where.root / "x.map"
        script.write_text("{ local: *; };")
        return where.line(
            str(where.root / "main.o"), f"-L{where.root}/second", "-lhelper", f"--version-script={script}"
        )

    one = line(checkout)
    reads = checkout.reads(one)
    other = Checkout(tmp_path / "other")
    shutil.copytree(checkout.root, other.root)
    two = line(other)
    assert checkout.first(one) == other.first(two)
    there = checkout.second(one, reads)
    shutil.rmtree(checkout.root)
    assert there == other.second(two, reads)
    (other.root / "x.map").write_text("{ global: main; local: *; };")
    assert there != other.second(two, reads)


def test_scripts_that_lld_finds_lead_to_more_files(checkout: Checkout) -> None:
    (checkout.root / "first" / "libhelper.so").write_text("INPUT(more.o -lreal)")
    native("int more;", checkout.root / "first" / "more.o")
    archive(checkout.root / "second" / "libreal.a", checkout.root / "helper.o")
    line = checkout.line("main.o", "-Lfirst", "-Lsecond", "-lhelper")
    reads = checkout.reads(line)
    assert reads is not None
    assert reads.files == ("first/libhelper.so", "first/more.o", "second/libreal.a")
    assert {"more.o", "second/more.o", "first/libreal.a"} <= set(reads.absent)


def test_of_a_script_that_names_directories_nothing_is_known(checkout: Checkout) -> None:
    (checkout.root / "first" / "libhelper.so").write_text("SEARCH_DIR(second) INPUT(helper.o)")
    assert checkout.reads(checkout.line("main.o", "-Lfirst", "-lhelper")) is None


@pytest.mark.parametrize("is_own", [False, True])
def test_members_of_thin_archives_are_read(checkout: Checkout, is_own: bool) -> None:
    thin = archive(checkout.root / "second" / "libhelper.a", checkout.root / "helper.o", thin=True)
    line = checkout.line("main.o", *([] if is_own else ["-Lsecond", "-lhelper"]))
    own = [thin] if is_own else []
    reads = checkout.reads(line, own)
    assert reads is not None
    before = checkout.second(line, reads, own)
    native(HELPER.replace("1", "2"), checkout.root / "helper.o")
    after = checkout.second(line, reads, own)
    assert isinstance(before, Key)
    assert isinstance(after, Key)
    assert before != after


def test_what_may_have_changed_behind_the_back_of_lld_is_not_told(checkout: Checkout) -> None:
    line = checkout.line("main.o", "-Lsecond", "-lhelper")
    (checkout.root / "second" / "libhelper.a").touch()
    assert checkout.reads(line, wait=False) is None
    assert checkout.reads(line) is not None


def test_damaged_records_are_no_reads() -> None:
    for data in (b"", b"null", b"[]", b"[1, 2]", b"[[1], []]", b'{"files": 1, "absent": 2}', b"\xff", b"[" * 10_000):
        assert LinkReads.from_bytes(data) is None


def test_all_that_a_link_is_given_is_in_the_first_key(checkout: Checkout) -> None:
    main, helper = checkout.root / "main.o", checkout.root / "helper.o"
    plain = checkout.line("-pie")
    keys = [
        checkout.first(plain, [main, helper]),
        checkout.first(plain, [helper, main]),
        checkout.first(plain, [main]),
        checkout.first(plain, [main, helper], lazy=True),
        checkout.first(plain, [main, helper], given=True),
        checkout.first(checkout.line("-no-pie"), [main, helper]),
        checkout.first(checkout.line("-pie", "--wrap=f"), [main, helper]),
        checkout.first(LldLine(checkout.root, {}, plain.head, plain.tail), [main, helper]),
        checkout.first(LldLine(checkout.root, plain.environment, (*plain.head, "-pie"), ()), [main, helper]),
    ]
    assert all(isinstance(key, Key) for key in keys)
    assert len({key.digest for key in keys if isinstance(key, Key)}) == len(keys)
    assert checkout.first(checkout.line("-pie", "-o", "x", "--threads=2"), [main, helper]) == keys[0]


def test_words_of_response_files_count(checkout: Checkout) -> None:
    (checkout.root / "words").write_text("--wrap=f")
    one = checkout.first(checkout.line("@words"))
    (checkout.root / "words").write_text("--wrap=g")
    assert checkout.first(checkout.line("@words")) != one
    assert checkout.first(checkout.line("--wrap=f")) == one


def test_there_is_no_key_for_words_that_nobody_knows(checkout: Checkout) -> None:
    key = checkout.first(checkout.line("--never-heard-of"))
    assert key == NoKey("there is no telling what --never-heard-of does", warn=True)


def test_ingredients_name_what_is_in_a_key(checkout: Checkout) -> None:
    line = checkout.line("helper.o", "-mllvm", "-inline-threshold=9", "--export-dynamic")
    key = checkout.first(line, [checkout.root / "main.o"])
    assert isinstance(key, Key)
    object_, helper = (sha((checkout.root / name).read_bytes()) for name in ("main.o", "helper.o"))
    assert key.ingredients()[:-1] == (
        *LLD,
        Ingredient(IngredientKind.OPTION, "-mllvm -inline-threshold=", "9"),
        Ingredient(IngredientKind.OPTION, "--export-dynamic"),
        Ingredient(IngredientKind.FILE, "helper.o", helper),
        Ingredient(IngredientKind.MODULE, "main.o", object_),
    )


def test_warnings_are_told_apart_from_files(checkout: Checkout) -> None:
    line = checkout.line()
    log = LinkLog(line, ["odd\nname.o"])
    text = b"ld.lld: main.o\nld.lld: warning: odd\nld.lld: odd\nname.o\n>>> ld.lld: see\nld.lld: error: bad\n"
    (checkout.root / "said").write_bytes(text + b"ld.lld: a\rb.o\n")
    with (checkout.root / "said").open("rb") as file:
        log.read(file)
    assert log.said() == b"ld.lld: warning: odd\n>>> ld.lld: see\nld.lld: error: bad\n"
    assert log._files == ["main.o", "a\rb.o"]


def test_what_lld_says_of_its_progress_is_no_file(checkout: Checkout) -> None:
    line = checkout.line()
    said = (
        b"ld.lld: set maximum concurrency to 16, specify --threads= to change\nld.lld: helper.o\n"
        b"ld.lld: ICF needed 3 iterations\nld.lld: relaxation passes: 2\n"
        b"ld.lld: detected cortex-a53-843419 erratum sequence starting at 2104FC in unpatched output.\n"
    )

    def reads() -> LinkReads | None:
        log = LinkLog(line, [])
        log._since += 3600
        (checkout.root / "said").write_bytes(said)
        with (checkout.root / "said").open("rb") as file:
            log.read(file)
        assert log.said() == b""
        return log.reads()

    found = reads()
    assert found is not None
    assert found.files == ("helper.o",)
    # It may be what a file is called.
    shutil.copy(checkout.root / "helper.o", checkout.root / "relaxation passes: 2")
    found = reads()
    assert found is not None
    assert found.files == ("helper.o", "relaxation passes: 2")


@pytest.fixture
async def link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LinkOptions:
    """A link of a program that needs a library."""
    monkeypatch.chdir(tmp_path)
    archive(tmp_path / "lib" / "libhelper.a", native(HELPER, tmp_path / "helper.o"))
    await trio.sleep(0.2)  # what has just been made may be in the making
    return LinkOptions(LinkKind.EXECUTABLE, tmp_path / "prog", arguments=("-Llib", "-lhelper"))


def check_reads(data: bytes | None) -> None:
    assert data is not None
    reads = LinkReads.from_bytes(data)
    assert reads is not None
    assert "lib/libhelper.a" in reads.files
    assert "lib/libhelper.so" in reads.absent
    assert any(path.endswith("libc.so.6") for path in reads.files)
    assert not any("main" in path or "export" in path for path in reads.files)


@needs_cc
async def test_a_fat_link_tells_what_it_read(bench: Bench, link: LinkOptions) -> None:
    files = await bench.files({"main": MAIN}, CodegenOptions())
    merged, parts = await bench.merge(bench.link(files, link=link, exports=("main",)))
    assert isinstance(merged, FatLinked), merged
    assert merged.diagnostics == ()
    assert parts
    check_reads(merged.reads)


@needs_cc
async def test_a_thin_link_tells_what_it_read(site: Site, link: LinkOptions) -> None:
    modules = pre_linked(site.root / "in", {"main": MAIN}, *PIE)
    linked = await site.linked(evolve(site.item(modules, exports=("main",)), link=link))
    assert linked.diagnostics == ()
    check_reads(linked.reads)
