"""The real programs that are built: what each is made of, and how to tell that it works.

Where a project comes with tests of its own that need nothing else, those are what is run. Else a driver of ours takes
data through it and back.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from tests.projects import Project

__all__ = ["PROJECTS", "Misbehaved"]

_SECONDS = 300.0


class Misbehaved(Exception):
    """A program that was built does not do what it should."""


def _run(command: list[str | Path], *, stdin: bytes = b"", cwd: Path | None = None, status: int = 0) -> bytes:
    """What the command prints. Raises `Misbehaved` if it ends with another status."""
    done = subprocess.run(command, input=stdin, cwd=cwd, capture_output=True, timeout=_SECONDS, check=False)
    if done.returncode != status:
        errors = done.stderr.decode(errors="replace")[-2000:]
        raise Misbehaved(f"{command[0]} ended with status {done.returncode}, not {status}: {errors}")
    return done.stdout


def _expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise Misbehaved(f"{what}: {found!r} instead of {expected!r}")


def _sample(sources: Path, size: int) -> bytes:
    """Some data of the project's own: its sources, one after the other."""
    return b"".join(path.read_bytes() for path in sorted(sources.rglob("*.[ch]")))[:size]


def _check_brotli(program: Path, sources: Path, scratch: Path) -> str:
    digests = []
    for quality, size in ((1, 4_000_000), (5, 2_000_000), (11, 200_000)):
        sample = _sample(sources, size)
        packed = _run([program, f"--quality={quality}", "--stdout", "-"], stdin=sample)
        _expect(f"brotli's round trip at {quality}", _run([program, "--decompress", "-c", "-"], stdin=packed), sample)
        digests.append(hashlib.sha256(packed).hexdigest())
    _run([program, "--decompress", "-c", "-"], stdin=packed[:-9], status=1)
    return "\n".join(digests)


_BROTLI = Project(
    name="brotli",
    requirement="brotli==1.2.0",
    library=("c/common/*.c", "c/dec/*.c", "c/enc/*.c"),
    program=("c/tools/brotli.c",),
    flags=("-I{sources}/c/include",),
    link_arguments=("-lm",),
    check=_check_brotli,
)


_ZSTD_DRIVER = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "zdict.h"
#include "zstd.h"

static void expect(int holds, const char *what) {
    if (!holds) { fprintf(stderr, "%s\n", what); exit(1); }
}

static void report(const char *what, int level, const unsigned char *data, size_t size) {
    unsigned long long hash = 14695981039346656037ull;
    for (size_t i = 0; i < size; i++) hash = (hash ^ data[i]) * 1099511628211ull;
    printf("%s %d: %zu %016llx\n", what, level, size, hash);
}

int main(int argc, char **argv) {
    FILE *file = argc == 2 ? fopen(argv[1], "rb") : NULL;
    expect(file != NULL, "usage: round-trip FILE");
    fseek(file, 0, SEEK_END);
    size_t size = ftell(file), room = ZSTD_compressBound(size);
    unsigned char *data = malloc(size), *packed = malloc(room), *back = malloc(size);
    rewind(file);
    expect(fread(data, 1, size, file) == size, "the file cannot be read");
    fclose(file);

    static const int levels[] = {-5, 1, 3, 6, 9, 13, 16, 19};
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++) {
        size_t length = ZSTD_compress(packed, room, data, size, levels[i]);
        expect(!ZSTD_isError(length), "compress");
        report("level", levels[i], packed, length);
        expect(ZSTD_decompress(back, size, packed, length) == size && !memcmp(back, data, size), "decompress");
    }

    ZSTD_CCtx *compressor = ZSTD_createCCtx();
    ZSTD_CCtx_setParameter(compressor, ZSTD_c_checksumFlag, 1);
    ZSTD_CCtx_setParameter(compressor, ZSTD_c_enableLongDistanceMatching, 1);
    expect(!ZSTD_isError(ZSTD_CCtx_setParameter(compressor, ZSTD_c_nbWorkers, 2)), "threads");
    size_t length = ZSTD_compress2(compressor, packed, room, data, size);
    expect(!ZSTD_isError(length), "compress2");
    report("threads", 2, packed, length);
    ZSTD_DCtx *decompressor = ZSTD_createDCtx();
    ZSTD_inBuffer in = {packed, length, 0};
    size_t done = 0;
    while (in.pos < in.size) {
        ZSTD_outBuffer out = {back + done, size - done < 5000 ? size - done : 5000, 0};
        expect(!ZSTD_isError(ZSTD_decompressStream(decompressor, &out, &in)), "decompressStream");
        done += out.pos;
    }
    expect(done == size && !memcmp(back, data, size), "the stream's content");
    packed[length / 2] ^= 0x55;
    expect(ZSTD_isError(ZSTD_decompress(back, size, packed, length)), "a damaged frame was taken");

    enum { COUNT = 400, LENGTH = 1000 };
    size_t sizes[COUNT];
    expect(size >= COUNT * LENGTH, "the file is too small");
    for (int i = 0; i < COUNT; i++) sizes[i] = LENGTH;
    static unsigned char dictionary[20000];
    size_t trained = ZDICT_trainFromBuffer(dictionary, sizeof dictionary, data, sizes, COUNT);
    expect(!ZDICT_isError(trained), "training");
    report("dictionary", COUNT, dictionary, trained);
    length = ZSTD_compress_usingDict(compressor, packed, room, data + 777, LENGTH, dictionary, trained, 5);
    expect(!ZSTD_isError(length), "compress_usingDict");
    report("with dictionary", 5, packed, length);
    size_t restored = ZSTD_decompress_usingDict(decompressor, back, size, packed, length, dictionary, trained);
    expect(restored == LENGTH && !memcmp(back, data + 777, LENGTH), "decompress_usingDict");
    ZSTD_freeCCtx(compressor);
    ZSTD_freeDCtx(decompressor);
    return 0;
}
"""

_ZSTD_LIBRARY = """
import ctypes, hashlib, sys
zstd = ctypes.CDLL(sys.argv[1])
for name in ("ZSTD_compressBound", "ZSTD_compress", "ZSTD_decompress"):
    getattr(zstd, name).restype = ctypes.c_size_t
