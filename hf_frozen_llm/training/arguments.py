# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The keys of a recipe that are this package's own; all others are `transformers.TrainingArguments`."""

from dataclasses import dataclass
from typing import ClassVar, Literal


# Model types of each task.
MODEL_TYPES = {
    "image-classification": ("vit_with_llm_block", "vision_with_llm_block"),
    "video-classification": ("videomae_with_llm_block",),
    "point-cloud-classification": ("point_bert_with_llm_block",),
}


@dataclass
class ModelArguments:
    """
    Which model is trained. Its sizes stand in the groups `host` and `llm_block`.

    Args:
        task (`str`, *optional*, defaults to `"image-classification"`):
            What the model is trained for; or `"video-classification"` or `"point-cloud-classification"`.
        model_type (`str`, *optional*, defaults to `"vit_with_llm_block"`):
            The model type of the configuration. Of images `"vit_with_llm_block"`, a ViT, or
            `"vision_with_llm_block"`, any vision encoder, which `host.model_type` or `host.name_or_path` names; of
            videos `"videomae_with_llm_block"`; of clouds of points `"point_bert_with_llm_block"`. With
            `llm_block: null` it is the plain host.
        pooling (`"cls"`, `"mean"` or `"cls_mean"`, *optional*):
            What the classifier of a `vision_with_llm_block` reads. By default the CLS token or, for a host that has
            none or that itself takes the mean, the mean of the patches.
        freeze_host (`bool`, *optional*, defaults to `False`):
            Whether the host is frozen too, so that the projections and the head alone are trained.
        classifier_init_scale (`float`, *optional*, defaults to 1.0):
            Factor of the initial weights of the last linear layer.
    """

    task: Literal["image-classification", "video-classification", "point-cloud-classification"] = (
        "image-classification"
    )
    model_type: Literal[
        "vit_with_llm_block", "vision_with_llm_block", "videomae_with_llm_block", "point_bert_with_llm_block"
    ] = "vit_with_llm_block"
    pooling: Literal["cls", "mean", "cls_mean"] | None = None
    freeze_host: bool = False
    classifier_init_scale: float = 1.0

    def __post_init__(self):
        if self.model_type not in MODEL_TYPES[self.task]:
            raise ValueError(
                f"task is {self.task!r}, which a {self.model_type} is not for. Set model_type to "
                f"{' or '.join(MODEL_TYPES[self.task])}, or task to "
                f"{next(task for task, types in MODEL_TYPES.items() if self.model_type in types)}."
            )
        if self.pooling is not None and self.model_type != "vision_with_llm_block":
            raise ValueError(
                f"pooling is {self.pooling!r}, but the classifier of a {self.model_type} always reads the CLS token. "
                "Remove it, or set model_type to vision_with_llm_block."
            )


