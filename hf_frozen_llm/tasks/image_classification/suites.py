# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Suites of robustness: ImageNet's further test sets in their published folders, corruptions and attacks."""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch

from hf_frozen_llm.data.datasets import take_samples
from hf_frozen_llm.data.folders import is_visible, list_files
from hf_frozen_llm.data.images import IMAGE_SUFFIXES
from hf_frozen_llm.tasks.image_classification import ImageClassification
from hf_frozen_llm.tasks.image_classification.attacks import ATTACKS, attack, check_captum
from hf_frozen_llm.tasks.image_classification.corruptions import CORRUPTIONS, SEVERITIES, import_ndimage
from hf_frozen_llm.tasks.image_classification.data import ImageTransform
from hf_frozen_llm.tasks.task import Batch, Record, SuitePart, SuiteSource


class Layout(NamedTuple):
    """
    The published form of a suite.

    Args:
        layout (`str`): its files, for errors and documentation.
        source (`str`): where it is published.
        is_masked (`bool`): whether only the classes that have folders compete.
    """

    layout: str
    source: str
    is_masked: bool = False


IMAGENET = "image-net.org (ILSVRC 2012, validation images sorted into folders of their wnids)"
LAYOUTS = {
    "imagenet": Layout("imagenet/[val/]<wnid>/*.JPEG", IMAGENET),
    "imagenet-v2": Layout("imagenet-v2/<0 … 999>/*.jpeg", "github.com/modestyachts/ImageNetV2"),
    "imagenet-real": Layout(
        "imagenet-real/real.json, and the images in imagenet/[val/]<wnid>/ILSVRC2012_val_<number>.JPEG",
        "github.com/google-research/reassessed-imagenet, and " + IMAGENET,
    ),
    "imagenet-c": Layout(
        "imagenet-c/[<group>/]<corruption>/<1 … 5>/<wnid>/*.JPEG",
        "zenodo.org/records/2235448 (github.com/hendrycks/robustness)",
    ),
    "imagenet-a": Layout("imagenet-a/<wnid>/*.jpg", "github.com/hendrycks/natural-adv-examples", True),
    "imagenet-r": Layout("imagenet-r/<wnid>/*.jpg", "github.com/hendrycks/imagenet-r", True),
    "imagenet-sketch": Layout("imagenet-sketch/[sketch/]<wnid>/*.JPEG", "github.com/HaohanWang/ImageNet-Sketch"),
}
SUITES = ("clean", *LAYOUTS, "corruptions", *ATTACKS)
# Mean top-1 error of AlexNet over the severities of ImageNet-C, of the published code of Hendrycks & Dietterich.
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
WNID = re.compile(r"n\d{8}")
WNIDS_FIX = "Give `--wnids FILE`, with a wnid for each label of the model, a line each, in the order of the labels."
VAL_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})")


class SuiteTask(ImageClassification):
    """
    Image classification on one part of a suite.

    Args:
        args, processor, config: those of [`ImageClassification`].
        attack (`str`, *optional*, defaults to `""`):
            A key of `ATTACKS`, by which the images are changed.
        classes (`Sequence[int]`, *optional*):
            The labels of published images, which alone compete for a prediction in a suite that `is_masked`.
        answers (`Sequence[frozenset[int]]`, *optional*):
            The right labels of each row, instead of its own.
        suite (`str`, *optional*, defaults to `""`):
            A key of `LAYOUTS`.
    """

    def __init__(
        self,
        args: Any,
        processor: Any,
        config: Any,
        attack: str = "",
        classes: Sequence[int] | None = None,
        answers: Sequence[frozenset[int]] | None = None,
        suite: str = "",
    ):
        super().__init__(args, processor, config)
        self.attack, self.answers, self.suite = attack, answers, suite
        self.classes = sorted(set(classes)) if classes is not None and LAYOUTS[suite].is_masked else None

    def label_ids(self, rows: Any) -> dict[Any, int]:
        return {label: label for label in range(self.config.num_labels)} if self.suite else super().label_ids(rows)

    def example_transform(self, rows: Any, split: str, training: bool, seed: int) -> ImageTransform:
        transform = super().example_transform(rows, split, training, seed)
        transform.keeps_size = self.suite == "imagenet-c"
        return transform

    def predict(self, model: Any, batch: Batch) -> list[Record]:
        """Return for each example whether the best label, and one of the best five, is right."""
        pixel_values, labels, rows = batch["pixel_values"], batch["labels"], batch["row"].tolist()
        if self.attack:
            processor = self.processor
            pixel_values = attack(self.attack, model, pixel_values, labels, processor.image_mean, processor.image_std)
        logits = model(pixel_values=pixel_values)["logits"].float()
        if self.classes is not None:
            masked = torch.full_like(logits, -torch.inf)
            masked[:, self.classes] = logits[:, self.classes]
            logits = masked
        best = logits.topk(max(self.depths)).indices.tolist()
        right = [{label} for label in labels.tolist()]
        if self.answers is not None:
            right = [set(self.answers[row]) for row in rows]
        return [
            {"row": row, "scores": {f"top{k}": float(not found.isdisjoint(order[:k])) for k in self.depths}}
            for row, order, found in zip(rows, best, right)
        ]


