"""The job as a typed tree. Every setting is documented where it stands; config_loading.py reads it from YAML.

Nothing here imports torch: a configuration can be read, checked and printed without it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from sae_tools.config_architectures import (  # noqa: F401 - all are found here
    ArchitectureConfig,
    BatchTopKConfig,
    GatedConfig,
    JumpReLUConfig,
    MatryoshkaConfig,
    ReLUConfig,
    TopKConfig,
)
from sae_tools.config_section import Section

Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


RESERVED_NAMES = ("analysis", "state", "config.yaml", "metrics.jsonl", "report.html", "wandb")
"""What a run directory holds beside its dictionaries' folders."""


class ModelConfig(Section):
    """The language model whose activations are decomposed. Weights are used raw: nothing folded, nothing centred."""

    name: str = "bundled"
    """`bundled`, a local Hugging Face folder, or a hub name (the only one that touches the network)."""
    revision: str | None = None
    """Hub revision; ignored for local models."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of weights and activations in the forward pass."""
    shuffle_weights: int | None = Field(default=None, ge=0)
    """A seed makes it a model that has learnt nothing, with the learnt one's statistics: the entries of every weight
    matrix in a random order. What dictionaries and probes find there too is no finding about the learnt one."""


class DataConfig(Section):
    """Where text comes from and how it becomes contexts of tokens."""

    source: str | list[str] = "python-stdlib"
    """`python-stdlib` (the interpreter's own sources), `python-installed` (those and the installed packages'), a local
    text, JSONL or parquet file or folder (also .gz and .zst), several of these, or `hub:owner/name`."""
    subset: str | None = None
    """Configuration name of a hub dataset."""
    split: str = "train"
    """Split of a hub dataset."""
    text_column: str = "text"
    """Column that holds a document's text."""
    token_column: str | None = None
    """Column that holds token ids, for a source that is already tokenised (then no tokenizer is used)."""
    context_length: int = Field(default=256, ge=2)
    """Tokens per context, BOS included; at most the model's own."""
    bos: Literal["context", "document", "none"] = "context"
    """`context`: every context starts with BOS, and documents are joined by it; `document`: only documents start
    with it; `none`: documents are joined as they are."""
    heldout: Fraction = 0.05
    """Share of documents that training never sees, chosen by a hash (of the module path for Python sources, of the
    text otherwise), so that it does not depend on order or seed."""
    shuffle_characters: int = Field(default=16_000_000, ge=1)
    """Documents are read in a seeded order in blocks of about this many characters; the contexts of a block are
    permuted. Memory grows with it, and so does a resumed run's first wait."""


class RowsConfig(Section):
    """Which tokens of a context become rows."""

    skip_positions: int = Field(default=1, ge=0)
    """The first positions of each context that are left out (1: BOS, or whatever stands at position 0)."""
    skip_special: bool = True
    """Leave out rows at special tokens (BOS, EOS, padding) wherever they stand."""


class BufferConfig(Section):
    """Harvest and the shuffle buffer."""

    rows: int = Field(default=131_072, ge=1)
    """Rows (tokens) in the buffer. It is filled whole, permuted once, and served in slices."""
    contexts_per_forward: int = Field(default=32, ge=1)
    """Contexts in one forward pass of the language model."""


class SpaceConfig(Section):
    """The coordinates in which a dictionary reconstructs (README, 'Spaces')."""

    kind: Literal["mlp_acts", "resid_update", "logit_update", "resid"] = "resid_update"
    metric: Literal["uniform"] = "uniform"
    """logit_update: weighting of the vocabulary; `uniform` is the plain squared error on centred logits."""
    ln: Literal["mean", "token"] = "mean"
    """logit_update: the final norm's scale, one estimated mean (position 0 apart) or the scale at each token."""
    rotation: int | None = None
    """Seed of a fixed random rotation applied last; a control, since it changes the basis and nothing else."""
    centre: Literal["none", "mean"] = "none"
    """A constant subtracted in the coordinates of the space, before the scalar scale."""
    rescale: bool = True
    """Divide by one scalar so that the mean squared norm equals the dimension."""


class WritesConfig(Section):
    """The other site of a two-site dictionary (transcoders; Dunefsky et al. 2024, arXiv 2406.11944): it reads one, and
    reconstructs what is there."""

    site: str
    """As a dictionary's `site`; it must not come before that in the forward pass."""
    space: SpaceConfig = SpaceConfig()


