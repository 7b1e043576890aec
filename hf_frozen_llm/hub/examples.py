# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Examples of the data a model was evaluated on: a figure for its card, and pictures for the widget of its page."""

import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hf_frozen_llm.hub.saved_model import SavedModel
from hf_frozen_llm.plotting import new_figure
from hf_frozen_llm.training.evaluate import read_evaluation_recipe


EXAMPLES_FILE = "examples.png"
EXAMPLES_FOLDER = "examples"
MAX_LABELS = 16
ROWS_PER_LABEL = 50  # that are read to find an example of each label
WIDGETS = 3


def draw_examples(model: SavedModel) -> None:
    """
    Draw an example of each label, as the model sees it, from the evaluation data of its training.

    Raises:
        `ValueError`: for a model without classes or without results, or for streamed data.
    """
    if not model.has_classes or model.results is None or model.recipe.get("streaming"):
        raise ValueError(
            f"{model.folder}: examples need a classifier with a results.json, whose data was not streamed."
        )
    args = read_evaluation_recipe(str(model.folder), []).arguments(model.task.arguments)
    split = args.eval_split or model.recipe["train_split"]
    task: Any = model.task(args, model.task.load_processor(str(model.folder)), model.config)
    dataset = task.dataset(model.task.read(args, split).shuffle(seed=0), split)
    found: dict[int, Any] = {}
    for index in range(min(len(dataset), ROWS_PER_LABEL * model.config.num_labels)):
        example = dataset[index]
        for label in np.atleast_1d(example["labels"]).tolist():
            found.setdefault(label, example)
        if len(found) >= min(MAX_LABELS, model.config.num_labels):
            break
    labels = sorted(found)[:MAX_LABELS]
    inputs = task.views(task.collate([found[label] for label in labels]))[0]
    columns = min(4, len(labels))
    lines = math.ceil(len(labels) / columns)
    figure = new_figure(2.4 * columns, 2.6 * lines)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    shutil.rmtree(model.folder / EXAMPLES_FOLDER, ignore_errors=True)
    for axis in axes:
        axis.set_axis_off()
    for index, (axis, label) in enumerate(zip(axes, labels)):
        task.draw(axis, inputs, index)
        axis.set_title(model.config.id2label[label], fontsize=9)
        if index < WIDGETS and model.input_kind == "picture":
            pixels = (255 * np.asarray(axis.images[0].get_array())).round().astype(np.uint8)
            (model.folder / EXAMPLES_FOLDER).mkdir(exist_ok=True)
            name = re.sub(r"[^\w-]", "_", model.config.id2label[label], flags=re.ASCII)
            Image.fromarray(pixels).save(model.folder / EXAMPLES_FOLDER / f"{label}_{name}.png")
    figure.tight_layout()
    figure.savefig(model.folder / EXAMPLES_FILE, dpi=100)


def list_widgets(model: SavedModel, repo_id: str | None) -> list[dict[str, str]]:
    """Return the examples of the widget; only a repository gives their pictures an address."""
    if repo_id is None:
        return []
    widgets = []
    for path in sorted(Path(model.folder, EXAMPLES_FOLDER).glob("*.png")):
        title = model.config.id2label[int(path.stem.partition("_")[0])]
        url = f"https://huggingface.co/{repo_id}/resolve/main/{EXAMPLES_FOLDER}/{path.name}"
        widgets.append({"src": url, "example_title": title})
    return widgets
