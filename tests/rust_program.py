"""A Rust program of real crates, regex and serde_json, from Debian's source packages; cargo needs no network for it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

__all__ = ["ANSWER", "CRATES", "TARGET", "cargo_build", "rust_problem", "write_program"]

CRATES = Path("/usr/share/cargo/registry")
TARGET = "x86_64-unknown-linux-gnu"

ANSWER = '{"lines":3,"longest":"alpha=12.5","names":["alpha","beta","gamma"],"total":387.5}\n'

_MANIFEST = """\
[package]
name = "prog"
version = "0.1.0"
edition = "2021"

[dependencies]
regex = "1"
serde_json = "1"
"""

_MAIN = """\
use regex::Regex;
use serde_json::{json, Value};

fn main() {
    let text = "alpha=12.5\\nbeta=42\\ngamma=333\\nnot a pair\\n";
    let pair = Regex::new(r"(?m)^(\\p{L}+)=([0-9]+(?:\\.[0-9]+)?)$").unwrap();
    let found: Vec<(&str, f64)> = pair
        .captures_iter(text)
        .map(|row| (row.get(1).unwrap().as_str(), row[2].parse().unwrap()))
        .collect();
    let longest = pair.find_iter(text).map(|one| one.as_str()).max_by_key(|one| one.len());
    let names: Vec<&str> = found.iter().map(|one| one.0).collect();
    let report = json!({
        "total": found.iter().map(|one| one.1).sum::<f64>(),
        "lines": found.len(),
        "names": names,
        "longest": longest,
    });
    let again: Value = serde_json::from_str(&report.to_string()).unwrap();
    println!("{again}");
}
"""


def rust_problem() -> str | None:
    """Why the program cannot be built here, if it cannot."""
    for tool in ("cargo", "rustc"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    said = subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=False).stdout
    if "LLVM version: 22." not in said:
        return "rustc's LLVM is not 22"
    if not list(CRATES.glob("regex-1*")) or not list(CRATES.glob("serde_json-1*")):
        return "the packages librust-regex-dev and librust-serde-json-dev are not installed"
    return None


def write_program(directory: Path, rustflags: Sequence[str], linker: str | None = None) -> None:
    """Write it, to be built for `TARGET` with these flags and, if need be, another linker than cc."""
    flags = ", ".join(f'"{flag}"' for flag in rustflags)
    config = f'[source.crates-io]\nreplace-with = "debian"\n\n[source.debian]\ndirectory = "{CRATES}"\n\n'
    config += f"[target.{TARGET}]\nrustflags = [{flags}]\n"
    if linker is not None:
        config += f'linker = "{linker}"\n'
    files = {"Cargo.toml": _MANIFEST, "src/main.rs": _MAIN, ".cargo/config.toml": config}
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def cargo_build(directory: Path, home: Path, **environ: str) -> Path:
    """Build it: the program. Raises `CalledProcessError`."""
    own = {"CARGO_HOME": str(home), "CARGO_NET_OFFLINE": "true", "RUSTC_WRAPPER": ""}
    subprocess.run(
        ["cargo", "build", "--quiet", "--release", f"--target={TARGET}"],
        cwd=directory,
        env={**os.environ, **own, **environ},
        check=True,
        capture_output=True,
        text=True,
    )
    return directory / "target" / TARGET / "release" / "prog"
