"""Layer: end-to-end. Real programs, linked by lld with ltod-dtlto as its distributor, and then made to work.

The long form, with more of them, is `python -m tests.stress.dtlto`. Sources come from PyPI the first time; without a
network, the test is skipped.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.dtlto_site import CLANG, needs_lld
from tests.projects import FetchError, Project, cache_dir, fetch
from tests.recipes import PROJECTS
from tests.stress.dtlto import SPLIT, Build, check_build, check_wheel
from tests.thin_site import needs_cc

pytestmark = pytest.mark.e2e


def sources_of(project: Project) -> Path:
    try:
        return fetch(project, cache_dir())
    except FetchError as error:
        pytest.skip(f"no sources: {error}")


@needs_lld
@pytest.mark.parametrize(("name", "flags"), [("lua", ("-g",)), ("zstd", ())])
def test_c(name: str, flags: tuple[str, ...], place: Path) -> None:
    sources = sources_of(PROJECTS[name])
    check_build(Build(PROJECTS[name], flags), sources, place)


@needs_cc
def test_by_the_wheel_alone(place: Path) -> None:
    check_wheel(PROJECTS["brotli"], sources_of(PROJECTS["brotli"]), place)


_TRIE_DRIVER = r"""
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <typeinfo>
#include "marisa/trie.h"

struct Question { virtual ~Question() = default; virtual size_t answer(const marisa::Trie &) const = 0; };
std::unique_ptr<Question> question(const std::string &kind, const std::string &text);

int main() {
    marisa::Keyset keys;
    for (int k = 0; k < 20000; k++) keys.push_back(std::to_string(k * 7919 % 99991).c_str());
    marisa::Trie trie, copy;
    trie.build(keys, MARISA_TINY_CACHE | MARISA_LABEL_ORDER);
    trie.save("trie"), copy.load("trie");
    for (const char *kind : {"exact", "prefix", "predictive"})
        for (const char *text : {"79", "9999", "none", ""})
            std::printf("%s %s %zu\n", kind, text, question(kind, text)->answer(copy));
    try {
        question("odd", "");
    } catch (const std::out_of_range &error) {
        std::printf("%s\n", error.what());
    }
    try {
        copy.load("nowhere");
    } catch (const marisa::Exception &error) {
        std::printf("%d\n", error.error_code() == MARISA_IO_ERROR);
    }
    std::printf("%d\n", typeid(*question("exact", "")) == typeid(*question("exact", "x")));
}
"""

_TRIE_QUESTIONS = r"""
#include <memory>
#include <stdexcept>
#include <string>
#include "marisa/trie.h"

struct Question { virtual ~Question() = default; virtual size_t answer(const marisa::Trie &) const = 0; };

namespace {
struct Asked : Question {
    explicit Asked(std::string text) : text(std::move(text)) {}
    virtual bool next(const marisa::Trie &, marisa::Agent &) const = 0;
    size_t answer(const marisa::Trie &trie) const override {
        marisa::Agent agent;
        agent.set_query(text.data(), text.size());
        size_t count = 0;
        while (next(trie, agent)) count++;
        return count;
    }
    std::string text;
};
struct Exact : Question {
    explicit Exact(std::string text) : text(std::move(text)) {}
    size_t answer(const marisa::Trie &trie) const override {
        marisa::Agent agent;
        agent.set_query(text.c_str());
        return trie.lookup(agent);
    }
    std::string text;
};
struct Prefix : Asked {
    using Asked::Asked;
    bool next(const marisa::Trie &trie, marisa::Agent &agent) const override {
        return trie.common_prefix_search(agent);
    }
};
struct Predictive : Asked {
    using Asked::Asked;
    bool next(const marisa::Trie &trie, marisa::Agent &agent) const override { return trie.predictive_search(agent); }
};
}

std::unique_ptr<Question> question(const std::string &kind, const std::string &text) {
    if (kind == "exact") return std::make_unique<Exact>(text);
    if (kind == "prefix") return std::make_unique<Prefix>(text);
    if (kind == "predictive") return std::make_unique<Predictive>(text);
    throw std::out_of_range("no question is " + kind);
}
"""


def _check_trie(program: Path, sources: Path, scratch: Path) -> str:
    done = subprocess.run([program], cwd=scratch, capture_output=True, timeout=60, text=True, check=True)
    keys = {str(k * 7919 % 99991) for k in range(20000)}
    *counts, thrown, failed, alike = done.stdout.splitlines()
    assert (thrown, failed, alike) == ("no question is odd", "1", "1")
    found = {tuple(line.split(" ")[:2]): int(line.split(" ")[2]) for line in counts}
    for text in ("79", "9999", "none", ""):
        assert found["exact", text] == (text in keys)
        assert found["prefix", text] == sum(text[:length] in keys for length in range(1, len(text) + 1))
        assert found["predictive", text] == sum(key.startswith(text) for key in keys)
    return done.stdout


TRIE = Project(
    name="marisa",
    requirement="marisa-trie==1.2.1",
    library=("marisa-trie/lib/marisa/*.cc", "marisa-trie/lib/marisa/grimoire/*/*.cc"),
    drivers={"main.cc": _TRIE_DRIVER, "questions.cc": _TRIE_QUESTIONS},
    flags=("-I{sources}/marisa-trie/include", "-I{sources}/marisa-trie/lib", "-w"),
    cplusplus=True,
    check=_check_trie,
)


@needs_lld
@pytest.mark.parametrize("flags", [(), SPLIT], ids=["", "split units"])
def test_cplusplus(flags: tuple[str, ...], place: Path) -> None:
    """Exceptions, run-time types, and virtual functions of two modules."""
    asked = subprocess.run(
        [CLANG, "--driver-mode=g++", "-E", "-x", "c++", "-"], input="#include <memory>", text=True, capture_output=True
    )
    if asked.returncode != 0:
        pytest.skip("there are no headers of a C++ library")
    check_build(Build(TRIE, flags), sources_of(TRIE), place)