data = open(sys.argv[2], "rb").read()
size = ctypes.c_size_t(len(data))
for level in (1, 7, 15):
    room = zstd.ZSTD_compressBound(size)
    packed, back = ctypes.create_string_buffer(room), ctypes.create_string_buffer(len(data))
    length = zstd.ZSTD_compress(packed, ctypes.c_size_t(room), data, size, level)
    assert not zstd.ZSTD_isError(ctypes.c_size_t(length))
    assert zstd.ZSTD_decompress(back, size, packed, ctypes.c_size_t(length)) == len(data)
    assert back.raw == data
    print(hashlib.sha256(packed.raw[:length]).hexdigest())
"""


def _check_zstd(program: Path, sources: Path, scratch: Path) -> str:
    (scratch / "sample").write_bytes(_sample(sources, 1_000_000))
    return _run([program, scratch / "sample"]).decode()


def _check_zstd_library(library: Path, sources: Path, scratch: Path) -> str:
    (scratch / "sample").write_bytes(_sample(sources, 1_000_000))
    return _run([sys.executable, "-c", _ZSTD_LIBRARY, library, scratch / "sample"]).decode()


_ZSTD = Project(
    name="zstd",
    requirement="pyzstd==0.16.2",
    library=("zstd/lib/*/*.c",),
    drivers={"round_trip.c": _ZSTD_DRIVER},
    flags=(
        "-I{sources}/zstd/lib",
        "-DZSTD_MULTITHREAD=1",
        "-DZSTD_LEGACY_SUPPORT=1",
        "-DZSTD_DISABLE_ASM=1",  # a part of it is an assembly file
        "-Wno-deprecated-declarations",
    ),
    link_arguments=("-pthread",),
    check=_check_zstd,
    check_shared=_check_zstd_library,
)


def _check_lua(program: Path, sources: Path, scratch: Path) -> str:
    # Its own tests, less those that need an internal build of it.
    said = _run([program, "-e", "_U=true", "all.lua"], cwd=sources / "third-party/lua54/testes")
    _expect("the end of lua's own tests", b"\nfinal OK !!!\n" in said, True)
    _run([program, "-e", "error('as it should')"], status=1)
    return _run([program, "-e", "print(string.format('%s %q %5.2f', _VERSION, 1 / 3, 2 ^ 0.5))"]).decode()


_LUA = Project(
    name="lua",
    requirement="lupa==2.4",
    library=("third-party/lua54/*.c",),
    leave_out=("third-party/lua54/onelua.c",),  # all others in one
    flags=("-std=c99", "-DLUA_USE_LINUX", "-DLUA_COMPAT_5_3"),
    link_arguments=("-rdynamic", "-lm", "-ldl"),
    check=_check_lua,
)


_SASS_DRIVER = r"""
#include <cstdio>
#include <cstring>
#include "sass.h"

int shared_ptr_tests(int, char **);
int util_string_tests(int, char **);

int main(int argc, char **argv) {
    if (argc != 2) return 3;
    if (!std::strcmp(argv[1], "--self-test")) return shared_ptr_tests(1, argv) + util_string_tests(1, argv);
    Sass_File_Context *file = sass_make_file_context(argv[1]);
    Sass_Context *context = sass_file_context_get_context(file);
    int status = sass_compile_file_context(file);
    std::fputs(status ? sass_context_get_error_text(context) : sass_context_get_output_string(context), stdout);
    sass_delete_file_context(file);
    return status != 0;
}
"""

_SASS_LIBRARY = """
import ctypes, sys
sass = ctypes.CDLL(sys.argv[1])
for name in ("make_file_context", "file_context_get_context", "context_get_output_string", "context_get_error_text"):
    getattr(sass, "sass_" + name).restype = ctypes.c_void_p