class DictionaryConfig(Section):
    """One dictionary of the job."""

    site: str
    """`mlp_acts@3`, `mlp_out@3`, `attn_out@3`, `resid_pre@3`, `resid_mid@3`, `mlp_in@3`, `resid_post@3`, or a hook
    name."""
    space: SpaceConfig = SpaceConfig()
    writes: WritesConfig | None = None
    """What it reconstructs; null: what it reads."""
    skip: bool = False
    """With `writes`: what is read also goes through a matrix to what is written, beside the features (Paulo et al.
    2025, arXiv 2501.18823). It starts at zero."""
    architecture: ArchitectureConfig = TopKConfig()
    d_sae: int = Field(default=2048, ge=1)
    """Number of features."""
    match_l0: float | None = Field(default=None, gt=0)
    """Features that should fire per token: the sparsity coefficient (l1 of relu and gated, l0_coefficient of jumprelu)
    is searched while the dictionary trains, from its setting on; null: it stays what it is."""
    init_from: str | None = None
    """A file or folder of an SAE in any format that is read, of this site and size, whose weights training starts from
    (fine-tuning); settings and space are still these. null: fresh weights."""
    b_dec_init: Literal["zero", "mean", "geometric_median"] = "geometric_median"
    """Initial decoder bias, which is also subtracted before the encoder; with `writes` it is not subtracted, and says
    what the encoder's initial bias takes off what is read."""
    encoder_init: Literal["tied", "kaiming"] = "tied"
    """`tied`: the encoder starts as the decoder's transpose, with `writes` as that of the best linear prediction of
    what is written; `kaiming`: both start independently."""
    lr: float | None = Field(default=None, gt=0)
    """Learning rate of this dictionary; null: training.lr."""

    @property
    def spaces(self) -> tuple[SpaceConfig, ...]:
        """The one that is read and, where it is another, the one that is written."""
        return (self.space,) if self.writes is None else (self.space, self.writes.space)

    @model_validator(mode="after")
    def _skip_leads_somewhere(self) -> DictionaryConfig:
        if self.skip and self.writes is None:
            raise ValueError("skip is for a dictionary that writes elsewhere than it reads, and writes is missing")
        return self

    @model_validator(mode="after")
    def _features_suffice(self) -> DictionaryConfig:
        for key in ("k", "target_l0"):
            wanted = getattr(self.architecture, key, None)
            if wanted is not None and wanted > self.d_sae:
                raise ValueError(f"architecture.{key} is {wanted:g}, more than its d_sae of {self.d_sae} features")
        return self

    @model_validator(mode="after")
    def _coefficient_can_be_searched(self) -> DictionaryConfig:
        architecture, wanted = self.architecture, self.match_l0
        if wanted is None:
            return self
        if architecture.coefficient_key is None:
            raise ValueError(
                f"match_l0 searches a sparsity coefficient, which {architecture.kind} has none of; there k says "
                "how many features fire"
            )
        if getattr(architecture, "penalty", "step") != "step":
            raise ValueError("match_l0 is for architecture.penalty step; quadratic has architecture.target_l0")
        if wanted > self.d_sae:
            raise ValueError(f"match_l0 is {wanted:g}, more than its d_sae of {self.d_sae} features")
        if architecture.full_coefficient == 0:
            raise ValueError(f"match_l0 starts from architecture.{architecture.coefficient_key}, which must be above 0")
        return self

    @model_validator(mode="after")
    def _widths_end_at_all(self) -> DictionaryConfig:
        widths = getattr(self.architecture, "widths", None)
        if widths is not None and widths[-1] != self.d_sae:
            raise ValueError(f"architecture.widths ends at {widths[-1]}, and must end at its d_sae of {self.d_sae}")
        return self

    @model_validator(mode="after")
    def _target_is_said(self) -> DictionaryConfig:
        architecture = self.architecture
        if isinstance(architecture, JumpReLUConfig):
            if architecture.penalty == "quadratic" and architecture.target_l0 is None:
                raise ValueError("architecture.penalty is quadratic, and architecture.target_l0 is missing")
            if architecture.penalty == "step" and architecture.target_l0 is not None:
                raise ValueError("architecture.target_l0 is for architecture.penalty quadratic")
        return self


