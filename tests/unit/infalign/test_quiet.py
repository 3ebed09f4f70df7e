"""What keeps libraries quiet."""

import os

import pytest

from infalign.quiet import QUIET, keep_libraries_quiet


def test_libraries_are_quiet_unless_the_user_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"VLLM_LOGGING_LEVEL": "DEBUG"})
    keep_libraries_quiet()
    assert os.environ == QUIET | {"VLLM_LOGGING_LEVEL": "DEBUG"}
