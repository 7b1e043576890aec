# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm analyze` for models of other inputs than images: activation maps on inputs, without masks."""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hf_frozen_llm.analysis.figures import OverlayRow, name_columns, plot_cells
from hf_frozen_llm.analysis.pictures import MEASURES, Picture, find_maps, find_picture
from hf_frozen_llm.commands.plot import label_folders
from hf_frozen_llm.data.datasets import evenly_spaced
from hf_frozen_llm.modeling.modeling_meter_with_llm_block import MeterWithLLMBlockForImageTextRetrieval
from hf_frozen_llm.plotting import new_figure
from hf_frozen_llm.tasks import find_task
from hf_frozen_llm.training.arguments import EvaluationArguments
from hf_frozen_llm.training.evaluate import read_evaluation_recipe
from hf_frozen_llm.training.results import load_own_config
from hf_frozen_llm.training.run import load_run, read_eval_rows


NUM_INPUTS = 4


def takes_only_images(folder: str | Path) -> bool:
    """Return whether the inputs of a saved model are images alone."""
    config = load_own_config(str(folder))
    task = find_task(config.model_type, (config.architectures or [None])[0])
    return getattr(task.models[config.model_type], "input_modalities", None) == ["image"]


def draw_activations(
    models: Sequence[str | Path],
    output: str | Path,
    data: str | None = None,
    split: str | None = None,
    at: Sequence[str] = (),
    max_inputs: int = NUM_INPUTS,
) -> None:
    """
    Write `overlays_<measure>`, as PNG and SVG: activation maps on a few inputs, evenly spaced in a split.

    Args:
        models (`Sequence[str | Path]`):
            Folders of saved models of one task, each with a block: of videos, point clouds, questions about images or
            about 3D scenes, or a VectorNet.
        output (`str` or `Path`):
            A folder for the figures.
        data (`str`, *optional*):
            The `dataset_name`; by default the data of the training.
        split (`str`, *optional*):
            By default the `eval_split` of the training.
        at (`Sequence[str]`, *optional*):
            Tap points; all by default.
        max_inputs (`int`, *optional*, defaults to 4):
            How many inputs.

    Raises:
        `ValueError`: for models without a block, of several tasks, or whose inputs cannot be drawn.
    """
    folders, parent = [Path(model) for model in models], Path(output).absolute().parent
    if not parent.is_dir():
        raise FileNotFoundError(f"output is {str(output)!r}, but there is no folder {parent}.")
    new_figure(1, 1)  # fails without matplotlib
    rows: dict[str, list[list[OverlayRow]]] = {measure: [] for measure in MEASURES}
    names = set()
    for folder, name in label_folders(folders).items():
        recipe = read_evaluation_recipe(str(folder), ["--split", split] if split else [], "analyze")
        recipe.values |= {"dataset_name": data} if data else {}  # all else is as in the training
        names.add(recipe.values["task"])
        if len(names) > 1:
            raise ValueError(f"The models are of several tasks: {', '.join(sorted(names))}. Analyse each task apart.")
        with tempfile.TemporaryDirectory() as temporary:
            run = load_run(str(folder), recipe, temporary)
            of_split = recipe.arguments(EvaluationArguments).split or run.settings.data_args.eval_split
            if of_split is None:
                raise ValueError("split is not set; say what to draw, as in `--split test`.")
            pictures = [draw_input(run, batch, at) for batch in read_batches(run, str(of_split), max_inputs)]
        for measure in MEASURES:
            of_model = [
                OverlayRow(
                    heading if not rows[measure] else None,
                    f"{name}\n{answer}",
                    {
                        **({"input": partial(picture.draw, None)} if not rows[measure] else {}),
                        **{column: partial(picture.draw, values) for column, values in maps[measure].items()},
                    },
                )
                for picture, maps, heading, answer in pictures
            ]
            rows[measure].append(of_model)
    picture = pictures[0][0]
    Path(output).mkdir(exist_ok=True)
    for measure, of_models in rows.items():
        # The models of an input below each other.
        ordered = [row for of_input in zip(*of_models) for row in of_input]
        columns = name_columns(of_model[0].cells for of_model in of_models)
        columns = ["input", *(column for column in columns if column not in ("input", "attention scores"))]
        columns += ["attention scores"] if any("attention scores" in row.cells for row in ordered) else []
        files = [Path(output, f"overlays_{measure}.{kind}") for kind in ("png", "svg")]
        title = f"{measure.capitalize()} of the tokens, and attention"
        plot_cells(files, ordered, columns, title, picture.cell, picture.projection)


def read_batches(run: Any, split: str, max_inputs: int) -> list[dict[str, Any]]:
    """Return batches of one example, evenly spaced in a split."""
    rows = read_eval_rows(run.settings.task, run.settings.data_args, split)
    dataset = run.task.dataset(rows, split)
    return [run.task.collate([dataset[place]]) for place in evenly_spaced(len(dataset), max_inputs)]


def draw_input(run: Any, batch: dict[str, Any], at: Sequence[str]) -> tuple[Picture, Any, str, str]:
    """Return the picture of an example, its maps, and its heading and the model's answer in words."""
    model = run.model.eval()
    if isinstance(model, MeterWithLLMBlockForImageTextRetrieval):
        raise ValueError("A search compares each image with all texts: there is no single input to draw.")
    seen: list[dict[str, Any]] = []
    handle = model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    with torch.no_grad():
        (record,) = run.task.predict(model, batch)
    handle.remove()
    inputs = {name: value for name, value in seen[0].items() if torch.is_tensor(value)}
    maps, outputs = find_maps(model, inputs, at)
    described = run.task.describe(record)
    found = described.get("predictions") or []
    answer = f"{found[0]['label']} ({found[0]['score']:.2f})" if found else ""
    heading = str(described.get("question") or f"row {record['row']}")
    return find_picture(model, run.task.processor, inputs, outputs), maps, heading, answer
