"""Runs the quickstart's job at GPT-2 small's size and prints the peak memory of the process.

    python scripts/checks/gpt2_sized.py TOKENIZER_FOLDER TEXT [key=value …]

The model is random, 124 M parameters (12 layers, d_model 768, vocabulary 50,257): the figures say what a job of that
size needs, not what its features mean. TOKENIZER_FOLDER holds GPT-2's vocab.json and merges.txt; TEXT is any source
that `data.source` takes. Exits with status 1 if the peak is 6 GB or more.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

LIMIT = 6e9

JOB = """
name: gpt2-sized
data: {{source: {text}, context_length: 256}}
model: {{name: {model}}}
buffer: {{rows: 32768, contexts_per_forward: 8}}
training: {{tokens: 65_536, batch_size: 2048, lr: 4.0e-4, warmup_steps: 10, estimate_rows: 8192}}
tracking: {{log_every: 8}}
fidelity: {{tokens: 4096}}
dictionaries:
  mlp_acts: {{site: mlp_acts@8, space: {{kind: mlp_acts}}, d_sae: 6144}}
  resid_update: {{site: mlp_out@8, space: {{kind: resid_update}}, d_sae: 6144}}
  logit_update: {{site: mlp_out@8, space: {{kind: logit_update, ln: mean}}, d_sae: 6144}}
"""


def random_gpt2(folder: Path, tokenizer: Path) -> None:
    """GPT-2 small's shape with weights drawn from seed 0, and its tokenizer, as a Hugging Face folder."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
    files = {"vocab_file": str(tokenizer / "vocab.json"), "merges_file": str(tokenizer / "merges.txt")}
    GPT2Tokenizer.from_pretrained(tokenizer, **files).save_pretrained(folder)


def main() -> int:
    if sys.argv[1] == "--make-model":
        random_gpt2(Path(sys.argv[2]), Path(sys.argv[3]))
        return 0
    tokenizer, text, *overrides = sys.argv[1:]
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary, "model")
        # In a process of its own, so that building the model does not count.
        subprocess.run([sys.executable, __file__, "--make-model", str(model), tokenizer], check=True)
        job = Path(temporary, "job.yaml")
        job.write_text(JOB.format(text=Path(text).resolve(), model=model))
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        command = [sys.executable, "-m", "sae_tools.cli.train", str(job), f"runs_dir={temporary}/runs", *overrides]
        subprocess.run([*command, "--dry-run"], check=True)
        done = subprocess.run(command)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"peak resident memory {peak / 1e9:.2f} GB (building the model took {before * 1024 / 1e9:.2f} GB)")
    return done.returncode or int(peak >= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
