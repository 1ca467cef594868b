"""Where a job's dictionaries read and write."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sae_tools.config import DictionaryConfig, JobConfig
from sae_tools.errors import UserError
from sae_tools.models.load import LanguageModel
from sae_tools.models.sites import Site, comes_before, resolve_site
from sae_tools.spaces import check_space


class Sites(NamedTuple):
    """Of one dictionary."""

    read: Site
    written: Site
    """The same, but for a two-site dictionary."""


def resolve_sites(cfg: JobConfig, model: LanguageModel) -> dict[str, Sites]:
    """The sites of every dictionary, by dictionary name.

    Raises UserError for a site that the model does not have, or that the dictionary's space does not read, and for
    a dictionary that would write before it reads.
    """
    return {name: _sites(name, dictionary, model) for name, dictionary in cfg.dictionaries.items()}


def _sites(name: str, cfg: DictionaryConfig, model: LanguageModel) -> Sites:
    read = resolve_site(model, cfg.site)
    check_space(cfg.space, read)
    if cfg.writes is None:
        return Sites(read, read)
    written = resolve_site(model, cfg.writes.site)
    check_space(cfg.writes.space, written, "writes.")
    if comes_before(model, written, read):
        raise UserError(
            f"dictionaries.{name} reads {read.name} and writes {written.name}, which is computed before it: a "
            f"dictionary predicts what comes from what it reads."
        )
    return Sites(read, written)


def all_sites(sites: Iterable[Sites]) -> list[Site]:
    """What has to be harvested: every site that is read or written, once, in the order of the dictionaries."""
    return list({site.name: site for each in sites for site in each}.values())
