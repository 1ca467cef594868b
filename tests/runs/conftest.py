from __future__ import annotations

import os
import shutil

import pytest

from tests.runs.killing import Killed


@pytest.fixture
def kill_before(monkeypatch):
    """kill_before(n): raise Killed at the n-th file operation from now and at every later one."""
    count = {"left": -1}

    def patch(module, name):
        real = getattr(module, name)

        def operation(*args, **kwargs):
            if count["left"] == 0:
                raise Killed
            count["left"] -= 1
            return None if name == "fsync" else real(*args, **kwargs)  # the tests need no disk

        monkeypatch.setattr(module, name, operation)

    for name in ("replace", "rename", "mkdir", "fsync", "unlink", "rmdir", "open"):
        patch(os, name)
    patch(shutil, "rmtree")
    return lambda n: count.update(left=n)
