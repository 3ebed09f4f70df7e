"""Commands run in this process. Another one takes seconds to import torch; how it ends is tested in other places."""

import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from subprocess import CompletedProcess
from unittest.mock import patch

import pytest

from infalign.cli import main


def run_here(*arguments: str, **environment: str) -> "CompletedProcess[str]":
    """What ``infalign`` with these arguments prints, and its exit status."""
    stdout, stderr = StringIO(), StringIO()
    with (
        patch.object(sys, "argv", ["infalign", *arguments]),
        patch.dict(os.environ, environment),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    status = ended.value.code
    assert isinstance(status, int)
    return CompletedProcess(arguments, status, stdout.getvalue(), stderr.getvalue())
