"""ThinLTO with LLVM's own programs: the thin link by lld, backend compiles by lld or clang.

Here belongs what the seam asks for; how it is done is in the other `thin_` modules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from workers.llvm.lld_line import LldLines
from workers.llvm.oom import OomWatch
from workers.llvm.planner import Planner
from workers.llvm.thin_compile import Tools, thin_compile
from workers.llvm.thin_link import link_estimate, thin_link
from workers.llvm.toolchain import Toolchain
from workers.thin import ThinCompile, ThinLink, ThinLinked
from workers.work import Estimate, Failed, Finished

__all__ = ["ThinEngine"]


class ThinEngine:
    """Runs the toolchain's programs in directories below `scratch`. Any number of tasks may use it at once."""

    def __init__(
        self,
        toolchain: Toolchain,
        planner: Planner,
        lines: LldLines,
        scratch: Path,
        versions: Callable[[], str],
        oom: OomWatch,
    ) -> None:
        self._tools = Tools(toolchain, planner, scratch, versions, oom)
        self._lines = lines

    def thin_estimate(self, item: ThinLink) -> Estimate:
        """What the thin link is expected to need."""
        return link_estimate(item)

    async def thin_link(self, item: ThinLink) -> ThinLinked | Failed:
        """Plan the link; the contract is `workers.thin.ThinLtoBackend`'s."""
        return await thin_link(item, self._lines, self._tools.scratch, self._tools.oom, self._tools.versions)

    async def thin_compile(
        self, batch: Sequence[ThinCompile], *, keep_going: bool = True
    ) -> Sequence[Finished | Failed]:
        """Compile every item; the contract is `workers.thin.ThinLtoBackend`'s."""
        return await thin_compile(batch, self._tools, keep_going=keep_going)
