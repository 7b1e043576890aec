# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The Trainer of transformers, with batches that are augmented on the device, several views, and learning rates."""

import re
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainingArguments

from hf_frozen_llm.metrics import TopKAccuracy


Inputs = dict[str, Any]


class Batches(Protocol):
    """What a task does with batches that are on the model's device."""

    def augment(self, inputs: Inputs, rng: np.random.Generator) -> Inputs:
        """Inputs of a training step."""

    def views(self, inputs: Inputs) -> list[Inputs]:
        """Inputs of the model in evaluation, one for each view."""

    def average(self, logits: torch.Tensor) -> torch.Tensor:
        """Of `(views, batch, labels)`, the logits `(batch, labels)` of all views."""


class ClassificationTrainer(Trainer):
    """
    Trains and evaluates a classifier.

    Args:
        model (`PreTrainedModel`):
            What is trained.
        args (`TrainingArguments`):
            How.
        batches (`Batches`, *optional*):
            What is done with batches on the device.
        label_smoothing (`float`, *optional*, defaults to 0.0):
            Of training alone, so that evaluation losses of all runs compare.
        layer_decay (`float`, *optional*, defaults to 1.0):
            See [`RunArguments`].
        projection_learning_rate_scale (`float`, *optional*, defaults to 1.0):
            See [`RunArguments`].
        kwargs:
            The other arguments of `Trainer`: data sets, collator, processor, callbacks.
    """

    model: nn.Module

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        *,
        batches: Batches | None = None,
        label_smoothing: float = 0.0,
        layer_decay: float = 1.0,
        projection_learning_rate_scale: float = 1.0,
        **kwargs,
    ):
        self.loss = ClassificationLoss(label_smoothing)
        super().__init__(
            model,
            args,
            compute_loss_func=self.loss,
            compute_metrics=compute_accuracy,
            preprocess_logits_for_metrics=best_five,
            **kwargs,
        )
        self.batches = batches
        self.layer_decay = layer_decay
        self.projection_learning_rate_scale = projection_learning_rate_scale
        self.last_batch = (-1, -1)  # step, and number within it

    def _prepare_inputs(self, inputs: Inputs) -> Inputs:
        inputs = super()._prepare_inputs(inputs)
        if self.batches is None or not self.model.training:
            return inputs
        step, number = self.last_batch
        self.last_batch = (self.state.global_step, number + 1 if step == self.state.global_step else 0)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        # As of a row, what is random about a batch depends on nothing that a resumed run does not have.
        return self.batches.augment(inputs, np.random.default_rng((seed, *self.last_batch, self.args.process_index)))

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        if self.batches is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = torch.stack([model(**view)["logits"].float() for view in self.batches.views(inputs)])
        logits = self.batches.average(logits)
        loss = self.loss({"logits": logits}, labels)
        return loss, None if prediction_loss_only else logits, labels

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        if self.layer_decay == 1 and self.projection_learning_rate_scale == 1:
            return optimizer
        scales = self.learning_rate_scales(self.model if model is None else model)
        groups = list(optimizer.param_groups)
        optimizer.param_groups.clear()
        for group in groups:
            by_scale: dict[float, list[nn.Parameter]] = {}
            for parameter in group.pop("params"):
                by_scale.setdefault(scales[parameter], []).append(parameter)
            for scale, parameters in by_scale.items():
                optimizer.add_param_group({**group, "params": parameters, "lr": group["lr"] * scale})
        return optimizer

    def learning_rate_scales(self, model: nn.Module) -> dict[nn.Parameter, float]:
        """Layer-wise decay as in BEiT (github.com/microsoft/unilm) and VideoMAE, and the projections' own factor."""
        named = dict(self.accelerator.unwrap_model(model).named_parameters())
        prefix = self.accelerator.unwrap_model(model).base_model_prefix
        layers = {name: re.match(rf"{prefix}\.(?:encoder\.)?layers?\.(\d+)\.(.+)", name) for name in named}
        found = {name: match for name, match in layers.items() if match}
        if self.layer_decay < 1 and (not found or any(re.search(r"\bblocks\.\d", m[2]) for m in found.values())):
            raise ValueError(f"layer_decay needs a host with layers one after the other, unlike {prefix}. Remove it.")
        depths = {name: int(match[1]) + 1 for name, match in found.items()}
        scales = {}
        top = max(depths.values(), default=0) + 1
        for name, parameter in named.items():
            depth = 0 if name.startswith(f"{prefix}.embeddings.") else depths.get(name, top)
            scale = self.layer_decay ** (top - depth)
            if re.match(r"llm_block\.(input|output)_projection\.", name):
                scale *= self.projection_learning_rate_scale
            scales[parameter] = scale
        return scales


class ClassificationLoss:
    """Cross-entropy with labels, or with the shares of all labels. Labels are smoothed in training only."""

    def __init__(self, label_smoothing: float):
        self.label_smoothing = label_smoothing

    def __call__(self, outputs, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None):
        label_smoothing = self.label_smoothing if torch.is_grad_enabled() else 0.0
        loss = F.cross_entropy(outputs["logits"].float(), labels, reduction="sum", label_smoothing=label_smoothing)
        return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def best_five(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return logits.topk(min(5, logits.shape[-1])).indices


def compute_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    metric = TopKAccuracy(keep_in_memory=True)
    return metric.compute(predictions=prediction.predictions, references=prediction.label_ids)
