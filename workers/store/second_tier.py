"""What the store on the local disk does with a second tier: asks it, believes nothing, and tells it.

Here belongs what is the same for every `Remote`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path

import trio

from workers.store.action_result import DecodeError, decode, encode
from workers.store.files import Unusable, discard
from workers.store.here import Here
from workers.store.interface import Entry, Output, Remote, RemoteOff, RemoteTrouble
from workers.store.threads import perform
from workers.store.uploads import Uploads

__all__ = ["SecondTier"]


class SecondTier:
    """A `Remote` as one store uses it."""

    def __init__(self, remote: Remote, here: Here) -> None:
        self._remote = remote
        self._here = here
        self._counters = here.counters
        self._coming: dict[str, trio.Event] = {}
        self._uploads = Uploads(self._upload, lambda count: self._counters.count(remote_skipped=count))

    async def find(self, key: str) -> Entry | None:
        """The entry of an action, after all its blobs have come here. Whether it is kept here is not our business."""
        message = None
        with self._asking():
            message = await self._remote.get_action(key)
        if message is None:
            return None
        try:
            # Nothing at all is a result as well, but a server that answers nothing to everything is more likely.
            entry = decode(message) if message else None
        except DecodeError:
            entry = None
        if entry is None:
            self._counters.count(remote_failures=1)
            return None
        for output in entry.outputs:
            if not await self._have(output):
                return None
        return entry

    async def tell(self, key: str, entry: Entry) -> None:
        """Upload an entry with its blobs, or have it uploaded."""
        await self._uploads.put((key, entry))

    def uploading(self, drain_seconds: float) -> AbstractAsyncContextManager[None]:
        """While in the block, `tell` does not wait."""
        return self._uploads.background(drain_seconds)

    async def _have(self, output: Output) -> bool:
        """Have a blob here; who comes while it is on its way waits for that."""
        while not self._here.blobs.use(output):
            coming = self._coming.get(output.digest)
            if coming is not None:
                await coming.wait()
                continue
            coming = self._coming[output.digest] = trio.Event()
            try:
                return await self._download(output)
            finally:
                del self._coming[output.digest]
                coming.set()
        return True

    async def _download(self, output: Output) -> bool:
        try:
            temporary = self._here.writer.name()
        except OSError as error:
            self._counters.not_stored(error)
            return False
        try:
            found = False
            with self._asking():
                found = await self._remote.get_blob(output.digest, output.size, Path(temporary))
            if not found:
                return False
            await perform(output.size, lambda: self._here.blobs.accept(temporary, output))
        except Unusable:
            self._counters.count(remote_failures=1)
            return False
        except OSError as error:
            self._counters.not_stored(error)
            return False
        finally:
            discard(temporary)
        self._counters.count(bytes_written=output.size)
        self._here.wrote(output.digest, output.size)
        return True

    async def _upload(self, upload: tuple[str, Entry]) -> None:
        key, entry = upload
        # An entry without its blobs would only cost others a request, so the first failure ends it.
        with self._asking():
            for output in entry.outputs:
                await self._remote.put_blob(output.digest, Path(self._here.layout.blob(output.digest)))
            await self._remote.put_action(key, encode(entry))

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Whatever the second tier raises is counted and forgotten."""
        try:
            yield
        except RemoteOff:
            self._counters.count(remote_skipped=1)
        except RemoteTrouble as trouble:
            self._counters.count(remote_failures=1)
            self._counters.remote_troubled(str(trouble))
        except Exception:
            self._counters.count(remote_failures=1)
