"""Layer: e2e. Two machines that share a cache over HTTP: what one has made, the other does not make."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import files, ltod, ltod_json
from tests.http_samples import Nginx, nginx
from tests.samples import compile_c, small_c

pytestmark = pytest.mark.e2e

KINDS = [["--lto", "thin"], ["--lto", "fat"], []]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Nginx]:
    if shutil.which("nginx") is None:
        pytest.skip("there is no nginx")
    with nginx(tmp_path / "nginx") as running:
        yield running


def command(place: Path, machine: str, url: str, kind: list[str]) -> list[str | Path]:
    out = place / machine / "out"
    cache: list[str | Path] = ["--cache-dir", place / machine / "cache", "--cache-remote", url]
    return [*kind, *cache, "--out-dir", out, "--link", "exe", "-o", out / "program"]


def modules(place: Path) -> list[Path]:
    sources = {f"m{number}": small_c(number, 4) for number in range(4)}
    sources["main"] = "int walk0(int);\nint main(int c, char **v) { return walk0(c) & 0; }\n"
    return compile_c(sources, place / "bc")


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_one_machine_made_the_other_gets(kind: list[str], place: Path, server: Nginx) -> None:
    inputs = modules(place)
    first = ltod_json(*command(place, "one", server.url(), kind), *inputs)
    second = ltod_json(*command(place, "two", server.url(), kind), *inputs)
    assert {item["cache"] for item in first["items"] if item["stage"] != "link"} == {"miss"}
    assert {item["cache"] for item in second["items"] if item["stage"] != "link"} == {"hit"}
    assert files(str(place / "one" / "out")) == files(str(place / "two" / "out"))
    assert (place / "one/out/program").read_bytes() == (place / "two/out/program").read_bytes()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_server_that_dies_makes_builds_slower_and_says_so(kind: list[str], place: Path, server: Nginx) -> None:
    inputs = modules(place)
    url = server.url()
    server.kill()
    done = ltod("build", *command(place, "one", url, kind), *inputs, "--json")
    assert done.returncode == 0
    assert {item["cache"] for item in json.loads(done.stdout)["items"] if item["stage"] != "link"} == {"miss"}
    (warning,) = (one for one in json.loads(done.stdout)["diagnostics"] if one["severity"] == "warning")
    assert url.split("/")[2] in warning["message"]
    again = ltod_json(*command(place, "one", url, kind), *inputs)
    assert {item["cache"] for item in again["items"] if item["stage"] != "link"} == {"hit"}
