"""Layer: pure. The public names of `coordinator`: all there, loaded when asked for."""

from __future__ import annotations

import pydoc
import subprocess
import sys

import pytest

import coordinator

pytestmark = pytest.mark.pure


def test_every_name_is_there_and_is_told_of() -> None:
    text = pydoc.render_doc(coordinator, renderer=pydoc.TextDoc())
    for name in coordinator.__all__:
        assert hasattr(coordinator, name)
        assert name in text
    assert set(coordinator.__all__) <= set(dir(coordinator))


def test_an_unknown_name_is_an_error_as_ever() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonesuch'"):
        _ = coordinator.nonesuch  # type: ignore[attr-defined]


def test_a_star_brings_all_of_them_and_the_package_alone_none() -> None:
    program = (
        "import sys, coordinator\n"
        "assert 'trio' not in sys.modules\n"
        "names = set(coordinator.__all__)\n"
        "from coordinator import *\n"
        "print(names <= set(globals()))\n"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"True\n"