def find_suite_parts(task: ImageClassification, suite: str, source: SuiteSource) -> list[SuitePart]:
    """Return the parts of a suite; see [`Task.suite_parts`]."""
    if suite not in SUITES:
        raise ValueError(f"suite is {suite!r}; it must be one of {', '.join(SUITES)}.")
    if task.is_multi_label:
        raise ValueError("The suites are for models that give each image one label, not for multi-label problems.")
    if suite in LAYOUTS:
        return find_published_parts(task, suite, source)
    if source.split is None:
        raise ValueError(f"suite {suite} needs a split of the data set, as in `--split test`.")
    where = f"{task.args.dataset_name} [{source.split}]"
    if suite == "corruptions":
        import_ndimage()
        return [
            SuitePart(
                partial(build_own_part, task, source.split, name, severity),
                where,
                name,
                severity,
                f"CIFAR-10-C {corruption.cifar[severity - 1]} or ImageNet-C {corruption.imagenet[severity - 1]}",
            )
            for name, corruption in CORRUPTIONS.items()
            for severity in SEVERITIES
        ]
    if suite == "clean":
        return [SuitePart(partial(build_own_part, task, source.split), where)]
    check_captum()
    return [SuitePart(partial(build_own_part, task, source.split, attack=suite), where, constants=ATTACKS[suite])]


def build_own_part(
    task: ImageClassification, split: str, corruption: str | None = None, severity: int = 3, attack: str = ""
) -> tuple[SuiteTask, Any, int]:
    """Return the task and the data set of a part of the model's own data."""
    args = copy.copy(task.args)
    args.corruption, args.corruption_severity = corruption, severity
    own = SuiteTask(args, task.processor, task.config, attack)
    return own, own.dataset(take_samples(args, task.read(args, split), args.max_eval_samples), split), 0


def find_published_parts(task: ImageClassification, suite: str, source: SuiteSource) -> list[SuitePart]:
    layout, config = LAYOUTS[suite], task.config
    if source.folder is None:
        raise ValueError(
            f"suite {suite} is read from a folder: give `--suite-folder ROOT`, with {layout.layout} in it, as "
            f"published at {layout.source}."
        )
    root, order = Path(source.folder).expanduser(), read_wnids(source.wnids, config.num_labels)
    if suite == "imagenet-c":
        return [
            find_published_part(
                task, suite, root, find_corruption(root, name) / str(severity), order, None, name, severity
            )
            for name in CORRUPTIONS
            for severity in SEVERITIES
        ]
    answers = read_real_labels(root / suite / "real.json", config, order) if suite == "imagenet-real" else None
    folder = root / ("imagenet" if suite == "imagenet-real" else suite)
    return [find_published_part(task, suite, root, folder, order, answers)]


def find_published_part(
    task: ImageClassification,
    suite: str,
    root: Path,
    folder: Path,
    order: Sequence[str] | None,
    answers: Mapping[int, frozenset[int]] | None,
    corruption: str = "",
    severity: int | None = None,
) -> SuitePart:
    folder = find_class_folder(root, suite, folder)
    classes = match_folders(folder, suite, task.config, order)
    build = partial(build_published_part, task, suite, folder, classes, answers)
    constants = "as published" if corruption else ""
    return SuitePart(build, str(folder), corruption, severity, constants, ALEXNET_ERRORS.get(corruption))


def build_published_part(
    task: ImageClassification,
    suite: str,
    folder: Path,
    classes: Mapping[str, int],
    answers: Mapping[int, frozenset[int]] | None,
) -> tuple[SuiteTask, Any, int]:
    """Return the task and the data set of images in folders of classes, and how many images have no answer."""
    args = copy.copy(task.args)
    args.dataset_name, args.corruption = str(folder), None
    files = [
        (file, label)
        for name, label in classes.items()
        for file in sorted(list_files(folder / name))
        if Path(file).suffix.lower() in IMAGE_SUFFIXES
    ]
    found = {file: answers.get(find_number(file), frozenset()) for file, _ in files} if answers is not None else None
    kept = [(file, label) for file, label in files if found is None or found[file]]
    if not kept:
        raise FileNotFoundError(
            f"suite {suite}: {folder} holds no image to evaluate on ({', '.join(IMAGE_SUFFIXES)})."
        )
    columns = {args.image_column: [file for file, _ in kept], args.label_column: [label for _, label in kept]}
    features = {args.image_column: datasets.Image(decode=False), args.label_column: datasets.Value("int64")}
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    rows = take_samples(args, rows, args.max_eval_samples)
    right = None if found is None else [found[image["path"]] for image in rows[args.image_column]]
    own = SuiteTask(args, task.processor, task.config, classes=list(classes.values()), answers=right, suite=suite)
    return own, own.dataset(rows, suite), len(files) - len(kept)


