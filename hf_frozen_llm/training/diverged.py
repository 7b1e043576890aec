# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The error of a run whose loss, gradient or weights are not finite."""

from pathlib import Path

from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint


def describe_divergence(args: TrainingArguments, step: int, problem: str) -> str:
    """Return the problem of a step, the checkpoint to go back to, and likely causes."""
    checkpoint = get_last_checkpoint(str(args.output_dir)) if Path(str(args.output_dir)).is_dir() else None
    rescue = "There is no checkpoint to go back to."
    if checkpoint is not None:
        rescue = f"The last good checkpoint is {checkpoint}: `--resume true --resume_changes learning_rate,…`."
    clipping = f"max_grad_norm is {args.max_grad_norm:g}" if args.max_grad_norm > 0 else "max_grad_norm is 0"
    precision = next((f", {name}" for name in ("fp16", "bf16") if getattr(args, name)), "")
    causes = (
        f"a high learning rate (learning_rate is {args.learning_rate:g}), a short warm-up (warmup_steps is "
        f"{args.warmup_steps:g}), gradients that are hardly clipped ({clipping}){precision}, or numbers in the "
        "data that are not finite (see `hf-frozen-llm check`)"
    )
    return f"The run has diverged at step {step}: {problem}. {rescue} Likely causes: {causes}."
