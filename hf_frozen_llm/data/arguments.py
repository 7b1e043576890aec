# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The recipe keys of data that are the same for every task."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass
class DataArguments:
    """
    The source of the data of any task.

    Args:
        dataset_name (`str`):
            Hub id, folder of files, folder of parquet files, or one parquet file.
        dataset_config_name (`str`, *optional*):
            Configuration of the dataset, for datasets that have several.
        dataset_revision (`str`, *optional*):
            Branch, tag or commit of the dataset on the Hub.
        train_split (`str`, *optional*, defaults to `"train"`):
            Split to train on; slices such as `train[:90%]` work where `datasets` itself reads the data, not streamed.
        eval_split (`str`, *optional*):
            Split to evaluate on. Without it nothing is evaluated.
        holdout (`float`, *optional*):
            Share of the rows of `train_split`, such as 0.1, that is held out of training and evaluated on instead of
            `eval_split`: a random, always equal choice.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether the data is read while training instead of downloaded before. Needs `max_steps`.
        shuffle_buffer_size (`int`, *optional*, defaults to 10000):
            Size of the buffer from which streamed training examples are drawn.
        max_train_samples (`int`, *optional*):
            Train on this many examples: a random, always equal choice; the first ones of a stream.
        max_eval_samples (`int`, *optional*):
            Evaluate on this many examples, chosen likewise.
    """

    # The keys, beside those above, that `evaluate` and `predict` take: all others are fixed by the saved model.
    evaluation_keys: ClassVar[tuple[str, ...]] = ()

    dataset_name: str = ""
    dataset_config_name: str | None = None
    dataset_revision: str | None = None
    train_split: str = "train"
    eval_split: str | None = None
    holdout: float | None = None
    streaming: bool = False
    shuffle_buffer_size: int = 10000
    max_train_samples: int | None = None
    max_eval_samples: int | None = None

    def __post_init__(self):
        if not self.dataset_name:
            raise ValueError("dataset_name is not set; give a Hub id, a folder or a file.")
        self.check_at_least_one("max_train_samples", "max_eval_samples", "shuffle_buffer_size")
        if self.holdout is not None and not 0 < self.holdout < 1:
            raise ValueError(f"holdout is {self.holdout}; it is a share of train_split, between 0 and 1.")
        if self.holdout is not None and self.streaming:
            raise ValueError("holdout cannot draw rows from a stream. Set streaming to false, or use another split.")

    def check_training(self) -> None:
        """Refuse keys that apply to saved models only."""

    def evaluation_changes(self) -> dict[str, Any]:
        """Return the keys that change the evaluated examples, such as a corruption; results record them."""
        return {}

    def check_at_least_one(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")

    def check_range(self, name: str, smallest: float, largest: float, example: str) -> None:
        """Check a field of two numbers, the smaller one first."""
        value = getattr(self, name)
        if value is not None and not (len(value) == 2 and smallest < value[0] <= value[1] <= largest):
            raise ValueError(f"{name} is {value}; it must be two numbers such as {example}.")

    def check_colours(self) -> None:
        """Check `image_mean` and `image_std`."""
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            if value is not None and len(value) != 3:
                raise ValueError(f"{name} is {value}; it must hold three numbers, one per colour.")
            if value is not None and not all(map(math.isfinite, value)):
                raise ValueError(f"{name} is {value}; it must hold finite numbers.")
        std = getattr(self, "image_std", None)
        if std is not None and not all(0 < value < math.inf for value in std):
            raise ValueError(f"image_std is {std}; pixels are divided by it, so it must be above 0.")
