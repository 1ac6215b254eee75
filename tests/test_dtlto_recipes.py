"""Layer: end-to-end. README.md's recipes for `ltod-dtlto`, run as they stand there: the second time, all is a hit."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.command import ltod
from tests.dtlto_programs import ANSWER, PROJECTS, Project

pytestmark = pytest.mark.e2e

DISTRIBUTOR = Path(sys.executable).parent / "ltod-dtlto"
SECTION = (
    (Path(__file__).parents[1] / "README.md")
    .read_text()
    .partition("\n## As the linker's ThinLTO distributor\n")[2]
    .partition("\n## ")[0]
)
RECIPES = dict(re.findall(r"^### (.+)\n(?:(?!###).*\n)*?```sh\n((?:(?!```).*\n)+)```", SECTION, re.MULTILINE))
# What a user's environment may say to compilers, linkers and Cargo. The recipes are for one that says nothing.
SPEAKING = re.compile(r"(CC|CXX|AR|LD)(_LD)?|(C|CPP|CXX|LD|RUST)FLAGS|(CMAKE|CARGO|RUSTC)_.*")


class Workshop:
    """Where a recipe runs: a directory with the project in it, and the environment that the README assumes."""

    def __init__(self, place: Path, project: Project, environment: Mapping[str, str]) -> None:
        self.directory = place / "project"
        self.stats = place / "stats"
        self.project = project
        search = f"{self._wrapped(place / 'bin')}:{DISTRIBUTOR.parent}:{os.environ['PATH']}"
        silent = {name: value for name, value in os.environ.items() if not SPEAKING.fullmatch(name)}
        own = {"PATH": search, "CARGO_HOME": str(place / "cargo"), "CARGO_NET_OFFLINE": "true"}
        self.environment = {**silent, **environment, **own}

    def _wrapped(self, directory: Path) -> Path:
        """A directory with an `ltod-dtlto` that also keeps the figures of each link, unless it is asked for them."""
        directory.mkdir()
        wrapper = directory / "ltod-dtlto"
        wrapper.write_text(
            f"""#!/bin/sh
case " $*" in
*" --stats="*) exec {shlex.quote(str(DISTRIBUTOR))} "$@" ;;
*) exec {shlex.quote(str(DISTRIBUTOR))} --stats={shlex.quote(str(self.stats))}/$$.json "$@" ;;
esac
"""
        )
        wrapper.chmod(0o755)
        return directory

    def run(self, recipe: str) -> None:
        """Run a recipe on a fresh copy of the project, and the program that it makes."""
        for directory in (self.directory, self.stats):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
        for name, content in self.project.files.items():
            path = self.directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        done = self.start(["sh", "-e", "-c", recipe])
        assert done.returncode == 0, done.stdout + done.stderr
        assert self.start([self.program]).stdout == ANSWER

    def start(self, command: list[str | Path]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.directory, env=self.environment, capture_output=True, timeout=250, text=True
        )

    @property
    def program(self) -> Path:
        return self.directory / self.project.program

    def figures(self) -> dict[str, int]:
        """What became of the modules of all links together."""
        links = [json.loads(path.read_text()) for path in self.stats.iterdir()]
        names = ("hits", "misses", "shared", "uncached", "failed")
        return {name: sum(link[name] for link in links) for name in names}


@pytest.fixture
def workshop(request: pytest.FixtureRequest, place: Path) -> Workshop:
    heading, environment = request.param
    for tool in PROJECTS[heading].tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    if "rustc" in PROJECTS[heading].tools:
        version = _said("rustc", "-vV")
        if "\nLLVM version: 22." not in version:
            pytest.skip(f"rustc is not of LLVM 22: {' '.join(version.split())}")
        sysroot = Path(_said("rustc", "--print=sysroot"))
        if "Rust's own lld" in heading and not list(sysroot.glob("lib/rustlib/*/bin/rust-lld")):
            pytest.skip("rust-lld is not installed")
    assert DISTRIBUTOR.exists(), "the environment is older than ltod-dtlto: run ./deploy/venv again"
    return Workshop(place, PROJECTS[heading], environment)


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, check=True, timeout=60, text=True).stdout.strip()


def on(*headings: str) -> pytest.MarkDecorator:
    """Run the test in a workshop for each of these recipes."""
    cases: list[Any] = []
    for heading in headings:
        for environment in PROJECTS[heading].environments:
            name = "-".join([heading, *environment.values()])
            cases.append(pytest.param(heading, (heading, environment), id=name))
    return pytest.mark.parametrize(("heading", "workshop"), cases, indirect=["workshop"])


def test_every_recipe_is_run() -> None:
    assert list(RECIPES) == list(PROJECTS)
    assert SECTION.count("```sh\n") == len(RECIPES)


@on(*(heading for heading in PROJECTS if heading != "Options of the distributor"))
def test_a_recipe_compiles_once(heading: str, workshop: Workshop) -> None:
    workshop.run(RECIPES[heading])
    first = workshop.figures()
    program = workshop.program.read_bytes()
    # Links of one build share some modules: Rust's build scripts are alike.
    modules = first["misses"] + first["hits"] + first["shared"]
    assert first["misses"] >= workshop.project.modules
    assert (first["uncached"], first["failed"]) == (0, 0)
    workshop.run(RECIPES[heading])
    assert workshop.figures() == {"hits": modules, "misses": 0, "shared": 0, "uncached": 0, "failed": 0}
    assert workshop.program.read_bytes() == program


@on("Options of the distributor")
def test_options_reach_the_distributor(heading: str, workshop: Workshop) -> None:
    workshop.run(RECIPES[heading])
    assert list(workshop.stats.iterdir()) == []
    figures = json.loads((workshop.directory / "link.json").read_text())
    table = SECTION.partition("| `--stats=FILE` |")[2].partition("\n")[0]
    described = re.findall(r"`(\w+)`", table)
    assert described
    assert set(described) <= set(figures)
    assert figures["misses"] == 3


def test_every_option_that_is_shown_exists() -> None:
    shown = re.findall(r"^\| `(--?[a-z-]+)", SECTION, re.MULTILINE)
    usage = subprocess.run([DISTRIBUTOR, "--help"], capture_output=True, timeout=60, text=True).stdout
    assert shown
    assert [option for option in shown if not re.search(rf"^ .*{option}\b", usage, re.MULTILINE)] == []


@on("clang")
def test_what_a_link_came_to_can_be_seen_later(heading: str, workshop: Workshop) -> None:
    workshop.run(RECIPES[heading])
    workshop.run(RECIPES[heading])
    stats = ltod("stats", "--link", "prog", "--json", cwd=workshop.directory)
    assert stats.returncode == 0, stats.stderr
    answer = json.loads(stats.stdout)
    assert [(build["path"], build["hits"], build["misses"]) for build in answer["builds"]] == [
        (str(workshop.program), 3, 0),
        (str(workshop.program), 0, 3),
    ]
    explained = ltod("explain", "--link", "prog", cwd=workshop.directory)
    assert explained.returncode == 0, explained.stderr
    assert "3 hits, 0 misses" in explained.stdout
