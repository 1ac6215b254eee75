"""What was built before: a content store and an action cache on the local disk, shared by several processes at once.

* `interface`: the words (`Output`, `Entry`, `Stats`) and the seams (`Store`, `Claim`, `Remote`), and `NoStore`.
* `local`: `open_store` and the `LocalStore` that it gives.
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
"""

from __future__ import annotations

from workers.store.defaults import default_directory, default_limit
from workers.store.interface import Claim, Entry, NoStore, Output, Remote, Stats, Store
from workers.store.local import LocalStore, open_store
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
