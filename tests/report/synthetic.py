"""Reports on made-up features, of any size and without a model: for tests of the page and for benchmarks.

    .venv/bin/python -m tests.report.synthetic OUTPUT [--features 400] [--dictionaries 3] [--shards]

makes a folder that looks like a run directory, with feature files in the real formats, and builds its report.
Densities, activations, contexts and correlations are random, but shaped like real ones: most features fire on about
one token in a hundred, some are dead, ultra-rare or dense. The vocabulary has spaces, line ends, bytes that are no
text, and words that would be code if the page did not escape them.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sae_tools.analysis.corpus import Corpus
from sae_tools.analysis.feature_files import save_features
from sae_tools.config import JobConfig
from sae_tools.config_loading import dump_config, parse_config
from sae_tools.report.contents import Contents, load_contents
from sae_tools.report.write import write_report
from sae_tools.runs import atomic
from sae_tools.runs.density import DensityWindow, Event

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>alert(1)</script>",
    '"><svg onload=alert(1)>',
    "'-alert(1)-'",
    "{{7*7}}${7*7}",
    "javascript:alert(1)",
    "\u202egnp.exe",
    "\u2028alert(1)",
    "&lt;b&gt;",
]
UNSEEN = [
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "\x00",
    "\x1b",
    "\u00a0",
    "\u200b",
    "\\xE2\\x80",
    "\\xF0\\x9F",
    "🙂",
    "日本",
]
WORDS = "def return self import class None True for in if else not and or with as the of to a is int str list".split()
SPACES = {"mlp_acts": ("mlp_acts@3", 1024), "resid_update": ("mlp_out@3", 256), "logit_update": ("mlp_out@3", 256)}
BEFORE, AFTER, INTERVALS, TOP, PER_INTERVAL = 20, 11, 11, 10, 2


@dataclass(frozen=True)
class SyntheticOrigin:
    id: str
    path: Path
    run: Path | None
    tokens: int | None


def vocabulary(size: int, seed: int = 0) -> list[str]:
    """`size` different texts, the special ones first."""
    rng = np.random.default_rng(seed)
    texts = ["<|endoftext|>", *HOSTILE, *UNSEEN, *WORDS, *(f" {word}" for word in WORDS)]
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz_"))
    seen = set(texts)
    while len(texts) < size:
        text = " " * int(rng.integers(2)) + "".join(rng.choice(letters, int(rng.integers(2, 9))))
        if text not in seen:
            seen.add(text)
            texts.append(text)
    return texts[:size]


def synthetic_run(
    folder: Path,
    *,
    features: int = 400,
    dictionaries: int = 3,
    contexts: int = 512,
    length: int = 256,
    d_vocab: int = 4096,
    windows: int = 100,
    name: str = "synthetic",
    seed: int = 0,
) -> Path:
    """Make the run directory `folder`/`name`; returns it."""
    rng = np.random.default_rng(seed)
    run = folder / name
    files = run / "analysis" / "features"
    files.mkdir(parents=True, exist_ok=True)
    names = [list(SPACES)[i % 3] + (f"-{i // 3 + 1}" if i >= 3 else "") for i in range(dictionaries)]
    config = write_config(run, names, features, length, d_vocab)
    trained = 1_000_000
    write_metrics(run, names, trained, rng)
    write_fidelity(run, names, features, trained)

    texts = vocabulary(d_vocab)
    atomic.write_json(files / "vocabulary-0.json", {"tokens": texts, "special": [0]})
    common = rng.zipf(1.3, size=(contexts, length)) % d_vocab
    tokens = np.where(rng.random((contexts, length)) < 0.15, rng.integers(0, min(100, d_vocab), common.shape), common)
    tokens[:, 0] = 0
    kept = tokens != 0
    document = np.repeat(np.arange(contexts)[:, None] // 2, length, 1)
    ids, numbers = (torch.from_numpy(array.astype(np.int32)) for array in (tokens, document))
    corpus = Corpus(ids, torch.from_numpy(kept), numbers, int(kept.sum()), 0.25)
    corpus.save(files / "corpus-0.safetensors", "synthetic")
    for i, dictionary in enumerate(names):
        site, d_in = SPACES[list(SPACES)[i % 3]]
        others = [other for other in names if other != dictionary]
        arrays, fires = feature_arrays(rng, features, kept, others, d_vocab)
        meta = {
            "id": dictionary, "d_sae": features, "d_in": d_in, "site": site, "space": list(SPACES)[i % 3],
            "architecture": "topk", "k": 32, "unit": "own space, decoder row of norm 1", "corpus": 0,
            "tokens": int(kept.sum()), "length": length, "before": BEFORE, "after": AFTER, "intervals": INTERVALS,
            "matches": others, "fingerprint": "synthetic", "training_tokens": trained, "settings": {},
        }  # fmt: skip
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        save_features(files / f"{dictionary}.safetensors", tensors, meta)
        (run / dictionary / "checkpoints" / str(trained)).mkdir(parents=True, exist_ok=True)
        write_history(run / dictionary / "density", rng, fires / kept.sum(), windows, trained)
    assert config.name == name or name != "synthetic"
    return run


def feature_arrays(rng, n: int, kept: np.ndarray, others: list[str], d_vocab: int) -> tuple[dict, np.ndarray]:
    """A feature file's arrays, and how often each feature fires."""
    counted = int(kept.sum())
    contexts, length = kept.shape
    density = 10 ** rng.normal(-2.2, 0.7, n)
    kind = rng.random(n)
    density = np.where(kind < 0.02, 0, np.where(kind < 0.04, 10.0 ** rng.uniform(-5, -4, n), density))
    density = np.where(kind > 0.99, rng.uniform(0.1, 0.6, n), np.minimum(density, 0.6))
    fires = np.round(density * counted).astype(np.int64)
    live = fires > 0
    maximum = np.where(live, rng.gamma(6, 1.5, n), 0).astype(np.float32)

    falling = np.exp(-np.arange(44) / 8)
    histogram = rng.poisson(fires[:, None] * falling / falling.sum()).astype(np.int32)
    histogram[:, -1] += live

    top = np.minimum(fires, TOP)
    per_interval = np.minimum(fires[:, None] // 8, PER_INTERVAL).repeat(INTERVALS, 1)
    per_group = np.concatenate([top[:, None], per_interval[:, ::-1]], 1)  # 0, 11, 10, …, 1
    groups = np.array([0, *range(INTERVALS, 0, -1)], np.uint8)
    example_start = np.concatenate([[0], np.cumsum(per_group.sum(1))]).astype(np.int64)
    E = int(example_start[-1])
    feature = np.repeat(np.arange(n), per_group.sum(1))
    group = np.repeat(np.tile(groups, n), per_group.reshape(-1))
    places = np.flatnonzero(kept)
    token = places[rng.integers(0, len(places), E)].astype(np.int32)
    share = np.where(group == 0, 1 - 0.3 * rng.random(E) ** 2, (group - rng.random(E)) / INTERVALS)
    first = example_start[:-1][live]
    share[first] = 1.0
    for f in np.flatnonzero(live):  # best first
        a, b = example_start[f], example_start[f] + top[f]
        share[a:b] = np.sort(share[a:b])[::-1]
    value = (share * maximum[feature]).astype(np.float32)

    # Windows: the peak, and some of the tokens around it.
    position = token % length
    begin = np.maximum(position - BEFORE, 0)
    size = np.minimum(position + AFTER, length - 1) - begin + 1
    offsets = np.arange(BEFORE + AFTER + 1)
    fired = (rng.random((E, len(offsets))) < 0.08) & (offsets < size[:, None])
    fired[np.arange(E), position - begin] = True
    amounts = (rng.random(fired.shape) * value[:, None]).astype(np.float32)
    amounts[np.arange(E), position - begin] = value
    fired &= amounts > 0
    rows, columns = np.nonzero(fired)
    effects = fired & (rng.random(fired.shape) < 0.9)
    effect_rows, effect_columns = np.nonzero(effects)
    nats = (rng.standard_t(3, len(effect_rows)) * 0.02 + 0.01).astype(np.float32)

    def ranked(values, largest):
        return np.sort(values, 1)[:, ::-1] if largest else np.sort(values, 1)

    def others_features(shape):
        return rng.integers(0, n, shape).astype(np.int32)

    known = live[:, None, None] & np.ones((1, len(others), 3), bool)
    arrays = {
        "fires": fires,
        "maximum": maximum,
        "mean_active": (maximum * rng.uniform(0.15, 0.4, n)).astype(np.float32),
        "histogram": histogram,
        "example_start": example_start,
        "example_token": token,
        "example_group": group,
        "example_value": value,
        "window_start": np.concatenate([[0], np.cumsum(fired.sum(1))]).astype(np.int64),
        "window_offset": columns.astype(np.uint8),
        "window_value": amounts[rows, columns],
        "effect_measured": rng.random(E) < 0.95,
        "effect_start": np.concatenate([[0], np.cumsum(effects.sum(1))]).astype(np.int64),
        "effect_offset": effect_columns.astype(np.uint8),
        "effect_value": nats,
        "logit_top_token": rng.integers(0, d_vocab, (n, 10)).astype(np.int32),
        "logit_top_value": ranked(rng.gamma(4, 0.4, (n, 10)), True).astype(np.float32),
        "logit_bottom_token": rng.integers(0, d_vocab, (n, 10)).astype(np.int32),
        "logit_bottom_value": ranked(-rng.gamma(4, 0.4, (n, 10)), False).astype(np.float32),
        "logit_histogram": rng.poisson(d_vocab * np.exp(-((np.arange(40) - 19.5) ** 2) / 60) / 13.7, (n, 40)).astype(
            np.int32
        ),
        "logit_norm": rng.gamma(5, 5, n).astype(np.float32),
        "encoder_norm": rng.gamma(9, 0.1, n).astype(np.float32),
        "decoder_norm": np.ones(n, np.float32),
        "b_enc": rng.normal(-1, 0.5, n).astype(np.float32),
        "projection": rng.gamma(9, 0.1, n).astype(np.float32),
        "cosine": rng.uniform(0.2, 1, n).astype(np.float32),
        "nearest_feature": others_features((n, 5)),
        "nearest_cosine": ranked(rng.uniform(0.1, 0.9, (n, 5)), True).astype(np.float32),
        "antipode_feature": others_features(n),
        "antipode_cosine": -rng.uniform(0.1, 0.9, n).astype(np.float32),
        "correlated_feature": np.where(live[:, None], others_features((n, 5)), -1).astype(np.int32),
        "correlated_value": np.where(live[:, None], ranked(rng.uniform(0, 0.8, (n, 5)), True), 0).astype(np.float32),
        "match_feature": np.where(known, others_features(known.shape), -1).astype(np.int32),
        "match_value": np.where(known, -np.sort(-rng.beta(2, 2, known.shape), 2), 0).astype(np.float32),
        "match_cosine": rng.uniform(-0.2, 1, known.shape).astype(np.float32),
    }
    arrays["logit_range"] = np.stack([arrays["logit_bottom_value"][:, 0], arrays["logit_top_value"][:, 0]], 1)
    return arrays, fires


def write_config(run: Path, names: list[str], features: int, length: int, d_vocab: int) -> JobConfig:
    tree = {
        "name": run.name,
        "data": {"context_length": length},
        "dictionaries": {
            name: {
                "site": SPACES[name.split("-")[0]][0],
                "space": {"kind": name.split("-")[0]},
                "d_sae": features,
                "architecture": {"kind": "topk", "k": min(32, features)},
            }
            for name in names
        },
        "provenance": {
            "model": {
                "name": "bundled", "kind": "bundled", "architecture": "GPT2LMHeadModel", "n_layers": 4, "d_model": 256,
                "d_mlp": 1024, "d_vocab": d_vocab, "n_ctx": 256, "parameters": 4_273_664,
            },
            "data": {"source": "python-stdlib", "documents": 1739, "bytes": 31_510_466, "digest": "0" * 32},
            "versions": {"python": "3.11.7", "sae_tools": "0.1.0", "torch": "2.13.0"},
        },
    }  # fmt: skip
    config = parse_config(JobConfig, json.dumps(tree), "synthetic")
    atomic.write_text(run / "config.yaml", dump_config(config))
    return config


def write_metrics(run: Path, names: list[str], trained: int, rng) -> None:
    lines = []
    for step in range(50, 1001, 50):
        values = {}
        for name in names:
            error = 300 * np.exp(-step / 200) + 10 + rng.normal(0, 0.5)
            values[name] = {
                "loss": error, "squared_error": error, "l0": 32.0, "aux": 0.0, "fvu": error / 400, "lr": 1e-3,
                "gradient_norm": 3.0, "dead": 0, "dead_window_tokens": step * 1000,
            }  # fmt: skip
        record = {"step": step, "tokens": step * trained // 1000, "data": {"epoch": 0, "same_document": 0.01}}
        lines.append(json.dumps({**record, "dictionaries": values, "time": {"seconds": 4.0 + rng.random()}}))
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def write_fidelity(run: Path, names: list[str], features: int, trained: int) -> None:
    chain = list(SPACES)
    entries = {}
    for i, name in enumerate(names):
        space = name.split("-")[0]
        spaces = chain[chain.index(space) :]
        entries[name] = {
            "site": SPACES[space][0], "space": space, "d_sae": features, "tokens": 65772, "predictions": 65514,
            "fvu_trained": 0.05 + 0.02 * i,
            "fvu": {other: 0.05 + 0.03 * j + 0.01 * i for j, other in enumerate(spaces)},
            "ce": {"original": 2.05, "reconstruction": 2.07 + 0.01 * i, "zero": 2.49, "mean": 2.51},
            "ablated_site": "mlp_out@3", "ablation_cost": {"zero": 0.44, "mean": 0.46},
            "ce_recovered": {"zero": 0.95 - 0.02 * i, "mean": 0.96 - 0.02 * i}, "kl": 0.03 + 0.005 * i,
            "kl_ablated": {"zero": 0.43, "mean": 0.45}, "l0": 32.0, "dead": 12, "ultra_rare": 10, "dense": 9,
            "dead_density_bound": 4.6e-5, "training_tokens": trained, "text_passes": 1, "tokens_per_s": 6659.2,
        }  # fmt: skip
    atomic.write_text(run / "analysis" / "fidelity.json", json.dumps(entries, indent=1) + "\n")


def write_history(folder: Path, rng, density: np.ndarray, windows: int, trained: int) -> None:
    """Densities that drift to where they end; some features die and are resampled."""
    n, each = len(density), trained // max(windows, 1)
    begin = np.full(n, 0.02) * 10 ** rng.normal(0, 0.3, n)
    last_fired = np.full(n, -1, np.int64)
    for window in range(windows):
        part = min(1.0, 2 * window / windows)
        now = 10 ** ((1 - part) * np.log10(begin) + part * np.log10(np.maximum(density, 1e-7)))
        fires = np.minimum(rng.poisson(now * each), each)
        last_fired = np.where(fires > 0, (window + 1) * each - 1, last_fired)
        events = ()
        if window == windows // 4:
            chosen = np.sort(rng.choice(n, max(1, n // 50), replace=False))
            events = (Event(window * each + each // 2, "resampled", tuple(int(f) for f in chosen)),)
        DensityWindow(
            torch.from_numpy(fires.astype(np.int64)), torch.from_numpy(last_fired),
            each, window * each, (window + 1) * each, events,
        ).save(folder / f"{window:04d}.safetensors")  # fmt: skip


def synthetic_contents(
    runs: list[Path], *, sharded: bool = False, created: str = "2025-01-01T00:00:00Z", chunk: int = 256
) -> Contents:
    """What the report on one synthetic run shows."""
    (run,) = runs
    origins = [
        SyntheticOrigin(path.parents[1].name, path, run, int(path.name))
        for path in sorted(run.glob("*/checkpoints/*"), key=lambda p: list(SPACES).index(p.parts[-3].split("-")[0]))
    ]
    return load_contents(
        origins,
        run / "analysis" / "features",
        models=[None] * len(origins),
        corpora=[{"model": "bundled", "source": "python-stdlib", "held_out": True}],
        version="0.1.0",
        created=created,
        chunk=chunk,
        sharded=sharded,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="A report on made-up features.")
    parser.add_argument("output", type=Path, help="folder: the run directory goes into it, and its report beside it")
    parser.add_argument("--features", type=int, default=400, help="per dictionary")
    parser.add_argument("--dictionaries", type=int, default=3)
    parser.add_argument("--windows", type=int, default=100)
    parser.add_argument("--shards", action="store_true", help="a folder instead of one file")
    arguments = parser.parse_args()
    start = time.perf_counter()
    run = synthetic_run(
        arguments.output,
        features=arguments.features,
        dictionaries=arguments.dictionaries,
        windows=arguments.windows,
    )
    made = time.perf_counter()
    contents = synthetic_contents([run], sharded=arguments.shards)
    page = write_report(contents, arguments.output / ("report" if arguments.shards else "report.html"))
    packed = time.perf_counter()
    total = sum(
        path.stat().st_size for path in ([page] if page.is_file() and not arguments.shards else page.parent.rglob("*"))
    )
    print(f"{page}: {total:,} bytes; features in {made - start:.1f} s, report in {packed - made:.1f} s")


if __name__ == "__main__":
    main()
