"""Activation stores: rows harvested once, read by as many jobs as a sweep has.

    FOLDER/
      rows-00000.safetensors, …   the rows, shuffled, with a checksum each (store_shards.py)
      manifest.json               written last: what the rows are of, and every shard's size and checksum

A folder without a manifest is a store that is still being written, or was left so; running the same command again goes
on with it. `Store.open` reads the manifest and the shards' headers and compares sizes, layouts and checksums as written
there; `Store.verify` reads every byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sae_tools.activations.store_shards import Layout, ShardHeader, read_header, shard_name
from sae_tools.config import RowsConfig
from sae_tools.errors import UserError
from sae_tools.runs import atomic
from sae_tools.runs.tensors import load_tensors

MANIFEST = "manifest.json"
FORMAT, VERSION = "sae_tools activation store", 1
WHERE_FROM = ("name", "kind", "revision")
"""What a model's description says of where it lay; the fingerprints say what it is."""
ORDER_ONLY = ("shuffle_characters",)
"""Settings of the text that change its order and nothing else."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoredSite(_Part):
    name: str
    hook_name: str
    width: int = Field(ge=1)


class Plan(_Part):
    """What decides every byte of a store, known before its first row; each shard carries it."""

    model: dict[str, Any]
    """LanguageModel.describe()."""
    data: dict[str, Any]
    """The text's fingerprint (ContextStream.fingerprint) and the column that was read."""
    sites: list[StoredSite] = Field(min_length=1)
    scale: bool
    """Whether rows hold the final norm's scale."""
    dtype: Literal["float32", "bfloat16", "float16"]
    row_settings: RowsConfig
    seed: int
    contexts_per_forward: int = Field(ge=1)
    rows: int = Field(ge=1)
    fill_rows: int = Field(ge=1)
    """Rows that were permuted together in memory before they were written."""
    shard_rows: int = Field(ge=1)
    """Rows of each shard but the last."""

    @property
    def layout(self) -> Layout:
        return Layout({site.name: site.width for site in self.sites}, self.dtype, self.scale)

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_rows)

    def rows_of(self, shard: int) -> int:
        return min(self.shard_rows, self.rows - shard * self.shard_rows)

    @property
    def bytes(self) -> int:
        """Of the whole store on disk, some thousandths too large rather than too small: rows, headers, manifest."""
        header = len(self.model_dump_json()) * 9 // 8 + 6144  # the plan, escaped; where the text stood; the columns
        return self.rows * self.layout.row_bytes + self.shards * (header + 256) + header

    def difference(self, other: Plan) -> str | None:
        """The first setting in which a store with this plan is not what `other` asks: "seed is 0 there, but 1 here"."""
        there, here = (dict(_leaves(plan.model_dump(mode="json"))) for plan in (self, other))
        for key in {**there, **here}:
            if key not in {f"model.{name}" for name in WHERE_FROM} and there.get(key) != here.get(key):
                return f"{key} is {there.get(key)} there, but {here.get(key)} here"
        return None


class ShardEntry(_Part):
    file: str
    rows: int
    bytes: int
    sha256: str


class Manifest(_Part):
    format: Literal["sae_tools activation store"] = FORMAT
    version: int = VERSION
    plan: Plan
    shards: list[ShardEntry]
    text_passes: int = Field(ge=1)
    """Passes over the text that were begun to get so many rows."""
    versions: dict[str, str]
    """Of what computed the last of the rows."""


