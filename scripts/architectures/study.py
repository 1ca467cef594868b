"""Are our dictionaries as good as SAELens's, and transcoders as sparsify's? 2,000 steps on the bundled model's rows.

    python scripts/architectures/study.py [--workers 2] [--only relu,topk] [--dry-run]

For each architecture and side: every learning rate at seed 0, then the best ones at three seeds, and for those that
were left undecided at fresh ones. A run that was done is kept in runs/architectures/ and not done again, so the
study can be stopped and continued; workers share what remains. At the end reports/architectures is written. SAELens
comes with the development environment; for transcoders the study goes on in .venv-peers, which the first run makes
(minutes), where sparsify is as well.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))

import torch
from measure import environment
from results import best_rates, write_report
from rows import load, prepare
from sides import SIDES
from tasks import CHOSEN, PENALISED, STAGES, TWO_SITES, Task, at_the_best_rates, sides, to_choose_a_rate

HERE = Path(__file__).resolve().parent
STEPS = 2000
FOLDER = HERE.parents[1] / "runs" / "architectures"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[*CHOSEN, *PENALISED])
    parser.add_argument("--d-sae", type=int, default=512)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--dry-run", action="store_true", help="print how many runs are left")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def done(folder: Path) -> dict[str, dict]:
    """What was measured, by task; the last line may be half written."""
    found = {}
    if (folder / "results.jsonl").exists():
        for line in (folder / "results.jsonl").read_text().splitlines():
            try:
                result = json.loads(line)
            except ValueError:
                continue
            found[result["key"]] = result
    return found


def left(folder: Path, architectures: list[str]) -> list[Task]:
    """What can be run now; runs at the best rate come once it is known."""
    have, tasks = done(folder), []
    for architecture in architectures:
        for side, stage in product(sides(architecture), STAGES):
            if architecture not in stage.architectures:
                continue
            first = list(to_choose_a_rate(architecture, side, stage))
            tasks += [task for task in first if task.key not in have]
            if all(task.key in have for task in first):
                rates = best_rates(architecture, [have[task.key] for task in first])
                more = dict.fromkeys(at_the_best_rates(architecture, side, rates, stage))
                tasks += [task for task in more if task.key not in have]
    return tasks


def work(folder: Path, architectures: list[str], d_sae: int, batch: int) -> None:
    """Runs that nobody has claimed, until there are none."""
    torch.set_num_threads(1)
    data = load(folder, inputs=any(name in TWO_SITES for name in architectures))
    claims = folder / "claims"
    claims.mkdir(exist_ok=True)
    while True:
        free = None
        for task in left(folder, architectures):
            claim = (claims / task.key.replace("/", "_")).open("w")
            try:
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            if task.key not in done(folder):
                free = task
                break
        if free is None:
            if not left(folder, architectures):
                return
            time.sleep(5)  # another worker's result decides what comes next
            continue
        began = time.monotonic()
        figures = SIDES[free.side](free, data[free.architecture in TWO_SITES], d_sae, batch)
        result = {"key": free.key, **free._asdict(), **figures, "seconds": time.monotonic() - began}
        with (folder / "results.jsonl").open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(f"{free.key:36} L0 {figures['l0']:6.1f}  FVU {figures['fvu']:.4f}  {result['seconds']:.0f} s", flush=True)


def main() -> None:
    args = arguments()
    if not args.dry_run and any(name in TWO_SITES for name in args.only):
        environment.enter()
    folder = FOLDER / f"{args.d_sae}-{args.batch}"
    if args.worker:
        work(folder, args.only, args.d_sae, args.batch)
        return
    folder.mkdir(parents=True, exist_ok=True)
    if args.dry_run:
        print(f"{len(left(folder, args.only))} runs can be started now; {len(done(folder))} are done.")
        return
    prepare(folder, STEPS * args.batch, inputs=any(name in TWO_SITES for name in args.only))
    command = [sys.executable, __file__, *sys.argv[1:], "--worker"]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = [subprocess.Popen(command, env=environ) for _ in range(args.workers)]
    if any([worker.wait() for worker in workers]):
        sys.exit("A run failed; what was done is kept.")
    write_report(done(folder), args.d_sae, args.batch, STEPS)


if __name__ == "__main__":
    main()
