# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The exponential moving average of the weights of a run, which is evaluated and saved beside the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback

from hf_frozen_llm.training.results import replacing


EMA_FILE = "ema.safetensors"
EMA_FOLDER = "ema"


def decay_at(step: int, decay: float, warmup: bool) -> float:
    """
    Return the decay of the average after a step, the first being 1, as timm's `ModelEmaV3.get_decay`
    (github.com/huggingface/pytorch-image-models): 0 after the first step, so that the initial weights are left out;
    with a warm-up `1 - step ** (-2 / 3)`, until it reaches `decay`.
    """
    if step <= 1:
        return 0.0
    return min(1 - step ** (-2 / 3), decay) if warmup else decay


class WeightAverage(TrainerCallback):
    """
    Average the weights after each step of the optimizer. Only tensors that change have an average: trained
    parameters, and the buffers of the modules that have some, such as the statistics of batch norms. Frozen layers
    are those of the model itself.

    Args:
        model (`nn.Module`): the model, at its initial weights.
        decay (`float`): see `ema_decay` of [`RunArguments`].
        warmup (`bool`): see `ema_warmup` of [`RunArguments`].
        is_sharded (`bool`): whether the model is trained by FSDP or DeepSpeed.

    Raises:
        `ValueError`: for a sharded model.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool, is_sharded: bool = False):
        if is_sharded:
            raise ValueError(
                "ema_decay averages whole tensors, and fsdp and deepspeed shard them. Remove it, or train with DDP."
            )
        self.model = model
        self.decay = decay
        self.warmup = warmup
        saved = model.state_dict(keep_vars=True)
        changing = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        changing += [name for name, _ in model.named_buffers() if name in saved]
        self.tensors = {name: saved[name].detach().clone() for name in changing}

    def current(self) -> dict[str, torch.Tensor]:
        """Return the model's own tensors that are averaged, which a change of its device or type may replace."""
        tensors: dict[str, torch.Tensor] = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        return {name: tensors[name] for name in self.tensors}

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs):
        current = self.current()
        names = [name for name, tensor in self.tensors.items() if tensor.is_floating_point()]
        average = get_ema_multi_avg_fn(decay_at(state.global_step, self.decay, self.warmup))
        average([self.tensors[name] for name in names], [current[name] for name in names], None)
        for name in self.tensors.keys() - names:  # counters of batches
            self.tensors[name].copy_(current[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the model's weights by their average, in place, and restore them."""
        weights = {name: tensor.detach().clone() for name, tensor in self.current().items()}
        self._write(self.tensors)
        try:
            yield
        finally:
            self._write(weights)

    @torch.no_grad()
    def _write(self, weights: dict[str, torch.Tensor]) -> None:
        for name, tensor in self.current().items():
            tensor.copy_(weights[name])

    def save(self, folder: str | Path) -> None:
        try:
            with replacing(Path(folder, EMA_FILE)) as temporary:
                save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, temporary)
        except SafetensorError as error:  # a full disk
            raise OSError(f"{EMA_FILE} could not be written: {error}") from error

    @torch.no_grad()
    def load(self, folder: str | Path) -> None:
        """Load the average of a checkpoint; begin at the model's weights if its run had none (`resume_changes`)."""
        file = Path(folder, EMA_FILE)
        stored = load_file(file) if file.is_file() else self.current()
        for name, tensor in self.tensors.items():
            tensor.copy_(stored[name])
