# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The keys of a recipe that belong neither to a task nor to `transformers.TrainingArguments`."""

import re
from dataclasses import dataclass
from typing import Literal

from hf_frozen_llm.tasks import TASKS, find_task


@dataclass
class ModelArguments:
    """
    The model to train. The groups `host` and `llm_block` set its sizes.

    Args:
        task (`str`, *optional*, defaults to `"image-classification"`):
            Task of the model: a name in `hf_frozen_llm.tasks.TASKS`.
        model_type (`str`, *optional*, defaults to `"vit_with_llm_block"`):
            The model type of the configuration, one of the task's `models`. The host of a `"vision_with_llm_block"` is
            any vision encoder, which `host.model_type` or `host.name_or_path` names. With `llm_block: null` the model
            is the plain host.
        pooling (`"cls"`, `"mean"` or `"cls_mean"`, *optional*):
            Input of the classifier of a `vision_with_llm_block`. By default the CLS token or, for a host that has none
            or that itself takes the mean, the mean of the patches.
        freeze_host (`bool`, *optional*, defaults to `False`):
            Whether the host is frozen too, so that only the projections and the head are trained.
        classifier_init_scale (`float`, *optional*, defaults to 1.0):
            Factor of the initial weights of the last linear layer.
    """

    task: str = next(iter(TASKS))
    model_type: str = next(iter(TASKS[task].models))
    pooling: Literal["cls", "mean", "cls_mean"] | None = None
    freeze_host: bool = False
    classifier_init_scale: float = 1.0

    def __post_init__(self):
        if self.model_type not in TASKS[self.task].models:
            raise ValueError(
                f"task is {self.task!r}, which does not fit {self.model_type}. Set model_type to "
                f"{' or '.join(TASKS[self.task].models)}, or task to {find_task(self.model_type).name}."
            )
        if self.pooling is not None and self.model_type != "vision_with_llm_block":
            raise ValueError(
                f"pooling is {self.pooling!r}, but the classifier of a {self.model_type} always reads the CLS token. "
                "Remove it, or set model_type to vision_with_llm_block."
            )
        if not 0 <= self.classifier_init_scale < float("inf"):
            raise ValueError(
                f"classifier_init_scale is {self.classifier_init_scale}; it must be finite, and not negative."
            )