for path in sys.argv[2:]:
    file = ctypes.c_void_p(sass.sass_make_file_context(path.encode()))
    context = ctypes.c_void_p(sass.sass_file_context_get_context(file))
    status = sass.sass_compile_file_context(file)
    get = sass.sass_context_get_error_text if status else sass.sass_context_get_output_string
    print(status, ctypes.string_at(get(context)).decode())
    sass.sass_delete_file_context(file)
"""

_SCSS = """
$base: 10px;
@function double($n) { @return $n * 2; }
@mixin box($width, $color: red) { width: $width; color: darken($color, 20%); @content; }
%centred { margin: 0 auto; }
.a { @extend %centred; @include box(double($base), #336699) { height: $base; } &:hover { top: $base / 4; } }
@each $name, $value in (x: 1, y: 2) { .#{$name} { order: $value; } }
@for $i from 1 through 2 { .w-#{$i} { width: percentage(1 / $i); } }
@media screen { .b { float: left; @media (min-width: 100px) { float: right; } } }
"""
_CSS = """\
.a {
  margin: 0 auto; }

.a {
  width: 20px;
  color: #1a334d;
  height: 10px; }
  .a:hover {
    top: 2.5px; }

.x {
  order: 1; }

.y {
  order: 2; }

.w-1 {
  width: 100%; }

.w-2 {
  width: 50%; }

@media screen {
  .b {
    float: left; } }
  @media screen and (min-width: 100px) {
    .b {
      float: right; } }
"""

_SCSS_ERRORS = {
    "a { b: $nowhere; }": 'Undefined variable: "$nowhere".',
    "a { b: 1px + 1s; }": "Incompatible units: 's' and 'px'.",
    "@error 'on' + ' purpose';": "on purpose",
    "a { b: nth(1 2, 3); }": "index out of bounds for `nth($list, $n)`",
    "a { @extend .b; }": 'The target selector was not found.\nUse "@extend .b !optional" to avoid this error.',
}
_SCSS_MANY = """
@function fibonacci($n) { @return if($n < 2, $n, fibonacci($n - 1) + fibonacci($n - 2)); }
@for $i from 1 through 300 {
    .m-#{$i} { width: fibonacci($i % 10) * 1px; color: mix(hsl($i, 50%, 40%), #fe3, $i % 100 * 1%);
        > .n:not(.m-#{$i + 1}) + .o { @extend .m-#{$i}; content: str-slice("abcdefghijklmnop", $i % 16); } }
}
"""


def _style_sheets(scratch: Path) -> list[Path]:
    texts = [_SCSS, *_SCSS_ERRORS, _SCSS_MANY]
    paths = [scratch / f"{number}.scss" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return paths


def _check_sass(program: Path, sources: Path, scratch: Path) -> str:
    _run([program, "--self-test"])
    good, *bad, many = _style_sheets(scratch)
    _expect("the style sheet", _run([program, good]).decode(), _CSS)
    for path, message in zip(bad, _SCSS_ERRORS.values(), strict=True):
        _expect(path.read_text(), _run([program, path], status=1).decode(), message)
    return _run([program, many]).decode()


def _check_sass_library(library: Path, sources: Path, scratch: Path) -> str:
    sheets = _style_sheets(scratch)
    said = _run([sys.executable, "-c", _SASS_LIBRARY, library, *sheets]).decode()
    expected = f"0 {_CSS}\n" + "".join(f"1 {message}\n" for message in _SCSS_ERRORS.values())
    _expect("the style sheets", said[: len(expected)], expected)
    return said


_SASS = Project(
    name="libsass",
    requirement="libsass==0.23.0",
    library=("libsass/src/*.c", "libsass/src/*.cpp", "libsass/src/memory/*.cpp"),
    drivers={
        "compile.cpp": _SASS_DRIVER,
        # Its own tests are programs.
        "shared_ptr.cpp": '#define main shared_ptr_tests\n#include "test_shared_ptr.cpp"\n',
        "util_string.cpp": '#define main util_string_tests\n#include "test_util_string.cpp"\n',
    },
    flags=(
        "-I{sources}/libsass/include",
        "-I{sources}/libsass/src",
        "-I{sources}/libsass/test",
        '-DLIBSASS_VERSION="3.6"',
        "-w",
    ),
    cplusplus=True,
    check=_check_sass,
    check_shared=_check_sass_library,
)


PROJECTS = {project.name: project for project in (_BROTLI, _ZSTD, _LUA, _SASS)}
