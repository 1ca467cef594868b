"""A stream whose text is made up from its position, and a harvester that needs no language model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

from sae_tools.models.sites import Site
from sae_tools.rows import Contexts, Rows


@dataclass
class FakeStream(Iterator[Contexts]):
    """`count` batches of contexts (endless if None), a function of (salt, number of the batch) alone."""

    batch: int = 3
    context: int = 8
    count: int | None = None
    salt: int = 0
    vocabulary: int = 250
    at: int = 0
    drawn: int = field(default=0, compare=False)

    def __next__(self) -> Contexts:
        if self.count is not None and self.at >= self.count:
            raise StopIteration
        generator = torch.Generator().manual_seed(1000 * self.salt + self.at)
        tokens = torch.randint(0, self.vocabulary, (self.batch, self.context), generator=generator)
        document = (self.at * self.batch + torch.arange(self.batch))[:, None].expand_as(tokens) // 2
        self.at, self.drawn = self.at + 1, self.drawn + 1
        return Contexts(tokens, document)

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        self.at = state["at"]


class FakeHarvester:
    """Rows for the tokens that `divisor` does not divide, so that their number differs from batch to batch."""

    need_scale = True

    def __init__(self, divisor: int = 3, dtype: torch.dtype = torch.float32):
        self.divisor = divisor
        self.sites = [Site("mlp_out", 1, "blocks.1.hook_mlp_out", 2), Site("mlp_acts", 0, "blocks.0.mlp.hook_post", 3)]
        self.model = SimpleNamespace(dtype=dtype, device=torch.device("cpu"))

    def harvest(self, contexts: Contexts) -> Rows:
        kept = contexts.tokens % self.divisor != 0
        tokens, document = contexts.tokens[kept], contexts.document[kept]
        position = torch.arange(contexts.tokens.shape[1]).expand_as(contexts.tokens)[kept]
        x = tokens.float()[:, None]
        activations = {"mlp_out@1": x * torch.tensor([1.0, -2.0]), "mlp_acts@0": x + position[:, None] * torch.ones(3)}
        activations = {name: value.to(self.model.dtype).float() for name, value in activations.items()}
        return Rows(activations, tokens, position, document, 1 + tokens.float())


def same_rows(a: Rows, b: Rows) -> bool:
    """Bit for bit."""
    assert a.scale is not None and b.scale is not None
    return (
        a.activations.keys() == b.activations.keys()
        and all(torch.equal(a.activations[name], b.activations[name]) for name in a.activations)
        and all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("tokens", "position", "document", "scale"))
    )