@dataclass
class RunArguments:
    """
    Settings of a run that `TrainingArguments` does not have.

    Args:
        base_learning_rate (`float`, *optional*):
            Learning rate for `base_batch_size` examples a step: `learning_rate` becomes `base_learning_rate * examples
            per step / base_batch_size`, on any number of devices. Not together with `learning_rate`.
        base_batch_size (`int`, *optional*, defaults to 512):
            Examples a step at which the learning rate is `base_learning_rate`.
        layer_decay (`float`, *optional*, defaults to 1.0):
            Learning rate of each host layer as a factor of the next layer's; the embeddings have the lowest rate,
            block and head the full rate (BEiT's layer-wise decay, as in VideoMAE).
        learning_rate_scales (`dict[str, float]`, *optional*):
            Factors of the learning rate of parameters, by a regular expression that their names contain, or by the
            name of a group: `host`, `embeddings` (of the host), `projections` (of the block) or `head`. Where several
            apply to a parameter, they multiply: `{projections: 10, "vit\\.layers\\.0\\.": 0.1}`.
        projection_learning_rate_scale (`float`, *optional*):
            Earlier name of the group `projections` in `learning_rate_scales`.
        learning_rate_drops (`list[float]`, *optional*):
            Epochs after which the learning rate is multiplied by `learning_rate_drop_factor`. Needs a constant
            `lr_scheduler_type`.
        learning_rate_drop_factor (`float`, *optional*, defaults to 0.1):
            Factor of the learning rate at each of `learning_rate_drops`.
        warmup_epochs (`float`, *optional*):
            Length of the warm-up in epochs. Not together with `warmup_steps`.
        warmup_learning_rate (`float`, *optional*):
            Learning rate of the first step, from which the warm-up rises linearly. By default 0. This key and the next
            two need `lr_scheduler_type: cosine`. As in DeiT, `base_batch_size` does not scale it.
        min_learning_rate (`float`, *optional*):
            Learning rate at which the cosine ends. By default 0.
        cooldown_epochs (`float`, *optional*, defaults to 0.0):
            Epochs at the end of the training at `min_learning_rate`, of those in `num_train_epochs`.
        weight_decay_rule (`"trainer"` or `"timm"`, *optional*, defaults to `"trainer"`):
            Parameters without `weight_decay`. `"trainer"`: biases and norms, by their names, as transformers' Trainer.
            `"timm"`: all vectors, class tokens, positions and embeddings, as timm and DeiT.
        ema_decay (`float`, *optional*):
            Decay of an exponential moving average of the weights, of which `train` writes a model into
            `output_dir/ema`. Evaluations add its metrics (`eval_ema_top1`), and `metric_for_best_model: ema_top1`
            chooses by them. Frozen layers are not copied.
        ema_warmup (`bool`, *optional*, defaults to `False`):
            Whether the decay rises from 0 as `1 - step ** (-2 / 3)`, as in timm's `ModelEmaV3`.
        progressive_resizing (`dict[str, int]`, *optional*):
            Size of the training images from each epoch on, as in `{0: 128, 10: 160, 20: 224}`; in evaluation, images
            have the model's own size. Augmented images are resized on the device, and the host interpolates its
            positions.
        clip_grad_value (`float`, *optional*):
            Largest absolute value of each entry of the gradient, to which it is clipped after `max_grad_norm`.
        resume (`bool`, *optional*, defaults to `False`):
            Whether to resume from the last complete checkpoint in `output_dir`, if there is one.
        resume_changes (`str`, *optional*):
            Keys, separated by commas, that may differ from those of the checkpoint, such as
            `learning_rate,host.hidden_dropout_prob`. Without it, a resumed run must be the run that was interrupted.
    """

    base_learning_rate: float | None = None
    base_batch_size: int = 512
    layer_decay: float = 1.0
    learning_rate_scales: dict[str, float] | None = None
    projection_learning_rate_scale: float | None = None
    learning_rate_drops: list[float] | None = None
    learning_rate_drop_factor: float = 0.1
    warmup_epochs: float | None = None
    warmup_learning_rate: float | None = None
    min_learning_rate: float | None = None
    cooldown_epochs: float = 0.0
    weight_decay_rule: Literal["trainer", "timm"] = "trainer"
    ema_decay: float | None = None
    ema_warmup: bool = False
    progressive_resizing: dict[str, int] | None = None
    clip_grad_value: float | None = None
    resume: bool = False
    resume_changes: str | None = None

    def __post_init__(self):
        if self.base_batch_size < 1:
            raise ValueError(f"base_batch_size is {self.base_batch_size}; it must be at least 1.")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}; it must lie in (0, 1].")
        if any(epoch <= 0 for epoch in self.learning_rate_drops or ()):
            raise ValueError(f"learning_rate_drops is {self.learning_rate_drops}; epochs must be above 0.")
        for name in ("warmup_epochs", "warmup_learning_rate", "min_learning_rate", "cooldown_epochs"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be finite, and not negative.")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; it must lie in [0, 1).")
        if self.ema_warmup and self.ema_decay is None:
            raise ValueError("ema_warmup is set, but ema_decay is not: there is no average. Set ema_decay.")
        for epoch, size in (self.progressive_resizing or {}).items():
            if not epoch.isdecimal() or size < 1:
                raise ValueError(
                    f"progressive_resizing is {self.progressive_resizing}: {epoch!r} must be the number of an epoch, "
                    f"and {size} a size of at least 1."
                )
        for name in ("learning_rate_drop_factor", "clip_grad_value"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be finite, and above 0.")
        scales = dict(self.learning_rate_scales or {})
        if self.projection_learning_rate_scale is not None:
            if "projections" in scales:
                raise ValueError(
                    "projection_learning_rate_scale and learning_rate_scales.projections are both set; remove the "
                    "first one."
                )
            scales["projections"] = self.projection_learning_rate_scale
            self.projection_learning_rate_scale = None
        for name, scale in scales.items():
            if not 0 < scale < float("inf"):
                raise ValueError(f"learning_rate_scales: the factor of {name!r} is {scale}; it must be above 0.")
            try:
                re.compile(name)
            except re.error as error:
                raise ValueError(f"learning_rate_scales: {name!r} is no regular expression: {error}.") from error
        self.learning_rate_scales = scales or None


@dataclass
class EvaluationArguments:
    """
    Arguments of `hf-frozen-llm evaluate` besides the keys of a recipe.

    Args:
        recipe (`str`, *optional*):
            Recipe whose data settings are used. By default those of the model's training.
        split (`str`, *optional*):
            Split to evaluate on. By default `eval_split`.
        output_file (`str`, *optional*):
            File for the results. By default `eval_results.json` beside the model, or, with a corruption,
            `eval_results_<corruption>_<severity>.json`.
    """

    recipe: str | None = None
    split: str | None = None
    output_file: str | None = None
