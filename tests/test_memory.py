"""keep_freed_memory in a process of its own: it changes what malloc does for good."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, re
from sae_tools.memory import keep_freed_memory
kept = keep_freed_memory()
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
block = libc.malloc(ctypes.c_size_t(200 << 20))
ctypes.memset(block, 1, 200 << 20)
libc.free(ctypes.c_void_p(block))
print(kept, resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_freed_memory_stays():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    kept, megabytes = done.stdout.split()
    if kept == "False":
        pytest.skip("no glibc")
    assert int(megabytes) > 200
