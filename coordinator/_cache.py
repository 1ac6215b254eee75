"""The cache as a coordinator has it: where results are kept, and what earlier builds were made of."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from attrs import field, frozen

from coordinator._records import Records
from workers.errors import RequestError
from workers.store import LocalStore, NoStore, default_directory, default_limit, open_store
from workers.work import typed

__all__ = ["Cache", "OpenCache", "open_cache"]


@frozen(kw_only=True)
class Cache:
    """Where results are kept.

    `directory` is shared by any number of processes (default: `$LTOD_CACHE_DIR`, else `ltod` in `$XDG_CACHE_HOME` or
    in `~/.cache`), and kept below `limit_bytes` (default: `$LTOD_CACHE_SIZE`, else 10 GiB). `remote` is the URL of a
    second one behind it, of a server that speaks Bazel's HTTP cache protocol (default: `$LTOD_CACHE_REMOTE`, if set).

    Whatever is wrong with either, builds are slower, and never fail for it.
    """

    directory: Path | None = field(default=None, validator=typed(Path, None))
    limit_bytes: int | None = field(default=None, validator=typed(int, None))
    remote: str | None = field(default=None, validator=typed(str, None))


@frozen
class OpenCache:
    """A cache in use. Where there is no place for one, a `problem` says why."""

    store: LocalStore | NoStore
    records: Records | None = None
    problem: str = ""

    @property
    def warning(self) -> str | None:
        """What keeps the cache from being of use, if anything does: for the user, who can mend it."""
        stats = self.store.stats
        local = self.problem or stats.trouble
        return "; ".join([*([f"the cache cannot be used: {local}"] if local else []), *stats.remote_troubles]) or None


@asynccontextmanager
async def open_cache(cache: Cache, environ: Mapping[str, str]) -> AsyncIterator[OpenCache]:
    """Open what `cache` says. Raises `RequestError` where that makes no sense."""
    limit = cache.limit_bytes if cache.limit_bytes is not None else default_limit(environ)
    if limit <= 0:
        raise RequestError(f"a cache of {limit} bytes: give a positive size")
    try:
        directory = cache.directory or default_directory(environ)
    except RequestError as error:  # nobody has asked for a cache, so this is no reason to fail
        yield OpenCache(NoStore(), problem=str(error))
        return
    directory = Path(os.path.abspath(directory))  # noqa: PTH100 (`..` goes, too)
    url = cache.remote if cache.remote is not None else environ.get("LTOD_CACHE_REMOTE", "")
    async with AsyncExitStack() as stack:
        remote = None
        if url:
            from workers.store.http_tier import open_http_tier

            try:
                remote = await stack.enter_async_context(open_http_tier(url))
            except ValueError as error:
                raise RequestError(f"the remote cache: {error}") from error  # the URL may have a password
        store = stack.enter_context(open_store(directory, limit_bytes=limit, remote=remote))
        await stack.enter_async_context(store.uploading())
        yield OpenCache(store, Records(directory))
