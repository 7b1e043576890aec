# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The keys of a recipe that are this package's own; all others are `transformers.TrainingArguments`."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class ModelArguments:
    """
    Which model is trained. Its sizes stand in the groups `host` and `llm_block`.

    Args:
        task (`"image-classification"`, *optional*, defaults to `"image-classification"`):
            What the model is trained for.
        model_type (`str`, *optional*, defaults to `"vit_with_llm_block"`):
            The model type of the configuration: `"vit_with_llm_block"`, a ViT, or `"vision_with_llm_block"`, any
            vision encoder, which `host.model_type` or `host.name_or_path` names. With `llm_block: null` it is the
            plain host.
        pooling (`"cls"`, `"mean"` or `"cls_mean"`, *optional*):
            What the classifier of a `vision_with_llm_block` reads. By default the CLS token or, for a host that has
            none or that itself takes the mean, the mean of the patches.
        freeze_host (`bool`, *optional*, defaults to `False`):
            Whether the host is frozen too, so that the projections and the head alone are trained.
    """

    task: Literal["image-classification"] = "image-classification"
    model_type: Literal["vit_with_llm_block", "vision_with_llm_block"] = "vit_with_llm_block"
    pooling: Literal["cls", "mean", "cls_mean"] | None = None
    freeze_host: bool = False

    def __post_init__(self):
        if self.pooling is not None and self.model_type != "vision_with_llm_block":
            raise ValueError(
                f"pooling is {self.pooling!r}, but the classifier of a {self.model_type} always reads the CLS token. "
                "Remove it, or set model_type to vision_with_llm_block."
            )


@dataclass
class DataArguments:
    """
    Where the images come from and how they become tensors.

    Args:
        dataset_name (`str`):
            Hub id, folder of images (one folder per class), folder of parquet files, or one parquet file.
        dataset_config_name (`str`, *optional*):
            Configuration of the dataset, for datasets that have several.
        dataset_revision (`str`, *optional*):
            Branch, tag or commit of the dataset on the Hub.
        train_split (`str`, *optional*, defaults to `"train"`):
            Split to train on; `datasets` slices such as `train[:90%]` work where the data is not streamed.
        eval_split (`str`, *optional*):
            Split to evaluate on. Without it nothing is evaluated.
        image_column (`str`, *optional*, defaults to `"image"`):
            Column of the images.
        label_column (`str`, *optional*, defaults to `"label"`):
            Column of the labels: class labels, integers from 0, or strings.
        class_names (`list[str]`, *optional*):
            Names of the classes, for data that does not bring them.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether the data is read while training instead of downloaded before. Needs `max_steps`.
        shuffle_buffer_size (`int`, *optional*, defaults to 10000):
            How many streamed training images are held to draw from.
        max_train_samples (`int`, *optional*):
            Train on this many images: a random, always equal choice; the first ones of a stream.
        max_eval_samples (`int`, *optional*):
            Evaluate on this many images, chosen likewise.
        image_size (`int`, *optional*):
            Pixels of a side of the square that the model sees. By default what the image processor of the published
            host gives, unless `host.image_size` is set, or else the host's `image_size`. Another size than the host's
            is for hosts that interpolate their positions themselves (DINOv2, DINOv3, Swin).
        image_mean (`list[float]`, *optional*):
            Mean of the channels. By default ImageNet's, or that of the published host the model starts from.
        image_std (`list[float]`, *optional*):
            Standard deviation of the channels, with the same default.
        interpolation (`"bicubic"` or `"bilinear"`, *optional*, defaults to `"bicubic"`):
            How images are resized.
        crop_pct (`float`, *optional*):
            Evaluate on the middle of the image: the shorter edge becomes `image_size / crop_pct`, then a square is cut
            out of the centre. By default the whole image is squeezed into the square.
        random_crop_scale (`list[float]`, *optional*):
            Train on random crops that cover this share of the image, for example `[0.08, 1.0]`, of aspect ratio 3/4 to
            4/3.
        random_flip (`bool`, *optional*, defaults to `False`):
            Whether half of the training images are mirrored.
    """

    dataset_name: str = ""
    dataset_config_name: str | None = None
    dataset_revision: str | None = None
    train_split: str = "train"
    eval_split: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    class_names: list[str] | None = None
    streaming: bool = False
    shuffle_buffer_size: int = 10000
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    image_size: int | None = None
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    crop_pct: float | None = None
    random_crop_scale: list[float] | None = None
    random_flip: bool = False

    def __post_init__(self):
        if not self.dataset_name:
            raise ValueError("dataset_name is not set; give a Hub id, a folder or a parquet file.")
        if self.image_column == self.label_column:
            raise ValueError(f"image_column and label_column are both {self.image_column!r}; they are two columns.")
        for name in ("max_train_samples", "max_eval_samples", "shuffle_buffer_size", "image_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            if value is not None and len(value) != 3:
                raise ValueError(f"{name} is {value}; it must hold three numbers, one per colour.")
        if self.image_std is not None and min(self.image_std) <= 0:
            raise ValueError(f"image_std is {self.image_std}; pixels are divided by it, so it must be above 0.")
        if self.class_names is not None and len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"class_names holds a name twice: {self.class_names}.")
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct is {self.crop_pct}; it must lie in (0, 1].")
        scale = self.random_crop_scale
        if scale is not None and not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1):
            raise ValueError(f"random_crop_scale is {scale}; it must be two shares such as [0.08, 1.0].")


@dataclass
class RunArguments:
    """
    What `TrainingArguments` does not know about a run.

    Args:
        base_learning_rate (`float`, *optional*):
            Learning rate for 512 images a step: `learning_rate` becomes `base_learning_rate * images per step / 512`,
            on any number of devices. Not together with `learning_rate`.
        resume (`bool`, *optional*, defaults to `False`):
            Whether to go on from the last complete checkpoint in `output_dir`, or to start where there is none.
    """

    base_learning_rate: float | None = None
    resume: bool = False


@dataclass
class EvaluationArguments:
    """
    What `hf-frozen-llm evaluate` takes besides the keys of a recipe.

    Args:
        recipe (`str`, *optional*):
            Recipe whose data settings are used. By default those the model was trained with.
        split (`str`, *optional*):
            Split to evaluate on. By default `eval_split`.
        output_file (`str`, *optional*):
            Where the results are written. By default `eval_results.json` beside the model.
    """

    recipe: str | None = None
    split: str | None = None
    output_file: str | None = None
