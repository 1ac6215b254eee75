"""Fat LTO of one build: everything is merged and optimised as a whole, then code is generated in parts.

A straight line, in `_run`; `_messages` is what it tells the build.
"""

from lto.fat._messages import FatEnded, FatLto, FatQueued, FatReport, FatStarted
from lto.fat._run import run_fat

__all__ = ["FatEnded", "FatLto", "FatQueued", "FatReport", "FatStarted", "run_fat"]
