# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The recipe keys of augmentation that images and videos share, and the presets of their values."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from hf_frozen_llm.data.arguments import DataArguments


# The values of each preset; a key of the recipe replaces one of them. Repeated augmentation, mixing and the loss are
# those of the released training of DeiT and of DeiT III, whose other keys (label smoothing, rates) a recipe sets.
NONE: dict[str, Any] = {
    "random_crop_scale": None,
    "random_flip": False,
    "rand_augment_ops": 0,
    "rand_augment_magnitude": 7.0,
    "trivial_augment": False,
    "three_augment": False,
    "color_jitter": 0.0,
    "random_erasing": 0.0,
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
    "repeated_augmentation": 1,
    "training_loss": None,
}
LIGHT = {**NONE, "random_crop_scale": [0.08, 1.0], "random_flip": True}
MIXING = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "repeated_augmentation": 3}
PRESETS: dict[str, dict[str, Any]] = {
    "none": NONE,
    "light": LIGHT,
    "deit": {**LIGHT, **MIXING, "rand_augment_ops": 2, "rand_augment_magnitude": 9.0, "random_erasing": 0.25},
    "deit3": {
        **LIGHT,
        **MIXING,
        "three_augment": True,
        "color_jitter": 0.3,
        "training_loss": "binary_cross_entropy",
    },
}
POLICIES = ("rand_augment_ops", "trivial_augment", "three_augment")


@dataclass
class AugmentationArguments(DataArguments):
    """
    The augmentation of images and of clips, which is the same for all frames of a clip. Keys that are not given have
    the values of the preset.

    Args:
        augmentation (`"none"`, `"light"`, `"deit"` or `"deit3"`, *optional*, defaults to `"none"`):
            Preset of the keys below. `"light"`: random crops and flips. `"deit"`: DeiT's RandAugment, random erasing,
            Mixup, CutMix and repeated augmentation besides. `"deit3"`: DeiT III's, with `three_augment`, colour jitter
            and binary cross-entropy instead of RandAugment and erasing.
        random_crop_scale (`list[float]`, *optional*):
            Train on random crops that cover this share of the image, for example `[0.08, 1.0]`, of aspect ratio 3/4 to
            4/3.
        random_flip (`bool`, *optional*):
            Whether half of the training examples are mirrored.
        rand_augment_ops (`int`, *optional*):
            Operations of RandAugment on a training example, each with probability 1/2; 0 is none.
        rand_augment_magnitude (`float`, *optional*):
            Their strength, from 0 to 10, drawn with a standard deviation of 0.5. timm's name of it is
            `rand-m9-n2-mstd0.5-inc1` for 2 operations of strength 9.
        trivial_augment (`bool`, *optional*):
            Whether a training example is changed by one operation of any strength (TrivialAugment, wide).
        three_augment (`bool`, *optional*):
            Whether a training example loses its colours, is solarised or blurred (DeiT III's 3-Augment).
        color_jitter (`float`, *optional*):
            Largest change of brightness, contrast and saturation of a training example, such as 0.4.
        random_erasing (`float`, *optional*):
            Probability that a box of a training example is replaced by noise.
        mixup_alpha (`float`, *optional*):
            Mixup of training examples: parameter of the beta distribution; 0 is none.
        cutmix_alpha (`float`, *optional*):
            CutMix likewise. With both, each batch draws one of them.
        mixup_prob (`float`, *optional*, defaults to 1.0):
            Probability that a batch is mixed.
        mixup_switch_prob (`float`, *optional*, defaults to 0.5):
            With Mixup and CutMix, probability that a mixed batch is mixed by CutMix.
        mixup_off_epoch (`int`, *optional*):
            Number of epochs after which batches are no longer mixed. By default they always are.
        repeated_augmentation (`int`, *optional*):
            How often an epoch has each of its examples, with new augmentation, in the same step but on different
            devices; it has as many fewer examples.
    """

    augmentation: Literal["none", "light", "deit", "deit3"] = "none"
    random_crop_scale: list[float] | None = None
    random_flip: bool | None = None
    rand_augment_ops: int | None = None
    rand_augment_magnitude: float | None = None
    trivial_augment: bool | None = None
    three_augment: bool | None = None
    color_jitter: float | None = None
    random_erasing: float | None = None
    mixup_alpha: float | None = None
    cutmix_alpha: float | None = None
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    mixup_off_epoch: int | None = None
    repeated_augmentation: int | None = None

    def __post_init__(self):
        for name, value in PRESETS[self.augmentation].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        super().__post_init__()
        args: Any = self  # no value is `None` by now
        self.check_at_least_one("mixup_off_epoch", "repeated_augmentation")
        self.check_range("random_crop_scale", 0, 1, "[0.08, 1.0]")
        for name in ("random_erasing", "mixup_prob", "mixup_switch_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a probability, from 0 to 1.")
        if not 0 <= args.rand_augment_magnitude <= 10:
            raise ValueError(f"rand_augment_magnitude is {args.rand_augment_magnitude}; it must lie between 0 and 10.")
        for name in ("rand_augment_ops", "color_jitter", "mixup_alpha", "cutmix_alpha"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be finite, and it must not be negative.")
        policies = [name for name in POLICIES if getattr(self, name)]
        if len(policies) > 1:
            raise ValueError(
                f"{' and '.join(policies)} are all set (augmentation is {self.augmentation!r}), but only one of them "
                f"can be. Set {' or '.join(policies)} to 0 or false."
            )

    def check_training(self) -> None:
        super().check_training()
        args: Any = self
        if args.repeated_augmentation > 1 and self.streaming:
            raise ValueError(
                f"repeated_augmentation is {args.repeated_augmentation}, but the examples of a stream cannot be "
                "repeated in a step. Set it to 1, or streaming to false."
            )
        if self.mixup_off_epoch is not None and self.streaming:
            raise ValueError(
                f"mixup_off_epoch is {self.mixup_off_epoch}, but a stream does not say how long an epoch is. Remove "
                "it, or set streaming to false."
            )

    @property
    def is_mixing(self) -> bool:
        args: Any = self
        return args.mixup_prob > 0 and (args.mixup_alpha > 0 or args.cutmix_alpha > 0)

    @property
    def changes_batches(self) -> bool:
        """Return whether there is more to do on the device than to mirror and to normalise."""
        return any(getattr(self, name) for name in (*POLICIES, "color_jitter", "random_erasing")) or self.is_mixing
