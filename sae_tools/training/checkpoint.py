"""A checkpoint: a folder per dictionary, then one small file that says the whole is complete.

`<dictionary>/checkpoints/<tokens>/` holds what others read (cfg.json, sae_weights.safetensors: the export) and what
`--resume` reads (trainer.safetensors, space.safetensors and, where another space is written, target_space.safetensors).
`state/<tokens>.json`, written last, makes it valid: a run killed anywhere in between resumes from the checkpoint
before.
"""

from __future__ import annotations

from typing import Any

from sae_tools.dictionaries.formats.saelens import export_saelens
from sae_tools.runs.checkpoints import SPACE, TARGET_SPACE
from sae_tools.runs.tensors import save_tensors
from sae_tools.training.job import Job
from sae_tools.training.trainee import Trainee


def save_checkpoint(job: Job, position: dict[str, Any] | None = None) -> None:
    """Write the job's state after `job.step` steps; nothing older is touched but the trainer states no longer needed.

    position: of the data, where it differs from the job's own (after a bad step).
    """
    job.metrics.flush()
    for trainee in job.trainees:
        with job.run.checkpoint_writer(trainee.name, job.tokens) as folder:
            export_saelens(
                trainee.dictionary, trainee.space, folder, export_metadata(job, trainee), writes=trainee.target_space
            )
            save_tensors(folder / SPACE, *trainee.space.state())
            if trainee.target_space is not None:
                save_tensors(folder / TARGET_SPACE, *trainee.target_space.state())
            save_tensors(folder / "trainer.safetensors", trainee.tensors(), {"tokens": job.tokens, "step": job.step})
    job.run.commit_checkpoint(job.tokens, {"step": job.step, "tokens": job.tokens, **(position or job.position())})
    job.has_checkpoint = True


def export_metadata(job: Job, trainee: Trainee) -> dict[str, Any]:
    """What goes into cfg.json's `metadata` beside what the space and the dictionary know themselves."""
    data, search = job.cfg.data, trainee.search
    shuffled = job.model.shuffle_weights
    searched = {} if search is None else {"match_l0": search.target, "coefficient": search.coefficient().item()}
    return {
        "model_name": job.model.name,
        **({} if shuffled is None else {"model_shuffle_weights": shuffled}),
        "context_size": data.context_length,
        "prepend_bos": data.bos == "context",
        "dataset_path": data.source,
        "training_tokens": job.tokens,
        "run": job.run.path.name,
        "dictionary": trainee.name,
        "skip_positions": job.cfg.rows.skip_positions,
        "skip_special": job.cfg.rows.skip_special,
        **searched,
    }
