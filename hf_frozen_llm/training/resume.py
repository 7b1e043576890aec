# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Resume a run: find a complete `checkpoint-<n>` folder of Trainer, and check that it belongs to the same run."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

from accelerate.utils import parse_flag_from_env
from safetensors import SafetensorError, safe_open
from transformers import TrainingArguments
from transformers.utils import logging

from hf_frozen_llm.training.arguments import RunArguments
from hf_frozen_llm.training.ema import EMA_FILE
from hf_frozen_llm.training.recipe import flatten_groups
from hf_frozen_llm.training.results import RESULTS_FILE, read_results
from hf_frozen_llm.training.trainer import RECIPE_FILE


logger = logging.get_logger(__name__)

# Keys that a resumed run may change: paths, logging, saving, evaluation, data loading, memory.
MAY_CHANGE = {
    *("output_dir", "resume", "resume_changes", "resume_from_checkpoint", "projection_learning_rate_scale"),
    *("eval_split", "max_eval_samples", "per_device_eval_batch_size", "metric_for_best_model", "greater_is_better"),
    "metrics",
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
    # `last-checkpoint` is the name on the Hub, with hub_strategy=checkpoint.
    if folder.name not in (f"checkpoint-{state.get('global_step')}", "last-checkpoint"):
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

    if (recipe := folder / RECIPE_FILE).is_file():
        try:
            if json.loads(recipe.read_text(encoding="utf-8")).get("ema_decay") is not None:
                with safe_open(folder / EMA_FILE, framework="pt"):
                    pass
        except (OSError, ValueError, SafetensorError) as error:
            return f"its {RECIPE_FILE} or {EMA_FILE} cannot be read ({error})."

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
    # `accelerate launch` says so in the environment
    is_sharded = args.fsdp or args.deepspeed or parse_flag_from_env("ACCELERATE_USE_FSDP")
    if is_sharded and (run_args.resume or args.resume_from_checkpoint is not None):
        raise ValueError("resume supports the checkpoints of one process and of DDP, not those of fsdp and deepspeed.")
    if args.resume_from_checkpoint is not None and str(args.resume_from_checkpoint).lower() not in ("true", "false"):
        defect = find_defect(args.resume_from_checkpoint, args.world_size)
        if defect is not None:
            raise ValueError(f"resume_from_checkpoint is {args.resume_from_checkpoint!r}, but {defect}")
        return Path(args.resume_from_checkpoint)
    if continues(args, run_args):
        checkpoint = last_complete_checkpoint(output_dir, args.world_size)
        if checkpoint is None and not Path(output_dir, RESULTS_FILE).is_file():
            refuse_models_only(output_dir)
        return checkpoint
    if find_checkpoints(output_dir):
        raise ValueError(
            f"output_dir {output_dir} holds the checkpoints of an earlier run. Resume it by `--resume true`, "
            "or choose another output_dir."
        )
    return None


def continues(args: TrainingArguments, run_args: RunArguments) -> bool:
    """Return whether to resume the run in `output_dir`, if there is one."""
    return run_args.resume or str(args.resume_from_checkpoint).lower() == "true"


def refuse_models_only(output_dir: str | Path) -> None:
    """Refuse checkpoints without optimizer, which a run that begins again would write over."""
    for folder in find_checkpoints(output_dir):
        names = {path.name for path in folder.iterdir()}
        if "trainer_state.json" in names and not names & {"optimizer.pt", "scheduler.pt"}:
            raise ValueError(
                f"{folder} was saved with save_only_model, which leaves out the state of the optimizer, so that it "
                "cannot be resumed. Start a new run in another output_dir; `--host.name_or_path` can name the model."
            )


def find_results(
    output_dir: Path, checkpoint: Path | None, now: dict[str, Any], resume_changes: str | None
) -> dict[str, Any] | None:
    """
    Return the results of a run that has finished, and `None` of an interrupted one.

    Args:
        output_dir (`Path`): folder of the run.
        checkpoint (`Path`, *optional*): its last checkpoint, whose settings are those of the run that resumes.
        now (`dict[str, Any]`): the settings of the run that resumes, and its `label2id`.
        resume_changes (`str`, *optional*): keys, separated by commas, that may differ.

    Raises:
        `ValueError`: if there are results of other settings, and no checkpoint.
    """
    file = output_dir / RESULTS_FILE
    if not file.is_file():
        return None
    results = read_results(file)
    label2id = results.get("config", {}).get("label2id")
    # A checkpoint, too, has LoRA in one entry.
    groups = ("host", "llm_block")
    before, now = flatten_groups({**results["recipe"], "label2id": label2id}, groups), flatten_groups(now, groups)
    # A recipe holds only the keys that were given.
    before, now = ({name: one.get(name) for name in {**before, **now}} for one in (before, now))
    if checkpoint is not None:  # which may be that of a later run than the results
        return None if find_changes(before, now) else results
    if changed := refuse_changes(output_dir, before, now, resume_changes):
        raise ValueError(
            f"{output_dir} has no checkpoint from which it could resume with another {', '.join(changed)}. Start "
            "another run in another output_dir."
        )
    return results


def check_same_run(checkpoint: Path, now: dict[str, Any], resume_changes: str | None) -> list[str]:
    """
    Refuse to resume from the checkpoint of another run, which Trainer does not check. The checkpoint does not hold the
    LLM layer, so the layer read now must be the one that the checkpoint was trained with.

    Args:
        checkpoint (`Path`): folder of the checkpoint.
        now (`dict[str, Any]`): the settings of the run that resumes, as [`Run.flat_settings`] returns them.
        resume_changes (`str`, *optional*): keys, separated by commas, that may differ.

    Returns:
        `list[str]`: the keys of `resume_changes` that differ.

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
    return refuse_changes(checkpoint, before, now, resume_changes)


def refuse_changes(where: Path, before: dict[str, Any], now: dict[str, Any], resume_changes: str | None) -> list[str]:
    """Refuse settings that differ and may not; return the differing keys that `resume_changes` allows."""
    given = (resume_changes or "").replace("-", "_").split(",")
    allowed = {name.strip() for name in given if name.strip()}
    if unknown := sorted(allowed - {*before, *now}):
        raise ValueError(f"resume_changes names {', '.join(unknown)}, which no run has.")
    refuse_other_classes(where, before.get("label2id"), now.get("label2id"))
    changed = find_changes(before, now)
    if refused := [name for name in changed if name not in allowed]:
        was = "; ".join(f"{name} {before[name]!r}, the recipe now says {now[name]!r}" for name in refused)
        raise ValueError(
            f"{where} was trained with {was}. Resume with the same settings, allow the change by "
            f"`--resume_changes {','.join(refused)}`, or start another run in another output_dir."
        )
    return changed


def find_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the keys of another run: those that differ, and may not."""
    # Only shared keys: versions of transformers have different ones.
    changed = [name for name in before if name in now and before[name] != now[name] and not may_change(name)]
    # Another number of loader processes reads a stream in another order.
    workers = [max(1, settings.get("dataloader_num_workers") or 0) for settings in (before, now)]
    return [*changed, *(["dataloader_num_workers"] if now.get("streaming") and workers[0] != workers[1] else [])]


def refuse_other_classes(where: Path, before: dict[str, int] | None, now: dict[str, int] | None) -> None:
    if before is None or now is None or before == now:
        return
    lost, new = ([name for name in one if name not in other] for one, other in ((before, now), (now, before)))
    parts = [f"{what} {', '.join(names[:5])}" for what, names in (("without", lost), ("with", new)) if names]
    raise ValueError(
        f"{where} was trained with {len(before)} classes (label2id), the data now has {len(now)}, "
        f"{' and '.join(parts) or 'in another order'}: the labels would mean other classes. Restore the names of the "
        "classes, or start another run in another output_dir."
    )


def may_change(name: str) -> bool:
    # A key of a task may have the same prefix.
    is_trainers = name in TrainingArguments.__dataclass_fields__ and name not in MAY_NOT_CHANGE
    return name in MAY_CHANGE or (is_trainers and name.startswith(MAY_CHANGE_PREFIXES))
