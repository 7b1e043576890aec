# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Read lists of annotated videos, decode frames, and cut clips for a classifier.

PyAV reads the files: its wheels include FFmpeg, whereas torchcodec and decord need an installed FFmpeg of a matching
version.
"""

import csv
import importlib.util
import io
import json
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from PIL import Image
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from hf_frozen_llm.data.augmentation import draw_crop
from hf_frozen_llm.data.datasets import Example, HFDataset, Row, find_local
from hf_frozen_llm.tasks.classification import ClassificationTransform


if TYPE_CHECKING:
    from hf_frozen_llm.tasks.video_classification import VideoDataArguments

INSTALL = "pip install 'hf_frozen_llm[video]'"
# By the degrees, counterclockwise.
TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
# Folder of the published videos of Something-Something V2.
SSV2_FOLDER = "20bn-something-something-v2"
VIDEO_SUFFIXES = (
    *(".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob"),
    *(".webm", ".wmv", ".3gp"),
)


def load_annotations(args: "VideoDataArguments", split: str) -> HFDataset:
    """
    Read a list of video files and their labels.

    Args:
        args ([`VideoDataArguments`]):
            `dataset_name` is the folder of the videos, or the folder above `20bn-something-something-v2`.
        split (`str`):
            Path of the list, below that folder: a `.json` file in Something-Something V2's format (`id` and
            `template`; the classes are those of `labels.json` beside it, if there is one), or a `.csv` file of a path
            and a label in each row, separated by a space or a comma, in VideoMAE's format.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`: paths and labels.
    """
    folder, where = find_local(args), f"{args.dataset_name} [{split}]"
    if folder is None or not (folder / split).is_file():
        raise FileNotFoundError(f"{where}: there is no file {Path(args.dataset_name, split)}.")
    file = folder / split
    videos = folder / SSV2_FOLDER if (folder / SSV2_FOLDER).is_dir() else folder
    names = None
    if file.suffix == ".csv":
        given, labels = read_csv(file, where)
    else:
        given, labels, names = read_something_something(file, where)
    paths = [videos / path for path in given]
    if missing := [path for path in paths if not path.is_file()]:
        raise FileNotFoundError(
            f"{where}: {len(missing)} of {len(paths)} videos are missing, the first is {missing[0]}."
        )
    if args.is_multi_label:
        labels = [str(label) for label in labels]
    feature = datasets.Value("int64" if labels and isinstance(labels[0], int) else "string")
    if names is not None:
        feature = datasets.ClassLabel(names=names)
    features = datasets.Features({args.video_column: datasets.Video(decode=False), args.label_column: feature})
    columns = {args.video_column: [str(path) for path in paths], args.label_column: labels}
    rows = datasets.Dataset.from_dict(columns, features=features)
    return rows.to_iterable_dataset() if args.streaming else rows


def read_csv(file: Path, where: str) -> tuple[list[str], list[Any]]:
    """Return the paths and the labels of a list with a path and a label in each row."""
    text = read_utf8(file, where)
    first = text.partition("\n")[0]
    delimiter = next((mark for mark in ",;\t" if mark in first), " ")
    lines = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    rows = [cells for line in lines if (cells := [cell.strip() for cell in line if cell.strip()])]
    if any(len(row) != 2 for row in rows):
        raise ValueError(f"{where}: each row must be a path and a label, separated by a space or a comma.")
    labels: list[Any] = [label for _, label in rows]
    if all(label.isdecimal() for label in labels):
        labels = [int(label) for label in labels]
    return [path for path, _ in rows], labels


def read_something_something(file: Path, where: str) -> tuple[list[str], list[str], list[str] | None]:
    """Return the paths, the labels and, if `labels.json` lists them, the classes of Something-Something V2."""
    try:
        rows = json.loads(read_utf8(file, where))
        paths = [f"{row['id']}.webm" for row in rows]
        labels = [row["template"].replace("[", "").replace("]", "") for row in rows]
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{where}: not a list of annotations with `id` and `template`, as Something-Something V2 has them: "
            f"{error!r}"
        ) from error
    classes = file.with_name("labels.json")
    if not classes.is_file():
        return paths, labels, None
    try:
        numbers = json.loads(read_utf8(classes, where))
        names = sorted(numbers, key=lambda name: int(numbers[name]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {classes} does not give the number of each class: {error}") from error
    if unknown := sorted(set(labels) - set(names)):
        raise ValueError(f"{where}: {classes.name} does not have the class {unknown[0]!r}.")
    return paths, labels, names


def read_utf8(file: Path, where: str) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")  # Excel begins files with a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: {file} is not in UTF-8 ({error}). Save it in UTF-8.") from error


def build_video_processor(
    args: "VideoDataArguments", host: Mapping[str, Any], config: Any
) -> VideoMAEImageProcessorPil:
    """Return the processor that is saved with the model."""
    size = config.image_size
    if config.num_channels != 3 or not isinstance(size, int):
        raise ValueError(
            f"host.num_channels is {config.num_channels} and host.image_size {size}; videos are read as squares with "
            "3 channels (RGB)."
        )
    published: Mapping[str, Any] = {}
    if host.get("name_or_path") is not None:
        try:
            published, _ = VideoMAEImageProcessorPil.get_image_processor_dict(
                host["name_or_path"], revision=host.get("revision")
            )
        except OSError:
            published = {}  # a converted checkpoint: the released code uses ImageNet's mean and standard deviation
    return VideoMAEImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=args.image_mean or published.get("image_mean") or list(IMAGENET_DEFAULT_MEAN),
        image_std=args.image_std or published.get("image_std") or list(IMAGENET_DEFAULT_STD),
        resample=Image.Resampling[args.interpolation.upper()],
    )


def choose_frames(
    args: "VideoDataArguments", total: int, num_frames: int, segment: int = 0, draw: np.ndarray | None = None
) -> np.ndarray:
    """
    Choose frames of a video: `"uniform"` as the released code of the paper does (`ssv2.py`), `"dense"` as VideoMAE
    does for Kinetics.

    Args:
        args ([`VideoDataArguments`]): their `sampling`, `frame_stride`, `num_segments` and `repeat_frames`.
        total (`int`): frames of the video.
        num_frames (`int`): frames of a clip.
        segment (`int`, *optional*, defaults to 0): which of the `num_segments` choices, in evaluation.
        draw (`np.ndarray` of shape `(num_frames,)`, *optional*): uniform numbers in [0, 1), for the random choice of
            training.

    Returns:
        `np.ndarray` of shape `(num_frames,)`: their indices, in order.

    Raises:
        `ValueError`: if the video is too short.
    """
    if total < (1 if args.repeat_frames else num_frames):
        raise ValueError(
            f"the video has {total} frames, and the model reads {num_frames}. Leave it out, or set repeat_frames to "
            "show some of them again."
        )
    order = np.arange(num_frames)
    if args.sampling == "dense":
        latest = max(0, total - (num_frames - 1) * args.frame_stride - 1)
        if draw is not None:
            start = int((latest + 1) * draw[0])
        else:
            start = latest // 2 if args.num_segments == 1 else latest * segment // (args.num_segments - 1)
        return np.minimum(start + order * args.frame_stride, total - 1)
    if draw is not None:
        part = total // num_frames or total / num_frames
        return (part * (order + draw)).astype(int)
    part = total / num_frames
    offset = 0.5 if args.num_segments == 1 else segment / args.num_segments
    return (part * offset + part * order).astype(int)


def read_frames(video: Mapping[str, Any], choose: Callable[[int], np.ndarray]) -> dict[int, Image.Image]:
    """
    Decode frames of a video file.

    Args:
        video (`Mapping[str, Any]`): `bytes` of the file, or its `path`.
        choose (`Callable[[int], np.ndarray]`): from the number of frames to the indices of the wanted ones.

    Returns:
        `dict[int, Image.Image]`: the wanted frames, by their indices.

    Raises:
        `ValueError`: if the file cannot be decoded, or has fewer frames than its header says.
    """
    import av

    def open_video() -> Any:
        file = io.BytesIO(video["bytes"]) if video.get("bytes") is not None else video["path"]
        return av.open(file, metadata_errors="ignore")  # titles may not be in UTF-8

    try:
        with open_video() as container:
            stream = find_stream(container)
            entries = list_entries(stream)
            stated = len(entries) or stream.frames
            if entries:
                total = sum(not entry.is_discard for entry in entries)
            else:
                # WebM headers have no frame count; each packet is a frame, except for hidden ones.
                total = stated or sum(packet.size > 0 for packet in container.demux(stream))
        wanted = set(choose(total).tolist())
        frames, decoded = decode(open_video, wanted)
        if len(frames) < len(wanted):
            if is_cut_off(open_video, stated):
                raise ValueError(f"the file is cut off: {decoded} of its {total} frames are there")
            # Frames that were cut from those before them, which they need, cannot be decoded.
            frames, _ = decode(open_video, set(choose(decoded).tolist()))
    except av.FFmpegError as error:
        raise ValueError(f"the video cannot be decoded: {error}") from error
    return frames


def find_stream(container: Any) -> Any:
    """Return the first video stream that is not a cover picture."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    raise ValueError("the file has no video stream")


