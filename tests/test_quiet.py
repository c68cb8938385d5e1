"""What a block prints by any way is not shown, and what comes after it is."""

import os
import sys

import pytest

from megalm.quiet import quiet_output


def test_what_compilers_write_is_not_shown_and_stderr_keeps_its_descriptor(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """DeepSpeed takes a stderr without one for a library that is missing."""
    with quiet_output():
        assert sys.stderr.fileno() >= 0
        os.write(1, b"compiling")
        os.write(2, b"a warning")
    os.write(2, b"afterwards")
    assert capfd.readouterr() == ("", "afterwards")
