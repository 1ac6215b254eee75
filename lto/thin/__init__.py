"""ThinLTO of one build: thin link, then backend compiles as work items, costliest first, in a loop of their own.

`_machine` decides, `_loop` performs, `_messages` is what they say to each other and to the build.
"""

from lto.thin._loop import run_thin
from lto.thin._messages import ThinEnded, ThinLto, ThinQueued, ThinReport, ThinStarted

__all__ = ["ThinEnded", "ThinLto", "ThinQueued", "ThinReport", "ThinStarted", "run_thin"]