def list_entries(stream: Any) -> list[Any]:
    """
    Return the index of a whole MP4 file, else nothing. Its edit list hides frames: the header counts them as well, and
    the index marks those that only serve to decode others, and leaves out the rest.
    """
    is_whole = "mp4" in stream.container.format.name.split(",") and stream.frames > 0  # no index of later fragments
    return list(getattr(stream, "index_entries", ())) if is_whole else []


def is_cut_off(open_video: Callable[[], Any], stated: int) -> bool:
    """Return whether a file has fewer packets than its header states, or a part of one."""
    with open_video() as container:
        number = 0
        for packet in container.demux(find_stream(container)):
            if packet.is_corrupt:
                return True
            number += packet.size > 0 or packet.dts is not None  # the last packet is empty
        return number < stated


def decode(open_video: Callable[[], Any], wanted: set[int]) -> tuple[dict[int, Image.Image], int]:
    """Return the wanted frames, and the number of decoded ones: decoding stops at the last wanted frame."""
    frames: dict[int, Image.Image] = {}
    number = -1
    with open_video() as container:
        stream = find_stream(container)
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                frames[number] = to_shown_image(frame, stream.sample_aspect_ratio)
                if len(frames) == len(wanted):
                    break
    return frames, number + 1


def to_shown_image(frame: Any, pixel_ratio: Fraction | None) -> Image.Image:
    """Return a frame as a player shows it: with square pixels, and turned as the file says."""
    image = frame.to_image()
    if pixel_ratio and pixel_ratio != 1:
        image = image.resize((max(1, round(image.width * pixel_ratio)), image.height), Image.Resampling.BILINEAR)
    # Not the matrix in `frame.side_data`, which says as well whether frames are mirrored: PyAV frees it too early.
    turn = TURNS.get(frame.rotation % 360)
    return image if turn is None else image.transpose(turn)


