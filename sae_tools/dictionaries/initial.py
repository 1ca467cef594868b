"""The tensors that a fresh dictionary starts from, whatever its architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_tools.config import DictionaryConfig
from sae_tools.dictionaries.median import geometric_median, mean_of_rows

Project = Callable[[Tensor], Tensor]
"""Removes from vectors what no row of their space can have (`Space.project`)."""
RIDGE = 1e-3
ROWS_PER_DIMENSION = 8
CHUNK = 4096
"""Rows whose centred copies are held at once."""


class Side(NamedTuple):
    """What a dictionary reads, or what it reconstructs."""

    dim: int
    sample: Float[Tensor, "rows dim"] | None = None
    """Some rows; those of what is reconstructed go with those of what is read."""
    project: Project | None = None


Target = Side
"""What a two-site dictionary reconstructs."""


class Start(NamedTuple):
    """float32, on the CPU."""

    encoder: Float[Tensor, "d_sae d_in"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_out"]
    b_dec: Float[Tensor, " d_out"]
    W_skip: Float[Tensor, "d_in d_out"] | None

    @property
    def shared(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The first arguments of every dictionary."""
        return self.encoder, self.b_enc, self.W_dec, self.b_dec


def initial_tensors(
    cfg: DictionaryConfig, generator: torch.Generator, read: Side, target: Target | None = None
) -> Start:
    """As `build_dictionary` says."""
    device = "cpu" if read.sample is None else read.sample.device

    def draw(side: Side) -> Float[Tensor, "d_sae dim"]:
        if cfg.encoder_init == "tied":
            rows = torch.randn(cfg.d_sae, side.dim, generator=generator)
        else:
            rows = (2 * torch.rand(cfg.d_sae, side.dim, generator=generator) - 1) / side.dim**0.5
        return rows if side.project is None else side.project(rows.to(device)).cpu()

    written = read if target is None else target
    W_dec = torch.nn.functional.normalize(draw(written), dim=-1)
    b_dec, b_enc = _initial_bias(cfg, written), torch.zeros(cfg.d_sae)
    if target is None:
        encoder = W_dec.clone() if cfg.encoder_init == "tied" else draw(read)
        return Start(encoder, b_enc, W_dec, b_dec, None)
    W_skip = torch.zeros(read.dim, target.dim) if cfg.skip else None
    if cfg.encoder_init == "kaiming" or read.sample is None or target.sample is None:
        return Start(draw(read), b_enc, W_dec, b_dec, W_skip)
    encoder = W_dec @ linear_prediction(read.sample, target.sample).T.cpu()
    return Start(encoder, -(encoder @ _initial_bias(cfg, read)), W_dec, b_dec, W_skip)


def linear_prediction(x: Float[Tensor, "rows d_in"], y: Float[Tensor, "rows d_out"]) -> Float[Tensor, "d_in d_out"]:
    """L with y - mean(y) ≈ (x - mean(x)) L in the least-squares sense, on the first few rows for each dimension of x.

    A ridge of `RIDGE` times the mean variance of x's dimensions keeps directions without variance at zero.
    """
    rows = ROWS_PER_DIMENSION * x.shape[1]
    x, y = x[:rows], y[:rows]
    mean_x, mean_y = mean_of_rows(x).to(x.dtype), mean_of_rows(y).to(y.dtype)
    covariance = x.new_zeros(x.shape[1], x.shape[1])
    common = x.new_zeros(x.shape[1], y.shape[1])
    for part_x, part_y in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        centred = part_x - mean_x
        covariance.addmm_(centred.T, centred)
        common.addmm_(centred.T, part_y - mean_y)
    diagonal = covariance.diagonal()
    mean = diagonal.mean()
    diagonal += torch.where(mean > 0, RIDGE * mean, 1.0)  # rows that are all equal predict nothing
    return torch.linalg.solve(covariance.double(), common.double()).to(x.dtype)


def _initial_bias(cfg: DictionaryConfig, side: Side) -> Float[Tensor, " dim"]:
    if cfg.b_dec_init == "zero":
        return torch.zeros(side.dim)
    if side.sample is None or side.sample.shape[0] == 0:
        raise ValueError(f"b_dec_init '{cfg.b_dec_init}' needs a sample of rows")
    bias = mean_of_rows(side.sample) if cfg.b_dec_init == "mean" else geometric_median(side.sample)
    return bias.float().cpu()