def find_corruption(root: Path, name: str) -> Path:
    """Return the folder of a corruption of ImageNet-C, which can be in that of its group, such as `noise`."""
    groups = [root / "imagenet-c", *sorted((root / "imagenet-c").glob("*/"))]
    return next((group / name for group in groups if (group / name).is_dir()), root / "imagenet-c" / name)


def find_class_folder(root: Path, suite: str, folder: Path) -> Path:
    """Return the folder that holds those of the classes: `folder`, its `val`, or the only folder in it."""
    wanted, layout = folder, LAYOUTS[suite]
    while folder.is_dir():
        inside = sorted(path for path in folder.iterdir() if path.is_dir() and is_visible(path.name))
        names = [path.name for path in inside]
        if any(WNID.fullmatch(name) or name.isdecimal() for name in names):
            return folder
        if "val" not in names and len(inside) != 1:
            break
        folder = folder / "val" if "val" in names else inside[0]
    raise FileNotFoundError(
        f"suite {suite}: {wanted} has no folders of classes. Expected in {root}: {layout.layout}, as published at "
        f"{layout.source}."
    )


def read_wnids(file: str | None, number: int) -> list[str] | None:
    """Read the wnids of the model's labels, in their order: the first words of the lines of a text file."""
    if file is None:
        return None
    lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    wnids = [line.split()[0] for line in lines if line.strip()]
    if wrong := [wnid for wnid in wnids if not WNID.fullmatch(wnid)]:
        raise ValueError(f"wnids: {file} holds {wrong[0]!r}; each line must begin with a wnid, such as n01440764.")
    if len(set(wnids)) != number or len(wnids) != number:
        raise ValueError(
            f"wnids: {file} holds {len(set(wnids))} different wnids in {len(wnids)} lines, but the model has {number} "
            "labels. Give one line for each label, in their order."
        )
    return wnids


def match_folders(folder: Path, suite: str, config: Any, order: Sequence[str] | None) -> dict[str, int]:
    """Return the label of the model for the name of each folder of a class."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and is_visible(path.name))
    known = name_labels(config, order)
    if suite == "imagenet-v2" and not set(names) <= set(config.id2label.values()):
        labels = number_classes(known, suite)
        if len(names) != len(labels):
            raise ValueError(
                f"suite {suite}: {folder} has {len(names)} classes, but the model has {len(labels)}, so that the "
                "numbers of the folders do not tell the classes. Use all classes, or rename the folders to the "
                "labels of the model."
            )
        known = {str(number): label for number, label in enumerate(labels)}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"suite {suite}: the model does not know {len(unknown)} of the {len(names)} classes in {folder}, the "
            f"first is {unknown[0]}; it knows {', '.join(list(known)[:3])}, … {WNIDS_FIX} For a model of fewer "
            "classes, link their folders into one of their own."
        )
    return {name: known[name] for name in names}


def name_labels(config: Any, order: Sequence[str] | None) -> dict[str, int]:
    """Return the labels of the model by the wnids that were given, or else by their names."""
    if order is not None:
        return {wnid: index for index, wnid in enumerate(order)}
    return {label: index for index, label in config.id2label.items()}


def number_classes(known: Mapping[str, int], suite: str) -> list[int]:
    """Return the label of each of ImageNet's numbers 0 to 999, which are the places of the sorted wnids."""
    if unknown := [name for name in known if not WNID.fullmatch(name)]:
        raise ValueError(
            f"suite {suite} numbers ImageNet's classes in the order of their wnids, but a label of the model is "
            f"{unknown[0]!r}. {WNIDS_FIX}"
        )
    return [known[wnid] for wnid in sorted(known)]


def read_real_labels(file: Path, config: Any, order: Sequence[str] | None) -> dict[int, frozenset[int]]:
    """Return the right labels of each validation image of ImageNet, by its number from 1 on."""
    layout = LAYOUTS["imagenet-real"]
    if not file.is_file():
        raise FileNotFoundError(
            f"suite imagenet-real: there is no {file}. Expected: {layout.layout}, as published at {layout.source}."
        )
    lists = json.loads(file.read_text(encoding="utf-8"))
    labels = number_classes(name_labels(config, order), "imagenet-real")
    if (number := 1 + max(max(found, default=0) for found in lists)) != len(labels):
        raise ValueError(f"{file} has {number} classes, but the model has {len(labels)}; it needs all of them.")
    return {place: frozenset(labels[number] for number in found) for place, found in enumerate(lists, start=1)}


def find_number(file: str) -> int:
    match = VAL_IMAGE.search(Path(file).name)
    if match is None:
        raise ValueError(f"suite imagenet-real: {file} is not called ILSVRC2012_val_<number>, by which it has labels.")
    return int(match[1])
