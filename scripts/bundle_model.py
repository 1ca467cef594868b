"""Makes the bundled model out of a run of `sae-lm train`: fp16 weights, tokenizer, and a card with measured figures.

python scripts/bundle_model.py runs/lm-bundled                 the run's last checkpoint, measured (minutes)
python scripts/bundle_model.py runs/lm-bundled --preliminary   without measuring, to build on meanwhile
"""

from __future__ import annotations

import argparse
from pathlib import Path
from string import Template

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_tools.config import LMConfig, LMEvaluationConfig
from sae_tools.config_loading import load_config
from sae_tools.lm.evaluate import count_ngrams, evaluate_lm
from sae_tools.memory import keep_freed_memory
from sae_tools.models.load import load_model
from sae_tools.models.locate import BUNDLED
from sae_tools.runs.atomic import creating_folder

LIMIT_BYTES = 10_000_000
HELDOUT_TOKENS = 200_000
SOURCES = ("python-stdlib", "python-installed")
PROMPTS = ("def read_lines(path):\n", "class Stack:\n    def __init__(self", "import os\n", "for i in range(")
CARD = Path(__file__).with_name("bundled_model_card.md")
PRELIMINARY = "PRELIMINARY: not trained to the end, nothing measured, soon replaced."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a folder that sae-lm train made")
    parser.add_argument("--preliminary", action="store_true", help="measure nothing, and say so in the card")
    parser.add_argument("--output", type=Path, default=BUNDLED)
    arguments = parser.parse_args()
    keep_freed_memory()
    cfg = load_config(LMConfig, arguments.run / "config.yaml")
    checkpoint = max((arguments.run / "checkpoints").iterdir(), key=lambda folder: int(folder.name))
    with creating_folder(arguments.output) as folder:
        AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float16).save_pretrained(folder)
        AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
        for file in folder.iterdir():
            file.chmod(0o644)
        size = (folder / "model.safetensors").stat().st_size
        if size > LIMIT_BYTES:
            parser.error(f"{checkpoint}: {size:,} bytes of weights, more than the {LIMIT_BYTES:,} that are bundled")
        figures = PRELIMINARY if arguments.preliminary else measure(folder)
        samples = "" if arguments.preliminary else "\n\n".join(fenced(sample(folder, prompt)) for prompt in PROMPTS)
        (folder / "README.md").write_text(card(cfg, int(checkpoint.name), folder, figures, samples))
    print((arguments.output / "README.md").read_text())


def measure(folder: Path) -> str:
    """Losses on the held-out part of each source, as a table; the n-grams learn from the model's training text."""
    model = load_model(folder)
    ngrams, rows = None, []
    for source in SOURCES:
        tree = {"data": {"source": source}, "tokens": HELDOUT_TOKENS, "ngram_source": "python-installed"}
        cfg = LMEvaluationConfig.model_validate(tree)
        ngrams = ngrams or count_ngrams(cfg, model)
        f = evaluate_lm(cfg, model, ngrams)
        rows.append(
            f"| {source} | {f['tokens']:,} | **{f['loss']:.3f}** | {f['trigram']:.3f} | {f['bigram']:.3f} "
            f"| {f['unigram']:.3f} | {f['bits_per_byte']:.3f} |"
        )
    assert ngrams is not None
    head = "| held-out files of | tokens | this model | trigram | bigram | unigram | bits per byte |"
    alone = evaluate_lm(LMEvaluationConfig.model_validate({"tokens": HELDOUT_TOKENS}), model)
    note = (
        f"The n-grams were counted on {ngrams.tokens:,} tokens. Counted on the standard library alone "
        f"({alone['ngram_tokens']:,} tokens), they reach {alone['trigram']:.3f} (trigram) and {alone['bigram']:.3f} "
        "(bigram) on its held-out files."
    )
    return "\n".join([head, "|---" * 7 + "|", *rows, "", note])


@torch.no_grad()
def sample(folder: Path, prompt: str, tokens: int = 90, temperature: float = 0.7, seed: int = 0) -> str:
    """A continuation of `prompt`, drawn at `temperature` from a seeded generator."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt)["input_ids"]]])
    random = torch.Generator().manual_seed(seed)
    for _ in range(tokens):
        p = (model(ids).logits[0, -1] / temperature).softmax(-1)
        ids = torch.cat([ids, torch.multinomial(p, 1, generator=random)[None]], dim=1)
        if ids[0, -1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[0, 1:], skip_special_tokens=True)


def fenced(text: str) -> str:
    return f"```python\n{text.rstrip()}\n```"


def card(cfg: LMConfig, tokens: int, folder: Path, figures: str, samples: str) -> str:
    """The model card: the template's words, the run's numbers."""
    made = cfg.provenance or {"data": {}, "versions": {}}
    data, versions = made["data"], made["versions"]
    architecture, training = cfg.architecture, cfg.training
    parameters = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder).parameters())
    return Template(CARD.read_text()).substitute(
        parameters=f"{parameters / 1e6:.2f}",
        layers=architecture.n_layers,
        d_model=architecture.d_model,
        heads=architecture.n_heads,
        context=architecture.context_length,
        vocabulary=f"{cfg.tokenizer.vocabulary:,}",
        megabytes=f"{(folder / 'model.safetensors').stat().st_size / 1e6:.1f}",
        source=data.get("source"),
        files=f"{data.get('documents', 0):,}",
        text_megabytes=f"{data.get('bytes', 0) / 1e6:,.0f}",
        digest=data.get("digest"),
        heldout=f"{cfg.data.heldout:.0%}",
        tokens=f"{tokens:,}",
        seed=cfg.seed,
        lr=f"{training.lr:g}",
        betas=" and ".join(f"{beta:g}" for beta in training.betas),
        weight_decay=f"{training.weight_decay:g}",
        batch=training.batch_size,
        warmup=training.warmup_steps,
        decay=f"{training.decay_fraction:.0%}",
        final=f"{training.final_lr_fraction:.0%}",
        clip=f"{training.clip_norm:g}",
        precision=training.autocast if training.autocast != "none" else "float32",
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        figures=figures,
        samples=samples,
    )


if __name__ == "__main__":
    main()