@dataclass(frozen=True)
class Store:
    """A complete store, opened: nothing of its rows is in memory."""

    path: Path
    manifest: Manifest
    headers: list[ShardHeader]
    fingerprint: str
    """Hash of the manifest, and so of everything in the store."""

    @property
    def plan(self) -> Plan:
        return self.manifest.plan

    @property
    def rows(self) -> int:
        return self.plan.rows

    @property
    def bytes(self) -> int:
        """Of all shards on disk."""
        return sum(header.bytes for header in self.headers)

    @staticmethod
    def open(path: str | Path) -> Store:
        """Raises UserError, one sentence, for a folder that is no store or not a complete one, and for a shard that is
        missing, truncated or not the one that was written (its bytes are not read: see `verify`)."""
        path = Path(path)
        if not path.is_dir():
            raise UserError(f"{path}: there is no such activation store.")
        if not (path / MANIFEST).is_file():
            if (path / shard_name(0)).is_file():
                raise UserError(f"{path} is not complete: run the sae-store command that began it again.")
            raise UserError(f"{path} is no activation store: it has no {MANIFEST}.")
        manifest = _read_manifest(path / MANIFEST)
        plan, headers = manifest.plan, []
        for number, entry in enumerate(manifest.shards):
            header = read_header(path / entry.file, plan.layout)
            found, expected = (header.rows, header.bytes, header.sha256), (entry.rows, entry.bytes, entry.sha256)
            if found != expected or header.rows != plan.rows_of(number):
                raise UserError(
                    f"{path / entry.file} is not the file that {MANIFEST} describes: it is another store's."
                )
            headers.append(header)
        return Store(path, manifest, headers, _digest(manifest))

    def verify(self, progress: Callable[[int], None] = lambda rows: None) -> None:
        """Reads every shard and compares its bytes with its checksum. Raises UserError, naming the file.

        progress: called with the number of rows checked so far.
        """
        rows = 0
        for number, header in enumerate(self.headers):
            load_tensors(self.path / shard_name(number))
            rows += header.rows
            progress(rows)

    def check_same_model(self, model: Mapping[str, Any]) -> None:
        """UserError if the rows are of another language model; model: LanguageModel.describe()."""
        for key, here in _plain(model).items():
            if key not in WHERE_FROM and (there := self.plan.model.get(key)) != here:
                raise UserError(
                    f"{self.path} was written from another language model ({self.plan.model.get('name')}): {key} is "
                    f"{there} there, but {here} in {model.get('name')}."
                )

    def check_same_text(self, data: Mapping[str, Any]) -> None:
        """UserError if the rows are of other text, or of text cut otherwise; data: as in `Plan`."""
        there, here = self.plan.data, _plain(data)
        for key in {**there, **here}:
            if key not in ORDER_ONLY and there.get(key) != here.get(key):
                raise UserError(
                    f"{self.path} was written from other text than the job's: {key} is {there.get(key)} there, but "
                    f"{here.get(key)} here."
                )

    def check_rows(self, settings: RowsConfig, widths: Mapping[str, int], scale_for: str | None) -> None:
        """UserError if the rows lack something, or other tokens became rows.

        widths: of the sites that are to be read, by name. scale_for: what needs the final norm's scale, if anything.
        """
        plan = self.plan
        for key, here in settings.model_dump().items():
            if (there := getattr(plan.row_settings, key)) != here:
                raise UserError(f"{self.path} was written with rows.{key} {there}, but the job has {here}.")
        stored = plan.layout.widths
        for name, width in widths.items():
            if name not in stored:
                raise UserError(f"{self.path} holds no site '{name}'; it has {', '.join(stored)}.")
            if stored[name] != width:
                raise UserError(
                    f"{self.path} holds '{name}' with {stored[name]} dimensions, but the model has {width}."
                )
        if scale_for is not None and not plan.scale:
            raise UserError(
                f"{self.path} lacks the final norm's scale, which {scale_for} needs: write the store from a "
                f"configuration with a dictionary in logit_update."
            )


def write_manifest(path: Path, plan: Plan, headers: list[ShardHeader], versions: dict[str, str]) -> None:
    """Make the store complete."""
    shards = [
        ShardEntry(file=shard_name(i), rows=header.rows, bytes=header.bytes, sha256=header.sha256)
        for i, header in enumerate(headers)
    ]
    passes = max(header.meta["text_passes"] for header in headers)
    manifest = Manifest(plan=plan, shards=shards, text_passes=passes, versions=versions)
    atomic.write_json(path / MANIFEST, manifest.model_dump(mode="json"))


def _read_manifest(file: Path) -> Manifest:
    content = atomic.read_json(file)
    if content.get("format") != FORMAT:
        raise UserError(f"{file} is not the manifest of an activation store.")
    if content.get("version") != VERSION:
        raise UserError(f"{file} has version {content['version']}, but this version of sae_tools reads {VERSION}.")
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"{file} does not describe an activation store ({where}).") from None
    names = [shard_name(i) for i in range(len(manifest.shards))]
    if len(names) != manifest.plan.shards or names != [entry.file for entry in manifest.shards]:
        raise UserError(f"{file} does not list the {manifest.plan.shards:,} shards that its rows need.")
    return manifest


def _digest(manifest: Manifest) -> str:
    content = json.dumps(manifest.model_dump(mode="json"), sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """As it would be read back from JSON."""
    return json.loads(json.dumps(dict(value)))


def _leaves(tree: Any, key: str = "") -> list[tuple[str, Any]]:
    if isinstance(tree, dict):
        return [leaf for name, value in tree.items() for leaf in _leaves(value, f"{key}.{name}" if key else name)]
    return [(key, tree)]
