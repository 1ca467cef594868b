"""What is won by doing two things at a time: reading text beside training, and harvesting beside training.

    python scripts/bench/overlap.py [--source python-stdlib | --source jsonl] [--threads N] [--rounds 3] [--only text]

On the bundled model, with one TopK dictionary of --d-sae features at mlp_out@3. All ways run in turn; seconds are
medians over rounds, ratios medians of the ratios of one round (above 1: the second way is faster).

    text       harvest and training over a few blocks of text: the next block read when it is needed, or in the
               background; also the seconds in which the stream keeps everybody waiting
    harvest    forward passes and training steps in turn, or forward passes in a thread beside the steps, with PyTorch's
               threads as they are and with one for each
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from measure.timing import interleave, paired_ratio

from sae_tools.activations.harvest import Harvester
from sae_tools.config import DataConfig, JobConfig
from sae_tools.data.ahead import reads_ahead
from sae_tools.data.sources import open_documents
from sae_tools.data.stream import ContextStream
from sae_tools.memory import keep_freed_memory
from sae_tools.models.load import LanguageModel, load_model
from sae_tools.rows import Contexts, Rows
from sae_tools.training.guard import Guard
from sae_tools.training.job import build_trainees
from sae_tools.training.sites import all_sites, resolve_sites

STEPS_PER_FORWARD = 4
DOCUMENT_CHARACTERS = 3000
"""Of the JSON lines: about what a page of the web has."""


def write_json_lines(path: Path, characters: int) -> None:
    """Documents of a streamed dataset's size, cut from the standard library's sources."""
    source = open_documents(DataConfig(source="python-stdlib"), seed=0)
    with path.open("w") as file:
        while characters > 0 and (document := source.read()) is not None:
            text = document.text or ""
            for at in range(0, len(text), DOCUMENT_CHARACTERS):
                file.write(json.dumps({"text": text[at : at + DOCUMENT_CHARACTERS]}) + "\n")
            characters -= len(text)


class Work:
    """The two halves of a job: a forward pass, and the training steps on its rows."""

    def __init__(self, cfg: JobConfig, model: LanguageModel):
        sites = resolve_sites(cfg, model)
        self.harvester = Harvester(model, all_sites(sites.values()), cfg.rows)
        self.trainee = build_trainees(cfg, model, sites, torch.device("cpu"))[0]
        self.guard = Guard(1, torch.device("cpu"))
        self.step = 0

    def train(self, rows: Rows) -> None:
        size = len(rows) // STEPS_PER_FORWARD
        for i in range(STEPS_PER_FORWARD):  # as in training/loop.py
            x = self.trainee.rows_in_space(rows[i * size : (i + 1) * size])
            proposal = self.trainee.propose(x, self.step)
            self.guard.check(self.step, [x], [proposal])
            self.trainee.apply(proposal, self.step, 10**9, size, self.guard.frozen)
            self.step += 1


def measure_text(work: Work, open_stream: Callable[[bool], ContextStream], batches: int, rounds: int) -> None:
    waited: dict[bool, list[float]] = {False: [], True: []}
    total: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(rounds):
        for ahead in (False, True):
            stream, waits = open_stream(ahead), []
            next(stream)  # the first block comes before the clock: everybody waits for it
            started = time.perf_counter()
            for _ in range(batches):
                before = time.perf_counter()
                contexts = next(stream)
                waits.append(time.perf_counter() - before)
                work.train(work.harvester.harvest(contexts))
            total[ahead].append(time.perf_counter() - started)
            waited[ahead].append(sum(waits))
    for ahead, name in ((False, "when needed"), (True, "background")):
        seconds, waiting = statistics.median(total[ahead]), statistics.median(waited[ahead])
        print(f"text     {name:22} {seconds:8.2f} s, of which waiting for text {waiting:6.3f} s")
    print(f"text     ratio {paired_ratio(total[False], total[True]):.3f}")


def measure_harvest(work: Work, contexts: Contexts, forwards: int, rounds: int) -> None:
    rows = work.harvester.harvest(contexts)
    threads = torch.get_num_threads()

    def harvests() -> None:
        for _ in range(forwards):
            work.harvester.harvest(contexts)

    def steps() -> None:
        for _ in range(forwards):
            work.train(rows)

    def in_turn() -> None:
        harvests()
        steps()

    def beside(each: int | None) -> Callable[[], None]:
        def run() -> None:
            def quietly(do: Callable[[], None]) -> None:
                torch.set_num_threads(each or threads)
                do()

            other = threading.Thread(target=quietly, args=(harvests,))
            other.start()
            quietly(steps)
            other.join()
            torch.set_num_threads(threads)

        return run

    ways = {"in turn": in_turn, "beside": beside(None), "beside, one thread each": beside(1)}
    seconds = interleave(ways, rounds, warmup=1)
    for name, times in seconds.items():
        ratio = paired_ratio(seconds["in turn"], times)
        print(f"harvest  {name:24} {statistics.median(times):8.2f} s   ratio {ratio:.3f}  ({min(times):.2f} at best)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="python-stdlib", help="as data.source, or jsonl: made for the purpose")
    parser.add_argument("--characters", type=int, default=300_000, help="in a block of text")
    parser.add_argument("--batches", type=int, default=45, help="of 16 contexts of 256 tokens, in the text's part")
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("text", "harvest"))
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    keep_freed_memory()
    model = load_model("bundled")
    dictionary = {"site": "mlp_out@3", "d_sae": args.d_sae, "architecture": {"kind": "topk", "k": 32}}
    with tempfile.TemporaryDirectory() as folder:
        source = args.source
        if source == "jsonl":
            source = str(Path(folder, "text.jsonl"))
            write_json_lines(Path(source), 4_000_000)
        data = {"source": source, "shuffle_characters": args.characters}
        cfg = JobConfig.model_validate({"name": "bench", "data": data, "dictionaries": {"bench": dictionary}})
        work = Work(cfg, model)

        def open_stream(ahead: bool) -> ContextStream:
            return ContextStream(
                cfg.data,
                model.tokenizer,
                batch=16,
                bos_token_id=model.bos_token_id,
                vocabulary=model.d_vocab,
                ahead=ahead,
            )

        here = "would" if reads_ahead("cpu") else "would not"
        print(f"{torch.get_num_threads()} threads of PyTorch, {os.cpu_count()} cores; a job here {here} read ahead")
        if args.only != "harvest":
            measure_text(work, open_stream, args.batches, args.rounds)
        if args.only != "text":
            measure_harvest(work, next(open_stream(False)), 4, 2 * args.rounds + 1)


if __name__ == "__main__":
    main()
