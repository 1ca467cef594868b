"""Checks every Triton kernel against float64 at the sizes of real training, and says how near its bound it is.

    python scripts/checks/on_cuda.py            # on a machine with CUDA; exit status 1 if a kernel is wrong
    python scripts/checks/on_cuda.py --small    # seconds; with TRITON_INTERPRET=1 in the environment, on any machine

Prints a line per kernel and size: milliseconds (median of 10), what the memory needs at least for what the kernel reads
and writes (at the rate of a copy, measured here), the share of that bound reached, and the time of `torch_kernels.py`.
Vectors are counted once per pair although the L2 cache may serve some: more than 100 % of the bound is possible. A
kernel is right if its error is below 2e-6 of the sum of its terms' magnitudes, its selection exactly the largest, and
two runs equal in every bit.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_tools.dictionaries.sparse import torch_kernels, triton_kernels

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
TOLERANCE = 2e-6
PIECE = 2**26
"""Numbers in float64 at a time."""


class Size(NamedTuple):
    d: int
    d_sae: int
    k: int
    rows: int


SIZES = [
    Size(768, 32_768, 32, 4096),
    Size(768, 32_768, 64, 16_384),
    Size(768, 131_072, 64, 8192),
    Size(4096, 32_768, 64, 8192),
    Size(4096, 131_072, 32, 16_385),  # more than 2^31 pre-activations
    Size(1000, 40_001, 33, 4097),  # nothing that vectors of 16 bytes divide
]
SMALL = [Size(70, 100, 5, 30)]


class Row(NamedTuple):
    kernel: str
    error: float
    right: bool
    ms: float
    bytes: int
    torch_ms: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="one size of seconds")
    small = parser.parse_args().small
    if not INTERPRETED and not torch.cuda.is_available():
        print("There is no CUDA here; TRITON_INTERPRET=1 --small runs the kernels in Triton's interpreter.")
        return 2
    rate = copy_rate()
    print(f"{'CPU, interpreted' if INTERPRETED else torch.cuda.get_device_name()}; torch {torch.__version__}", end="")
    print(f"; a copy runs at {rate / 1e9:.0f} GB/s")
    print(f"{'kernel':>24} {'ms':>9} {'bound':>9} {'share':>6} {'PyTorch':>9} {'error':>8}")
    right = True
    for size in SMALL if small else SIZES:
        print(f"d {size.d}, d_sae {size.d_sae}, k {size.k}, {size.rows} rows")
        for row in check(size):
            bound = 1000 * row.bytes / rate
            print(
                f"{row.kernel:>24} {row.ms:9.3f} {bound:9.3f} {bound / row.ms:6.0%} {row.torch_ms:9.3f} "
                f"{row.error:8.0e}{'' if row.right else '   WRONG'}",
                flush=True,
            )
            right &= row.right
    print("All are right." if right else "Some are WRONG.")
    return 0 if right else 1


def check(size: Size):
    generator = torch.Generator(DEVICE).manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=generator, device=DEVICE, dtype=dtype)

    k, d_sae, rows = size.k, size.d_sae, size.rows
    features = torch.empty(0)
    for dtype in (torch.float32, torch.bfloat16):
        pre = draw(rows, d_sae, dtype=dtype)
        pre[:, 7] += 8  # a feature that fires on every row
        yield of_top_k(pre, k)
        if dtype == torch.float32:
            features = triton_kernels.top_k(pre, k)[1].flatten()
        yield of_largest(pre, rows * k)
        del pre
    offsets = torch.arange(0, rows * k + 1, k, device=DEVICE).int()
    weights = draw(rows * k)
    pairs = triton_kernels.by_feature(offsets, features, d_sae)
    expected = torch_kernels.by_feature(offsets, features, d_sae)
    equal = all(torch.equal(a.long(), b.long()) for a, b in zip(pairs, expected, strict=True))
    times = [
        milliseconds(lambda kernels=kernels: kernels.by_feature(offsets, features, d_sae))
        for kernels in (triton_kernels, torch_kernels)
    ]
    yield Row("by_feature", 0.0 if equal else 1.0, equal, times[0], 12 * len(features), times[1])
    for dtype in (torch.float32, torch.bfloat16):
        a, b = draw(rows, size.d, dtype=dtype), draw(d_sae, size.d, dtype=dtype)
        row_of = torch_kernels.row_of_pairs(offsets, len(features))
        read = len(features) * size.d * dtype.itemsize
        yield of_sum(
            f"dots {name(dtype)}",
            lambda kernels, a=a, b=b: kernels.dots(offsets, features, a, b),
            exact_dots(row_of, features, a, b),
            read + a.nbytes,
        )
        w = weights.to(dtype)
        yield of_sum(
            f"sum_by_row {name(dtype)}",
            lambda kernels, b=b, w=w: kernels.sum_by_row(offsets, features, w, b),
            exact_sum(rows, row_of, features, w, b),
            read + 4 * rows * size.d,
        )
        yield of_sum(
            f"sum_by_feature {name(dtype)}",
            lambda kernels, a=a, w=w: kernels.sum_by_feature(pairs, w, a),
            exact_sum(d_sae, features, row_of, w, a),
            read + 4 * d_sae * size.d,
        )


def of_top_k(pre: Tensor, k: int) -> Row:
    values, indices = triton_kernels.top_k(pre, k)
    wrong = 0
    for rows in range(0, len(pre), 1024):
        part = slice(rows, rows + 1024)
        expected = pre[part].topk(k, dim=1).values.float()
        wrong += int((values[part].sort(1, descending=True).values != expected).sum())
        wrong += int((pre[part].gather(1, indices[part].long()).float() != values[part]).sum())
    ordered = indices.sort(1).values
    wrong += int((ordered.diff(dim=1) == 0).sum())
    again = triton_kernels.top_k(pre, k)
    right = not wrong and torch.equal(values, again[0]) and torch.equal(indices, again[1])
    ms, torch_ms = (milliseconds(lambda kernels=kernels: kernels.top_k(pre, k)) for kernels in _BOTH)
    return Row(f"top_k {name(pre.dtype)}", wrong / values.numel(), right, ms, pre.nbytes, torch_ms)


def of_largest(pre: Tensor, count: int) -> Row:
    """Right if all entries above the smallest that was found were found too, each once."""
    offsets, features = triton_kernels.largest(pre, count)
    rows = torch_kernels.row_of_pairs(offsets, count)
    found = pre[rows, features.long()]
    smallest = found.min()
    missed = int((pre > smallest).sum()) - int((found > smallest).sum())
    again = triton_kernels.largest(pre, count)
    right = missed == 0 and int(offsets[-1]) == count
    right = right and bool(((rows * pre.shape[1] + features).diff() > 0).all())
    right = right and torch.equal(again[0], offsets) and torch.equal(again[1], features)
    ms = milliseconds(lambda: triton_kernels.largest(pre, count))
    torch_ms = milliseconds(lambda: pre.flatten().topk(count, sorted=False))
    return Row(f"largest {name(pre.dtype)}", missed / count, right, ms, pre.nbytes, torch_ms)


def of_sum(kernel: str, compute: Callable[[Any], Tensor], exact: tuple[Tensor, Tensor], read: int) -> Row:
    got, again = compute(triton_kernels), compute(triton_kernels)
    value, magnitude = exact
    error = float(((got - value).abs() / (magnitude + 1e-30)).max())
    right = error <= TOLERANCE and torch.equal(got, again)
    ms, torch_ms = (milliseconds(lambda kernels=kernels: compute(kernels)) for kernels in _BOTH)
    return Row(kernel, error, right, ms, read, torch_ms)


def exact_dots(rows: Tensor, features: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(the dots, the sums of their terms' magnitudes), in float64."""
    parts = []
    for r, f in zip(*(x.split(max(1, PIECE // a.shape[1])) for x in (rows, features)), strict=True):
        terms = a[r].double() * b[f].double()
        parts.append((terms.sum(1), terms.abs().sum(1)))
    values, magnitudes = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(magnitudes)


def exact_sum(n: int, into: Tensor, of: Tensor, weights: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """(Σ weight · vectors[of] for each of n places `into`, the same of magnitudes), in float64."""
    value = torch.zeros(n, vectors.shape[1], dtype=torch.float64, device=vectors.device)
    magnitude = torch.zeros_like(value)
    for i, o, w in zip(*(x.split(max(1, PIECE // vectors.shape[1])) for x in (into, of, weights)), strict=True):
        terms = w.double()[:, None] * vectors[o].double()
        value.index_add_(0, i, terms)
        magnitude.index_add_(0, i, terms.abs_())
    return value, magnitude


def milliseconds(run: Callable[[], Any]) -> float:
    """Median of 10 after 2 (interpreted: one run). Includes what launching costs where that is more than the kernel."""
    if INTERPRETED:
        start = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - start)
    for _ in range(2):
        run()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(11)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in zip(marks, marks[1:], strict=False))


def copy_rate() -> float:
    """Bytes read and written per second by a copy."""
    source = torch.ones(2**20 if INTERPRETED else 2**29, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / milliseconds(lambda: target.copy_(source)) * 1000


def name(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


_BOTH = (triton_kernels, torch_kernels)

if __name__ == "__main__":
    sys.exit(main())