@dataclass
class DataArguments:
    """
    Where labelled data comes from, whatever it is.

    Args:
        dataset_name (`str`):
            Hub id, folder of files (one sub-folder per class), folder of parquet files, or one parquet file.
        dataset_config_name (`str`, *optional*):
            Configuration of the dataset, for datasets that have several.
        dataset_revision (`str`, *optional*):
            Branch, tag or commit of the dataset on the Hub.
        train_split (`str`, *optional*, defaults to `"train"`):
            Split to train on; slices such as `train[:90%]` work where `datasets` itself reads the data, not streamed.
        eval_split (`str`, *optional*):
            Split to evaluate on. Without it nothing is evaluated.
        label_column (`str`, *optional*, defaults to `"label"`):
            Column of the labels: class labels, integers from 0, or strings.
        class_names (`list[str]`, *optional*):
            Names of the classes, for data that does not bring them.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether the data is read while training instead of downloaded before. Needs `max_steps`.
        shuffle_buffer_size (`int`, *optional*, defaults to 10000):
            How many streamed training examples are held to draw from.
        max_train_samples (`int`, *optional*):
            Train on this many examples: a random, always equal choice; the first ones of a stream.
        max_eval_samples (`int`, *optional*):
            Evaluate on this many examples, chosen likewise.
    """

    # The key that names the column of the inputs, and the task's keys that mean something to `evaluate`.
    input_key: ClassVar[str]
    evaluation_keys: ClassVar[tuple[str, ...]] = ()

    dataset_name: str = ""
    dataset_config_name: str | None = None
    dataset_revision: str | None = None
    train_split: str = "train"
    eval_split: str | None = None
    label_column: str = "label"
    class_names: list[str] | None = None
    streaming: bool = False
    shuffle_buffer_size: int = 10000
    max_train_samples: int | None = None
    max_eval_samples: int | None = None

    @property
    def input_column(self) -> str:
        return getattr(self, self.input_key)

    def __post_init__(self):
        if not self.dataset_name:
            raise ValueError("dataset_name is not set; give a Hub id, a folder or a file.")
        if self.input_column == self.label_column:
            raise ValueError(
                f"{self.input_key} and label_column are both {self.input_column!r}; they are two columns."
            )
        if self.class_names is not None and len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"class_names holds a name twice: {self.class_names}.")
        self.check_at_least_one("max_train_samples", "max_eval_samples", "shuffle_buffer_size")

    def check_at_least_one(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")

    def check_range(self, name: str, smallest: float, largest: float, example: str) -> None:
        """A field of two numbers, the smaller one first."""
        value = getattr(self, name)
        if value is not None and not (len(value) == 2 and smallest < value[0] <= value[1] <= largest):
            raise ValueError(f"{name} is {value}; it must be two numbers such as {example}.")

    def check_colours(self) -> None:
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            if value is not None and len(value) != 3:
                raise ValueError(f"{name} is {value}; it must hold three numbers, one per colour.")
        std = getattr(self, "image_std", None)
        if std is not None and min(std) <= 0:
            raise ValueError(f"image_std is {std}; pixels are divided by it, so it must be above 0.")


@dataclass
class ImageDataArguments(DataArguments):
    """
    Where the images come from and how they become tensors, beside [`DataArguments`].

    Args:
        image_column (`str`, *optional*, defaults to `"image"`):
            Column of the images.
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

    input_key: ClassVar[str] = "image_column"
    evaluation_keys: ClassVar[tuple[str, ...]] = ("image_column",)

    image_column: str = "image"
    image_size: int | None = None
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    crop_pct: float | None = None
    random_crop_scale: list[float] | None = None
    random_flip: bool = False

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least_one("image_size")
        self.check_colours()
        self.check_range("random_crop_scale", 0, 1, "[0.08, 1.0]")
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct is {self.crop_pct}; it must lie in (0, 1].")


@dataclass
class VideoDataArguments(DataArguments):
    """
    Where the videos come from and how they become tensors, beside [`DataArguments`]. `dataset_name` may also be the
    folder of video files that a split names, when the split is a file of annotations: Something-Something's `.json`,
    or a `.csv` of paths and labels.

    Args:
        video_column (`str`, *optional*, defaults to `"video"`):
            Column of the videos.
        sampling (`"uniform"` or `"dense"`, *optional*, defaults to `"uniform"`):
            Which frames are read. `"uniform"`: one of each of `num_frames` equal parts of the video, a random one in
            training. `"dense"`: every `frame_stride`th, from a random start in training.
        frame_stride (`int`, *optional*, defaults to 4):
            Step between the frames of dense sampling.
        repeat_frames (`bool`, *optional*, defaults to `False`):
            Whether a video of fewer frames than the model reads shows some of them again, instead of being refused.
        num_segments (`int`, *optional*, defaults to 1):
            Evaluate on this many choices of frames of a video; the class probabilities of all views are averaged.
        num_crops (`int`, *optional*, defaults to 1):
            Evaluate on this many squares along the longer side of the video: 1, the middle, or more.
        image_mean (`list[float]`, *optional*):
            Mean of the channels. By default that of the published host, or else ImageNet's.
        image_std (`list[float]`, *optional*):
            Standard deviation of the channels, with the same default.
        interpolation (`"bicubic"` or `"bilinear"`, *optional*, defaults to `"bilinear"`):
            How frames are resized.
        random_crop_scale (`list[float]`, *optional*):
            Train on a random crop of all frames that covers this share of them, for example `[0.08, 1.0]`, of aspect
            ratio 3/4 to 4/3.
        random_flip (`bool`, *optional*, defaults to `False`):
            Whether half of the training clips are mirrored.
        rand_augment_ops (`int`, *optional*, defaults to 0):
            Operations of RandAugment on a training clip, the same on all of its frames, each with a chance of 1/2.
        rand_augment_magnitude (`float`, *optional*, defaults to 7.0):
            Their strength, from 0 to 10, drawn with a standard deviation of 0.5.
        random_erasing (`float`, *optional*, defaults to 0.0):
            Chance that a box of a training clip, the same in all frames, is replaced by noise.
        mixup_alpha (`float`, *optional*, defaults to 0.0):
            Mixup of training clips: parameter of the beta distribution; 0 is none.
        cutmix_alpha (`float`, *optional*, defaults to 0.0):
            CutMix likewise. With both, each batch draws one of them.
        samples_per_video (`int`, *optional*, defaults to 1):
            How often a training video is in its batch, augmented anew each time (repeated augmentation).
    """

    input_key: ClassVar[str] = "video_column"
    evaluation_keys: ClassVar[tuple[str, ...]] = (
        "video_column",
        "sampling",
        "frame_stride",
        "repeat_frames",
        "num_segments",
        "num_crops",
    )

    video_column: str = "video"
    sampling: Literal["uniform", "dense"] = "uniform"
    frame_stride: int = 4
    repeat_frames: bool = False
    num_segments: int = 1
    num_crops: int = 1
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    interpolation: Literal["bicubic", "bilinear"] = "bilinear"
    random_crop_scale: list[float] | None = None
    random_flip: bool = False
    rand_augment_ops: int = 0
    rand_augment_magnitude: float = 7.0
    random_erasing: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    samples_per_video: int = 1

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least_one("frame_stride", "num_segments", "num_crops", "samples_per_video")
        self.check_colours()
        self.check_range("random_crop_scale", 0, 1, "[0.08, 1.0]")
        if not 0 <= self.random_erasing <= 1:
            raise ValueError(f"random_erasing is {self.random_erasing}; it is a chance, from 0 to 1.")
        if not 0 <= self.rand_augment_magnitude <= 10:
            raise ValueError(f"rand_augment_magnitude is {self.rand_augment_magnitude}; it must lie between 0 and 10.")
        for name in ("rand_augment_ops", "mixup_alpha", "cutmix_alpha"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative.")


@dataclass
class PointDataArguments(DataArguments):
    """
    Where clouds of points come from and how they become tensors, beside [`DataArguments`]. `dataset_name` may also be

    - an `.npz` file of the arrays `points` (clouds, points, 3), `label`, `split` and, optionally, `classes`;
    - a folder of `.h5` files that the splits name, as ScanObjectNN and ModelNet40 have them (`data` and `label`):
      `train_split: training_objectdataset.h5`, or with wildcards, `ply_data_train*.h5`;
    - a folder of text files that a split's list names, as ModelNet40 has them (`train_split: modelnet40_train.txt`);
    - a folder with a sub-folder for each split, and in it one for each class, of `.ply`, `.off`, `.obj`, `.npy` or
      `.txt` files.

    Args:
        points_column (`str`, *optional*, defaults to `"points"`):
            Column of the clouds, where they come from a Hub id or parquet files.
        num_points (`int`, *optional*, defaults to 1024):
            Points that the model sees, chosen by farthest point sampling.
        num_candidates (`int`, *optional*):
            In training, this many are chosen by farthest point sampling, and `num_points` of them at random. By
            default `num_points` are drawn from the whole cloud.
        max_points (`int`, *optional*):
            Clouds are reduced to this many points by farthest point sampling, once; the result is kept in the cache
            of `datasets`.
        normalize (`bool`, *optional*, defaults to `True`):
            Whether clouds are moved to the origin and scaled to a sphere of radius 1.
        random_scale (`list[float]`, *optional*):
            Smallest and largest factor of each coordinate in training, for example `[0.6667, 1.5]`.
        random_translation (`float`, *optional*, defaults to 0.0):
            How far training clouds are moved along each axis at most, either way.
        random_rotation (`"x"`, `"y"`, `"z"` or `"any"`, *optional*):
            Axis around which training clouds are turned, by any angle; `"any"` is any rotation.
        num_votes (`int`, *optional*, defaults to 1):
            Evaluate on this many choices of points, and average the logits: the first as described, the others drawn
            and changed as in training.
    """

    input_key: ClassVar[str] = "points_column"
    evaluation_keys: ClassVar[tuple[str, ...]] = (
        "points_column",
        "num_candidates",
        "max_points",
        "random_scale",
        "random_translation",
        "random_rotation",
        "num_votes",
    )

    points_column: str = "points"
    num_points: int = 1024
    num_candidates: int | None = None
    max_points: int | None = None
    normalize: bool = True
    random_scale: list[float] | None = None
    random_translation: float = 0.0
    random_rotation: Literal["x", "y", "z", "any"] | None = None
    num_votes: int = 1

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least_one("num_points", "num_candidates", "max_points", "num_votes")
        self.check_range("random_scale", 0, float("inf"), "[0.6667, 1.5]")
        if self.random_translation < 0:
            raise ValueError(f"random_translation is {self.random_translation}; it must not be negative.")


@dataclass
class RunArguments:
    """
    What `TrainingArguments` does not know about a run.

    Args:
        base_learning_rate (`float`, *optional*):
            Learning rate for `base_batch_size` examples a step: `learning_rate` becomes `base_learning_rate * examples
            per step / base_batch_size`, on any number of devices. Not together with `learning_rate`.
        base_batch_size (`int`, *optional*, defaults to 512):
            See there.
        layer_decay (`float`, *optional*, defaults to 1.0):
            Each host layer learns at this factor of the rate of what comes after it, the embeddings slowest; block and
            head learn at the full rate (BEiT's layer-wise decay, as VideoMAE has it).
        projection_learning_rate_scale (`float`, *optional*, defaults to 1.0):
            Factor of the learning rate of the block's two projections.
        resume (`bool`, *optional*, defaults to `False`):
            Whether to go on from the last complete checkpoint in `output_dir`, or to start where there is none.
    """

    base_learning_rate: float | None = None
    base_batch_size: int = 512
    layer_decay: float = 1.0
    projection_learning_rate_scale: float = 1.0
    resume: bool = False

    def __post_init__(self):
        if self.base_batch_size < 1:
            raise ValueError(f"base_batch_size is {self.base_batch_size}; it must be at least 1.")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}; it must lie in (0, 1].")
        if self.projection_learning_rate_scale <= 0:
            raise ValueError(
                f"projection_learning_rate_scale is {self.projection_learning_rate_scale}; it must be above 0."
            )


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