class KLConfig(Section):
    """KL through the model at the end of training (Karvonen 2025, arXiv 2503.17272; end-to-end: Braun et al. 2024,
    arXiv 2405.12241): some rows of a step are those of whole contexts, in which the reconstruction is spliced into the
    model, and KL(original ‖ spliced) of its next-token predictions joins the loss (training/through_model.py)."""

    fraction: float = Field(default=0.1, gt=0, le=1)
    """Last share of the steps in which it does."""
    coefficient: float = Field(default=1.0, gt=0)
    """How large the KL is made beside the squared error: at 1 it weighs as much as that does in the same contexts,
    whatever both are (a pure number). Sparsity penalties grow by 1 + coefficient, so that their weight beside
    everything that asks for fidelity stays."""
    contexts: int | None = Field(default=None, ge=1)
    """In each of those steps, from the training text in an order of its own. Their rows are part of batch_size; null:
    as many as fit in. Few of them make a noisy gradient."""


class TrainingConfig(Section):
    tokens: int = Field(default=2_000_000, ge=1)
    """Rows to train on (rounded up to whole steps)."""
    batch_size: int = Field(default=2048, ge=1)
    """Rows per step."""
    lr: float = Field(default=3e-4, gt=0)
    adam_betas: tuple[Beta, Beta] = (0.9, 0.999)
    adam_eps: float = Field(default=1e-8, gt=0)
    warmup_steps: int = Field(default=100, ge=0)
    """Steps over which the learning rate rises linearly from 0."""
    decay_fraction: Fraction = 0.2
    """Last share of the steps, over which the learning rate falls linearly to 0."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Gradients of a dictionary are scaled to at most this norm; null: never."""
    kl: KLConfig | None = None
    """KL through the model in the last steps; null: never."""
    estimate_rows: int = Field(default=32_768, ge=2)
    """Rows from which centres, scales and initial biases are estimated before training (they are trained on too)."""
    checkpoints: int = Field(default=4, ge=1)
    """Checkpoints written, evenly spaced, the last at the end; one more at the start."""
    selection: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the product from which TopK chooses candidates. bfloat16 chooses some more than k, evaluates these
    in float32 and keeps the k largest; `auto` does so where the hardware multiplies bfloat16 faster (CPUs with
    avx512_bf16 or AMX, GPUs). Everything else is float32. Bit-for-bit equality holds for equal precision."""
    device: str = "auto"
    """`auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`, …"""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; null leaves torch's choice. Bit-for-bit equality holds for equal numbers of threads."""


class TrackingConfig(Section):
    log_every: int = Field(default=50, ge=1)
    """Steps between two lines of metrics.jsonl."""
    density_windows: int = Field(default=100, ge=1)
    """Windows into which the density history of training is cut (each at least one step)."""
    wandb: Literal["off", "offline", "online"] = "off"
    wandb_project: str = "sae_tools"


class FidelityConfig(Section):
    """What is measured on held-out text when training ends."""

    tokens: int = Field(default=65_536, ge=1)
    """Held-out tokens on which cross-entropy and KL are measured (and everything else)."""
    ultra_rare_below: float = Field(default=1e-4, gt=0)
    """Ultra-rare: fires, but on less than this share of the held-out tokens."""
    dense_above: float = Field(default=0.1, gt=0, lt=1)


class JobConfig(Section):
    """A training job: one model, one stream of text, any number of dictionaries."""

    name: Name = "run"
    """Folder under `runs_dir`; a name that is taken gets the next free number."""
    runs_dir: str = "runs"
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Drives everything: document order, permutations, initial weights, resampling."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    rows: RowsConfig = RowsConfig()
    buffer: BufferConfig = BufferConfig()
    store: str | None = None
    """A folder written by `sae-store`, from which training reads its rows instead of running the model; model, data and
    rows must be those that it was written with. `buffer.rows` of it are in memory at a time."""
    dictionaries: dict[Name, DictionaryConfig] = Field(min_length=1)
    training: TrainingConfig = TrainingConfig()
    tracking: TrackingConfig = TrackingConfig()
    fidelity: FidelityConfig = FidelityConfig()
    provenance: dict[str, Any] | None = None
    """Written by the run, not by you: what the model, the data and the versions were. A new run writes its own."""

    @field_validator("dictionaries")
    @classmethod
    def _names_make_folders(cls, value: dict[str, DictionaryConfig]) -> dict[str, DictionaryConfig]:
        taken = {name: f"the run's own {name!r}" for name in RESERVED_NAMES}
        for name in value:
            if name.casefold() in taken:
                raise ValueError(f"a dictionary cannot be named {name!r}, its folder would be {taken[name.casefold()]}")
            taken[name.casefold()] = f"that of {name!r}"
        return value

    @model_validator(mode="after")
    def _contexts_fit_into_a_step(self) -> JobConfig:
        kl, length = self.training.kl, self.data.context_length - self.rows.skip_positions
        if kl is not None and (kl.contexts or 1) * length > self.training.batch_size:
            raise ValueError(
                f"training.kl.contexts is {kl.contexts or 1}, which are up to {(kl.contexts or 1) * length} rows, more "
                f"than the {self.training.batch_size} of training.batch_size"
            )
        return self


