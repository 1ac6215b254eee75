"""What was built before: a content store and an action cache on the local disk, shared by several processes at once.

* `interface`: the words (`Output`, `Entry`, `Stats`) and the seams (`Store`, `Claim`, `Remote`). `no_store`: `NoStore`.
* `here`: what is done at once. `local`: `open_store` and the `LocalStore` that it gives, for builds, with all else.
* `threads`: what the event loop does itself with files.
* `defaults`: where it is and how large it may become, where nobody says.
* `second_tier`: how a `Remote` is asked and told.
* `http_tier`: a `Remote` over HTTP (`open_http_tier`, imported from there by who has a URL); `http_exchange`,
  `http_client` and `breaker` are its parts, `uploads` are what nobody waits for.
* `action_result`: an entry as the bytes that other caches speak.
* `layout`: where everything is and how a file gets there; nothing else names a path.
* `files`: reading what cannot be trusted, and copying with one look at each byte.
* `blobs`: outputs on their way in. `delivery`: verified blobs to where they are wanted.
* `claims`: the right to compute an action, and how to wait for who has it.
* `leases`: signs of life that the kernel takes back from the dead.
* `housekeeper`: when to prune. `upkeep`: pruning, verifying, and what the dead left behind.
* `counters`: what happened in this process. `tally`: hits and misses of all processes in the last weeks.

The file system is the index. Nothing is synced to the disk and nothing is locked to be read, since a reader believes
only what has the digest that it asked for: whatever a crash, a full disk or a stranger does, makes misses.

Nothing of it is loaded before it is asked for: who needs `here` alone does not wait for trio.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workers.store.defaults import default_directory, default_limit
    from workers.store.interface import Claim, Entry, Output, Remote, Stats, Store
    from workers.store.local import LocalStore, open_store
    from workers.store.no_store import NoStore
    from workers.store.tally import Told
    from workers.store.upkeep import Pruned, Usage, Verified

__all__ = [
    "Claim",
    "Entry",
    "LocalStore",
    "NoStore",
    "Output",
    "Pruned",
    "Remote",
    "Stats",
    "Store",
    "Told",
    "Usage",
    "Verified",
    "default_directory",
    "default_limit",
    "open_store",
]

_HOMES = {
    "workers.store.defaults": ("default_directory", "default_limit"),
    "workers.store.interface": ("Claim", "Entry", "Output", "Remote", "Stats", "Store"),
    "workers.store.local": ("LocalStore", "open_store"),
    "workers.store.no_store": ("NoStore",),
    "workers.store.tally": ("Told",),
    "workers.store.upkeep": ("Pruned", "Usage", "Verified"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:  # for type checkers the imports above are all there is

    def __getattr__(name: str) -> Any:
        """A public name, from the module it lives in; the next time it is found at once."""
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
