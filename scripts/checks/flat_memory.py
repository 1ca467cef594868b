"""Trains a small job for 10,000 steps and looks whether the process grows.

    python scripts/checks/flat_memory.py [STEPS]

Every 100 steps freed memory is handed back and what is still resident is read, so that a leak of 1 kB a step would
show. What counts is the growth from the second tenth of the run to the last (medians). The text is short and read again
and again, for a tokenizer keeps the words that it has met (up to 10,000 of them, some 30 MB), which is no leak. Exits
with status 1 if the growth is 1 % or more. Takes some minutes.
"""

from __future__ import annotations

import json
import sys
import sysconfig
import tempfile
from pathlib import Path
from statistics import median

LIMIT = 0.01
BATCH = 128

JOB = """
name: flat
runs_dir: {folder}
data: {{source: {folder}/text.jsonl, context_length: 128, shuffle_characters: 100_000}}
buffer: {{rows: 8192, contexts_per_forward: 16}}
training: {{tokens: {tokens}, batch_size: {batch}, lr: 1.0e-3, estimate_rows: 4096, checkpoints: 4}}
dictionaries:
  topk: {{site: mlp_out@0, d_sae: 512, architecture: {{kind: topk, k: 8, dead_after_tokens: 100_000}}}}
  batchtopk: {{site: mlp_out@0, d_sae: 512, architecture: {{kind: batchtopk, k: 8, dead_after_tokens: 100_000}}}}
  relu:
    site: mlp_out@0
    d_sae: 512
    architecture:
      {{kind: relu, l1: 5.0, resample_at: [{a}, {b}], resample_dead_steps: {c}, resample_inputs: 4096}}
  jumprelu: {{site: mlp_out@0, d_sae: 512, architecture: {{kind: jumprelu}}}}
"""


def write_text(path: Path, characters: int = 300_000) -> None:
    """Modules of the standard library as JSON lines, cut short."""
    with path.open("w") as file:
        for source in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
            text = source.read_text(encoding="utf-8", errors="replace")[:5000]
            file.write(json.dumps({"text": text}) + "\n")
            characters -= len(text)
            if characters < 0:
                return


class Watch:
    """An observer of training that reads the process's memory."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []
        """(step, resident bytes)"""

    def update(self, tokens: int) -> None:
        from sae_tools.memory import release_freed_memory, resident_bytes

        step = tokens // BATCH
        if step % 100 == 0:
            release_freed_memory()
            self.seen.append((step, resident_bytes()))

    def record(self, record: dict) -> None:
        pass


def main() -> int:
    from sae_tools.config import JobConfig
    from sae_tools.config_loading import load_config
    from sae_tools.memory import keep_freed_memory
    from sae_tools.training.loop import train_job
    from sae_tools.training.start import start_job

    keep_freed_memory()
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "job.yaml")
        write_text(Path(folder, "text.jsonl"))
        settings = {"a": steps // 4, "b": steps // 2, "c": steps // 8}
        path.write_text(JOB.format(folder=folder, tokens=steps * BATCH, batch=BATCH, **settings))
        job = start_job(load_config(JobConfig, path))
        watch = Watch()
        train_job(job, watch)
        job.close()
    for step, size in watch.seen[:: max(1, len(watch.seen) // 10)] + watch.seen[-1:]:
        print(f"step {step:6,}  {size / 2**20:7.1f} MiB")
    tenths = [[size for step, size in watch.seen if k <= (step - 1) * 10 // steps < k + 1] for k in range(10)]
    early, late = median(tenths[1]), median(tenths[9])
    growth = late / early - 1
    print(f"second tenth {early / 2**20:.1f} MiB, last {late / 2**20:.1f} MiB")
    print(f"growth {growth:.2%}, of less than {LIMIT:.0%}")
    return int(growth >= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