class LMArchitectureConfig(Section):
    """Shape of a language model trained from scratch."""

    kind: Literal["gpt2", "llama"] = "gpt2"
    """`gpt2`: LayerNorm, learned positions, GELU MLP; `llama`: RMSNorm, rotary positions, gated MLP."""
    n_layers: int = Field(default=4, ge=1)
    d_model: int = Field(default=256, ge=8)
    n_heads: int = Field(default=4, ge=1)
    d_mlp: int | None = Field(default=None, ge=1)
    """null: four times d_model."""
    context_length: int = Field(default=256, ge=8)
    tie_embeddings: bool = True


class LMTokenizerConfig(Section):
    path: str | None = None
    """A Hugging Face folder or tokenizer.json to reuse; null: a byte-level BPE is trained on the data."""
    vocabulary: int = Field(default=4096, ge=300)
    training_characters: int = Field(default=30_000_000, ge=1000)
    """Text from which the byte-level BPE is learned."""


class LMTrainingConfig(Section):
    tokens: int = Field(default=10_000_000, ge=1)
    batch_size: int = Field(default=16, ge=1)
    """Contexts per step, each of one token more than the architecture's context_length (the last is only predicted)."""
    optimizer: str = "adamw"
    """`adamw`, or one that a study has registered (lm/optimisers.py)."""
    lr: float = Field(default=2e-3, gt=0)
    decay_fraction: Fraction = 0.4
    """Last share of the steps, over which the learning rate falls along half a cosine; before, it is constant, so that
    a run can be resumed with more or fewer tokens. 1: the ordinary cosine schedule."""
    final_lr_fraction: Fraction = 0.05
    """The decay ends at this share of lr."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: float = Field(default=0.1, ge=0)
    """Applied to matrices only (not to biases, norms or embeddings)."""
    warmup_steps: int = Field(default=100, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    autocast: Literal["none", "bfloat16"] = "none"
    """`bfloat16`: matrix products in bf16, weights and optimiser in fp32."""
    log_every: int = Field(default=20, ge=1)
    heldout_every: int = Field(default=500, ge=1)
    """Steps between two measurements of the held-out loss."""
    heldout_tokens: int = Field(default=100_000, ge=1)
    checkpoint_first_step: int = Field(default=64, ge=1)
    """Checkpoints on a log schedule: at step 0, then at this step and whenever it has doubled, and at the end."""
    save_every: int = Field(default=500, ge=1)
    """Steps between two saves of the state that --resume continues from."""
    device: str = "auto"
    threads: int | None = Field(default=None, ge=1)


class LMConfig(Section):
    """A language model trained from scratch (`sae-lm train`)."""

    name: Name = "lm"
    runs_dir: str = "runs"
    seed: int = Field(default=0, ge=0, lt=2**31)
    data: DataConfig = DataConfig()
    """Its context_length is not used here: contexts are as long as the architecture reads."""
    architecture: LMArchitectureConfig = LMArchitectureConfig()
    tokenizer: LMTokenizerConfig = LMTokenizerConfig()
    training: LMTrainingConfig = LMTrainingConfig()
    provenance: dict[str, Any] | None = None
    """Written by the run, not by you: what the data and the versions were. A new run writes its own."""


class LMEvaluationConfig(Section):
    """What `sae-lm evaluate` measures."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    """Its held-out part is what the loss is measured on."""
    tokens: int = Field(default=200_000, ge=1)
    """Held-out tokens (fewer where there are fewer)."""
    ngrams: bool = True
    """Count n-gram models on the training part, to compare with."""
    ngram_source: str | list[str] | None = None
    """Source whose training part the n-grams are counted on; null: `data.source`."""
    batch_size: int = Field(default=16, ge=1)
    """Contexts in one forward pass."""
    device: str = "auto"
