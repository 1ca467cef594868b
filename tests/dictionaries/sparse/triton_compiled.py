"""Compiles every launch of the kernels at real sizes for compute capability 9.0, on any machine, and prints for each
what it takes: `_name {sizes} registers n stack n`. `test_triton.py` runs it, in a process where Triton compiles.

The interpreter takes what the compiler refuses, and says nothing of registers.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from sae_tools.dictionaries.sparse import triton_kernels, triton_select
from sae_tools.dictionaries.sparse.torch_kernels import ByFeature

POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
done = set()


def compiled(kernel: Any, programs: int, *arguments: Any, **settings: Any) -> None:
    """In place of `triton_select.launch`."""
    warps = settings.pop("num_warps")
    names = kernel.arg_names
    signature, aligned = dict.fromkeys(settings, "constexpr"), {}
    for place, (name, value) in enumerate(zip(names, arguments, strict=False)):
        is_tensor = isinstance(value, torch.Tensor)
        signature[name] = POINTERS[value.dtype] if is_tensor else "i32"
        if is_tensor or value % 16 == 0:
            aligned[(place,)] = [["tt.divisibility", 16]]
    key = (kernel.__name__, str(signature), str(settings), str(aligned))
    if key in done:
        return
    done.add(key)
    signature = {name: signature[name] for name in names}  # KeyError: an argument is missing
    constants = {(names.index(name),): value for name, value in settings.items()}
    source = ASTSource(kernel, signature, constants, aligned)
    binary = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps}).asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0]
    print(f"{kernel.__name__} {settings | {'num_warps': warps}} registers {registers} stack {stack}", flush=True)


triton_select.launch = triton_kernels.launch = compiled

for dtype in (torch.float32, torch.bfloat16):
    for d_sae, k in ((32_768, 64), (4000, 32), (40_001, 128)):
        triton_kernels.top_k(torch.zeros(2, d_sae, dtype=dtype), k)
    triton_kernels.largest(torch.zeros(16, 4096, dtype=dtype), 64)
    for d in (768, 100):
        a, b = torch.zeros(64, d, dtype=dtype), torch.zeros(32, d, dtype=dtype)
        features, weights = torch.zeros(256, dtype=torch.int32), torch.zeros(256)
        offsets = torch.arange(0, 257, 4, dtype=torch.int32)
        triton_kernels.dots(offsets, features, a, b)
        triton_kernels.sum_by_row(offsets, features, weights, b)
        pairs = ByFeature(features, features, torch.full((33,), 256, dtype=torch.int32))
        triton_kernels.sum_by_feature(pairs, weights, a)
