# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Resume a run: find a complete `checkpoint-<n>` folder of Trainer, and check that it belongs to the same run."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import TrainingArguments
from transformers.utils import logging

from hf_frozen_llm.training.arguments import RunArguments
from hf_frozen_llm.training.trainer import RECIPE_FILE


logger = logging.get_logger(__name__)

# Keys that a resumed run may change: paths, logging, saving, evaluation, data loading, memory.
MAY_CHANGE = {
    *("output_dir", "resume", "resume_changes", "resume_from_checkpoint", "projection_learning_rate_scale"),
    *("eval_split", "max_eval_samples", "per_device_eval_batch_size", "metric_for_best_model", "greater_is_better"),
    *("load_best_model_at_end", "prediction_loss_only", "skip_memory_metrics", "batch_eval_metrics", "do_train"),
    *("do_eval", "do_predict", "disable_tqdm", "report_to", "run_name", "project", "use_cpu", "debug", "use_cache"),
    *("accelerator_config", "past_index", "bf16_full_eval", "fp16_full_eval", "include_for_metrics"),
    *("llm_block.llm_name_or_path", "llm_block.llm_revision", "llm_block.llm_config", "llm_block.save_weights"),
    *("llm_block.fast", "host.name_or_path", "host.revision", "restore_callback_states_from_checkpoint"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_empty_cache_steps", "local_rank"),
    *("activation_checkpointing", "activation_checkpointing_kwargs", "include_num_input_tokens_seen"),
}
MAY_CHANGE_PREFIXES = ("eval_", "save_", "logging_", "log_", "hub_", "push_to_hub", "trackio_", "ddp_", "dataloader_")
MAY_NOT_CHANGE = {"dataloader_drop_last"}


def find_checkpoints(output_dir: str | Path) -> list[Path]:
    """Return all checkpoint folders, the latest first, complete or not."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(folders, key=lambda path: int(path.name.partition("-")[2]), reverse=True)


def last_complete_checkpoint(output_dir: str | Path, world_size: int = 1) -> Path | None:
    """Return the latest complete checkpoint; a warning names incomplete ones."""
    for folder in find_checkpoints(output_dir):
        defect = find_defect(folder, world_size)
        if defect is None:
            return folder
        logger.warning(f"{folder} is skipped: {defect} The run was probably stopped while writing it.")
    return None


def find_defect(folder: str | Path, world_size: int = 1) -> str | None:
    """Return the defect of a checkpoint folder, or `None`. Trainer writes the weights first and its state last."""
    folder = Path(folder)
    if not folder.is_dir():
        return "there is no such folder."
    try:
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "trainer_state.json is missing or cut off."
    if f"checkpoint-{state.get('global_step')}" != folder.name:
        return f"trainer_state.json is of step {state.get('global_step')}."

    index = folder / "model.safetensors.index.json"
    try:
        names = {"model.safetensors"}
        if index.is_file():
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        for name in names:
            with safe_open(folder / name, framework="pt"):
                pass
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        return f"its weights cannot be read ({error})."

    rng_states = [folder / "rng_state.pth"]
    if not rng_states[0].is_file() and world_size > 1:
        rng_states = [folder / f"rng_state_{rank}.pth" for rank in range(world_size)]
    elif not rng_states[0].is_file() and (folder / "rng_state_0.pth").is_file():
        rng_states = [folder / "rng_state_0.pth"]
    for file in [folder / "optimizer.pt", folder / "scheduler.pt", *rng_states]:
        if not zipfile.is_zipfile(file):
            return f"{file.name} is missing or cut off."
    return None


def find_checkpoint_to_resume(args: TrainingArguments, run_args: RunArguments) -> Path | None:
    """Return the checkpoint to resume from, if any; refuse an `output_dir` with checkpoints of another run."""
    output_dir = str(args.output_dir)
    if (args.fsdp or args.deepspeed) and (run_args.resume or args.resume_from_checkpoint is not None):
        raise ValueError("resume supports the checkpoints of one process and of DDP, not those of fsdp and deepspeed.")
    if args.resume_from_checkpoint is not None and str(args.resume_from_checkpoint).lower() not in ("true", "false"):
        defect = find_defect(args.resume_from_checkpoint, args.world_size)
        if defect is not None:
            raise ValueError(f"resume_from_checkpoint is {args.resume_from_checkpoint!r}, but {defect}")
        return Path(args.resume_from_checkpoint)
    if run_args.resume or str(args.resume_from_checkpoint).lower() == "true":
        return last_complete_checkpoint(output_dir, args.world_size)
    if find_checkpoints(output_dir):
        raise ValueError(
            f"output_dir {output_dir} holds the checkpoints of an earlier run. Resume it by `--resume true`, "
            "or choose another output_dir."
        )
    return None


def check_same_run(checkpoint: Path, now: dict[str, Any], resume_changes: str | None) -> None:
    """
    Refuse to resume from the checkpoint of another run, which Trainer does not check. The checkpoint does not hold the
    LLM layer, so the layer read now must be the one that the checkpoint was trained with.

    Args:
        checkpoint (`Path`): folder of the checkpoint.
        now (`dict[str, Any]`): the settings of the run that resumes, as [`Run.flat_settings`] returns them.
        resume_changes (`str`, *optional*): keys, separated by commas, that may differ.

    Raises:
        `ValueError`: for a key that differs and may not, or a checkpoint without settings.
    """
    file = checkpoint / RECIPE_FILE
    if not file.is_file():
        raise ValueError(
            f"{checkpoint} has no {RECIPE_FILE}, so the settings of its training are unknown: another version of this "
            "package, or another program, has written it. Start a new run in another output_dir."
        )
    before = json.loads(file.read_text(encoding="utf-8"))
    had_block, has_block = "llm_block.kind" in before, "llm_block.kind" in now
    if had_block != has_block:
        there, here = ("an", "none") if had_block else ("no", "one")
        raise ValueError(f"{checkpoint} has {there} llm_block, but the recipe has {here}; they are different runs.")
    trained_with, fingerprint = before.get("llm_block.fingerprint"), now.get("llm_block.fingerprint")
    if trained_with not in (None, fingerprint):
        raise ValueError(
            f"{checkpoint} was trained with the LLM layer of fingerprint {trained_with} "
            f"({before['llm_block.llm_name_or_path']}, layer {before['llm_block.layer_index']}), but "
            f"llm_block.llm_name_or_path {now['llm_block.llm_name_or_path']!r}, layer {now['llm_block.layer_index']}, "
            f"has {fingerprint}."
        )
    given = (resume_changes or "").replace("-", "_").split(",")
    allowed = {name.strip() for name in given if name.strip()}
    if unknown := sorted(allowed - {*before, *now}):
        raise ValueError(f"resume_changes names {', '.join(unknown)}, which no run has.")
    # Only shared keys: versions of transformers have different ones.
    changed = [name for name in before if name in now and before[name] != now[name]]
    refused = [name for name in changed if not (name in allowed or may_change(name))]
    if refused:
        was = "; ".join(f"{name} {before[name]!r}, the recipe now says {now[name]!r}" for name in refused)
        raise ValueError(
            f"{checkpoint} was trained with {was}. Resume with the same settings, allow the change by "
            f"`--resume_changes {','.join(refused)}`, or start another run in another output_dir."
        )


def may_change(name: str) -> bool:
    # A key of a task may have the same prefix.
    is_trainers = name in TrainingArguments.__dataclass_fields__ and name not in MAY_NOT_CHANGE
    return name in MAY_CHANGE or (is_trainers and name.startswith(MAY_CHANGE_PREFIXES))
