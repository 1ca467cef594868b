"""Sparse training: a step multiplies every row with the encoder once, and touches active features only in all else.

`select.py` chooses what is active from the product, in micro-batches; `pairs.py` is the result and the sums over it;
`autograd.py` says what the gradients are; `support.py` lets an architecture write its objective once for active pairs
and for all features; `dense.py` is the latter. Kernels: `torch_kernels.py` is the reference, `numba_kernels.py` serves
CPUs, `triton_kernels.py` CUDA, chosen in `kernels.py`.
"""

from sae_tools.dictionaries.sparse.autograd import decode_at, per_feature, preactivations_at, squared_norm
from sae_tools.dictionaries.sparse.dense import dense_gradients
from sae_tools.dictionaries.sparse.pairs import Pairs
from sae_tools.dictionaries.sparse.select import (
    Precision,
    Selection,
    select_above,
    select_largest,
    select_top_k,
)
from sae_tools.dictionaries.sparse.support import OnAll, OnPairs, Support

__all__ = [
    "OnAll",
    "OnPairs",
    "Pairs",
    "Precision",
    "Selection",
    "Support",
    "decode_at",
    "dense_gradients",
    "per_feature",
    "preactivations_at",
    "select_above",
    "select_largest",
    "select_top_k",
    "squared_norm",
]
