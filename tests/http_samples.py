"""What the tests of the second tier over HTTP share: a real nginx, limits for the impatient, and a build."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from tests.store_samples import ROOMY, content_of, key_of
from workers.store import LocalStore, open_store
from workers.store.http_tier import Limits, open_http_tier

IMPATIENT = Limits(
    connect_seconds=1,
    silence_seconds=0.6,
    upload_silence_seconds=0.6,
    request_seconds=5,
    pause_seconds=0.02,
    failing_seconds=0.5,
    off_seconds=0.5,
    longest_off_seconds=1,
)
HASTY = Limits(pause_seconds=0.01)

NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")

_CONFIG = """
daemon off; master_process off; {user}
pid {here}/pid; error_log {here}/error.log;
events {{ worker_connections 256; }}
http {{
    log_format told '$request_method $uri $status $connection';
    access_log {here}/access.log told;
    client_body_temp_path {here}/body; proxy_temp_path {here}/proxy; fastcgi_temp_path {here}/fastcgi;
    uwsgi_temp_path {here}/uwsgi; scgi_temp_path {here}/scgi;
    client_max_body_size 64m;
    server {{
        listen 127.0.0.1:{port}; listen unix:{here}/socket; {more}
        root {here}/files;
        dav_methods PUT; create_full_put_path on;
        location /locked/ {{ auth_basic cache; auth_basic_user_file {here}/users; }}
        location /static/ {{ dav_methods off; }}
        location /forbidden/ {{ limit_except GET {{ deny all; }} }}
        location /small/ {{ client_max_body_size 1k; }}
        location /broken/ {{ return 500; }}
        location /busy/ {{ add_header Retry-After 60 always; return 429; }}
        location /moved/ {{ return 302 http://127.0.0.1:{port}/; }}
        location /unreliable/ {{ if ($connection_requests ~ "[13579]$") {{ return 503; }} }}
    }}
}}
"""

USER, PASSWORD = "builder", "s3cret/p@ss"


class Nginx:
    """A server of files, which a test may look at, damage, stop and kill."""

    def __init__(self, here: Path, port: int, process: subprocess.Popen[bytes]) -> None:
        self.here = here
        self.port = port
        self.files = here / "files"
        self._process = process

    def url(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def requests(self) -> list[list[str]]:
        """Method, path, status and connection of all so far. nginx tells after it has answered: wait a little."""
        return [line.split() for line in (self.here / "access.log").read_text().splitlines()]

    def stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def nginx(here: Path, more: str = "", prefix: Iterable[str] = (), port: int = 0) -> Iterator[Nginx]:
    if NGINX is None:
        pytest.skip("nginx is not installed (Debian: nginx)")
    (here / "files").mkdir(parents=True, exist_ok=True)
    (here / "users").write_text(f"{USER}:{{PLAIN}}{PASSWORD}\n")
    # One that was killed has left it.
    (here / "socket").unlink(missing_ok=True)
    port = port or free_port()
    user = "user root;" if os.getuid() == 0 else ""
    (here / "config").write_text(_CONFIG.format(here=here, port=port, more=more, user=user))
    command = [*prefix, NGINX, "-c", str(here / "config"), "-p", str(here), "-e", str(here / "error.log")]
    # Python ignores SIGXFSZ, and so does what it starts this way: writing too much is an error there, not death.
    with subprocess.Popen(command, restore_signals=False, stderr=subprocess.DEVNULL) as process:
        try:
            _await_port(port, process, here)
            yield Nginx(here, port, process)
        finally:
            process.kill()


def certify(here: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is signed by nobody else, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    key, certificate = here / "key", here / "certificate"
    request = [openssl, "req", "-x509", "-nodes", "-subj", "/CN=cache", "-keyout", str(key)]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(certificate)]
    subprocess.run([*request, *kind, *names], check=True, capture_output=True)
    return certificate, key


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _await_port(port: int, process: subprocess.Popen[bytes], here: Path) -> None:
    for _ in range(500):
        assert process.poll() is None, (here / "error.log").read_text()
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError("nginx does not listen")


@asynccontextmanager
async def shared(directory: Path, url: str, limits: Limits = HASTY) -> AsyncIterator[LocalStore]:
    """A store with a second tier at `url`, which uploads before `add` returns."""
    async with open_http_tier(url, limits) as tier:
        with open_store(directory, limit_bytes=ROOMY, remote=tier) as store:
            yield store


async def build(store: LocalStore, numbers: Iterable[int], size: int = 3_000) -> int:
    """Have all results, one after another; returns how many there were already. Fails if any is wrong."""
    found = 0
    for number in numbers:
        found += await build_one(store, number, size)
    return found


async def build_at_once(store: LocalStore, numbers: Iterable[int]) -> None:
    async with trio.open_nursery() as nursery:
        for number in numbers:
            nursery.start_soon(build_one, store, number)


async def build_one(store: LocalStore, number: int, size: int = 3_000) -> bool:
    entry = await store.find(key_of(number))
    if entry is not None:
        assert await store.read(entry.outputs[0]) == content_of(number, size)
        return True
    added = await store.add(key_of(number), {"o": content_of(number, size)})
    assert added is not None
    assert await store.read(added.outputs[0]) == content_of(number, size)
    return False