class VideoTransform(ClassificationTransform):
    """
    Decode videos and cut clips out of them; see [`ClassificationTransform`] for the other arguments.

    Args:
        num_frames (`int`): frames of a clip.
        is_training (`bool`): whether clips are drawn at random, `samples_per_video` of each video; otherwise an
            example has all views, `num_segments * num_crops` clips.
    """

    def __init__(self, *args, num_frames: int, is_training: bool, **kwargs):
        super().__init__(*args, **kwargs)
        self.num_frames = num_frames
        self.is_training = is_training
        if importlib.util.find_spec("av") is None:
            raise ImportError(f"Videos are read by PyAV, which is not installed: {INSTALL}")

    def __call__(self, rows: Sequence[Row], keys: Sequence[tuple[int, ...]]) -> list[Example]:
        examples = []
        for row, key in zip(rows, keys):
            video, label = row[self.args.video_column], self.find_label(row, key)
            if video is None:
                raise ValueError(f"{self.locate(key)}: the video is missing.")
            rng = np.random.default_rng((self.seed, *key))
            try:
                clips = self.draw_clips(video, rng) if self.is_training else [self.cut_views(video)]
            except (OSError, ValueError) as error:
                name = f" ({video['path']})" if video.get("path") else ""
                raise ValueError(f"{self.locate(key)}{name}: {error}") from error
            examples += [{"pixel_values": clip, **label} for clip in clips]
        return examples

    def draw_clips(self, video: Mapping[str, Any], rng: np.random.Generator) -> list[torch.Tensor]:
        """Return `samples_per_video` clips of shape `(num_frames, 3, height, width)`, of the same frames."""
        chosen = np.empty(0, int)
        draw = rng.random(self.num_frames)

        def choose(total: int) -> np.ndarray:
            nonlocal chosen
            chosen = choose_frames(self.args, total, self.num_frames, draw=draw)
            return chosen

        frames = read_frames(video, choose)
        clips = []
        for _ in range(self.args.samples_per_video):
            if self.args.random_crop_scale is None:
                clips.append(self.cut(frames, chosen)[0])
                continue
            width, height = frames[chosen[0]].size
            left, top, w, h = draw_crop((width, height), self.args.random_crop_scale, rng)
            box, size = (left, top, left + w, top + h), self.size
            clips.append(to_clip([frames[i].resize((size, size), self.resample, box=box) for i in chosen]))
        return clips

    def cut_views(self, video: Mapping[str, Any]) -> torch.Tensor:
        """Return all views, `(num_segments * num_crops, num_frames, 3, height, width)`."""
        segments: list[np.ndarray] = []

        def choose(total: int) -> np.ndarray:
            segments[:] = [
                choose_frames(self.args, total, self.num_frames, segment) for segment in range(self.args.num_segments)
            ]
            return np.concatenate(segments)

        frames = read_frames(video, choose)
        return torch.cat([self.cut(frames, chosen, self.args.num_crops) for chosen in segments])

    def cut(self, frames: Mapping[int, Image.Image], chosen: np.ndarray, num_crops: int = 1) -> torch.Tensor:
        """Cut squares along the longer side as the model's processor cuts the middle one: `(num_crops, frames, …)`."""
        width, height = frames[chosen[0]].size
        short = min(width, height)
        scaled = int(self.size * width / short), int(self.size * height / short)
        resized = {i: frames[i].resize(scaled, self.resample) for i in set(chosen.tolist())}
        views = []
        for number in range(num_crops):
            share = 0.5 if num_crops == 1 else number / (num_crops - 1)
            left, top = (int((side - self.size) * share) for side in scaled)
            box = (left, top, left + self.size, top + self.size)
            views.append(to_clip([resized[i].crop(box) for i in chosen.tolist()]))
        return torch.stack(views)

    @property
    def size(self) -> int:
        return self.processor.crop_size["height"]

    @property
    def resample(self) -> Image.Resampling:
        return Image.Resampling(self.processor.resample)


def to_clip(frames: Sequence[Image.Image]) -> torch.Tensor:
    """Return a tensor `(frames, 3, height, width)` of 0 to 255."""
    return torch.from_numpy(np.stack([np.asarray(frame) for frame in frames])).permute(0, 3, 1, 2).contiguous()
