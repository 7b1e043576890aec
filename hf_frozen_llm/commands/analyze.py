# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm analyze`: what the LLM blocks of image models look at, compared with masks of objects."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from hf_frozen_llm.analysis import MaskedImage, find_masked_images, mask_of_tokens, score_maps, tap_points
from hf_frozen_llm.analysis.figures import SCORES, TOKEN_SCORES, plot_overlays, plot_removal, plot_scores
from hf_frozen_llm.analysis.images import MEASURES, ImageAnalysis, analyze_images, find_grid
from hf_frozen_llm.commands.ablation_report import bootstrap_interval, format_row
from hf_frozen_llm.commands.plot import label_folders
from hf_frozen_llm.commands.report import count
from hf_frozen_llm.data.datasets import evenly_spaced
from hf_frozen_llm.plotting import new_figure
from hf_frozen_llm.tasks import find_task
from hf_frozen_llm.training.results import load_own_config, replacing, write_text


COLUMNS = ["model", "tap", "measure", "score", "value", "low", "high", "images"]
LAST_TAPS = ("block", "output_projection", "host")
NUM_DRAWN = 4


def analyze(
    models: Sequence[str | Path],
    data: str | Path,
    output: str | Path,
    at: Sequence[str] = (),
    batch_size: int = 32,
    max_images: int | None = None,
    num_curves: int = 32,
    device: str | None = None,
) -> pd.DataFrame:
    """
    Compare the activation maps of image models with masks of objects.

    Writes `analysis.csv`, `analysis.md` and, as PNG and SVG, `overlays_<measure>`, `scores`, `tokens` and, if there
    are curves, `curves`.

    Args:
        models (`Sequence[str | Path]`):
            Folders of saved models of one task. Models without a block have one tap point, `host`.
        data (`str` or `Path`):
            A folder of images and masks, see [`hf_frozen_llm.analysis.find_masked_images`].
        output (`str` or `Path`):
            A folder for the results.
        at (`Sequence[str]`, *optional*):
            Tap points, see [`hf_frozen_llm.analysis.tap_points`]; all by default.
        batch_size (`int`, *optional*, defaults to 32):
            Images in a forward.
        max_images (`int`, *optional*):
            Take only as many images, evenly spaced.
        num_curves (`int`, *optional*, defaults to 32):
            Images for deletion and insertion curves and for the coherence of gradients; 0 leaves these out.
        device (`str`, *optional*):
            `"cpu"` or a GPU such as `"cuda:0"`; by default a GPU if there is one.

    Returns:
        `pandas.DataFrame`: the table in `analysis.csv`: model, tap point, measure, score, mean value, its 95 %
        bootstrap interval over images (empty for scores of all images together), number of images.

    Raises:
        `ValueError`: for models of several tasks or of other inputs than images, a tap point that no model has, masks
            that do not fit the images, or data without any object.
    """
    found = load_models([Path(folder) for folder in models], at)
    images = find_masked_images(data)
    if max_images is not None and max_images < len(images):
        images = [images[i] for i in evenly_spaced(len(images), max_images)]
    folder = Path(output)
    if not folder.absolute().parent.is_dir():
        raise FileNotFoundError(f"output is {str(output)!r}, but there is no folder {folder.absolute().parent}.")
    new_figure(1, 1)  # fails without matplotlib
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    for model, _ in found.values():
        model.to(device)
    images, masks, skipped = take_usable(found, images, data)

    rows = describe_baselines(next(iter(masks.values())))
    analyses: dict[str, ImageAnalysis] = {}
    for name, (model, processor) in found.items():
        start = time.perf_counter()
        flat = masks[name].reshape(len(images), -1)
        analyses[name] = analyze_images(model, processor, images, flat, at or None, batch_size, num_curves)
        rows += describe_model(name, model, analyses[name])
        print(f"{name}: {count(len(images), 'image')} in {time.perf_counter() - start:.0f} s", flush=True)
    table = pd.DataFrame(rows, columns=COLUMNS)
    folder.mkdir(exist_ok=True)
    with replacing(folder / "analysis.csv") as temporary:
        table.to_csv(temporary, index=False)
    notes = f"{count(len(images), 'image')} of {data}{describe_skipped(skipped)}"
    write_text(folder / "analysis.md", write_tables(table, notes))
    draw(folder, found, images, masks, analyses, table, notes)
    return table


def load_models(folders: Sequence[Path], at: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """Load each model and its processor, by the name that tells it from the others; refuse what cannot be analysed."""
    if not folders:
        raise ValueError("There is no model to analyse: give one folder or more.")
    tasks: dict[Any, Path] = {}
    configs = {}
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: there is no such folder. Give folders of saved models.")
        configs[folder] = load_own_config(str(folder))
        task = find_task(configs[folder].model_type, (configs[folder].architectures or [None])[0])
        tasks.setdefault(task, folder)
    if len(tasks) > 1:
        of_tasks = ", ".join(f"{task.name} ({folder})" for task, folder in tasks.items())
        raise ValueError(f"The models are of several tasks: {of_tasks}. Analyse each task apart.")
    (task,) = tasks
    if any(
        getattr(task.models[config.model_type], "input_modalities", None) != ["image"] for config in configs.values()
    ):
        raise ValueError(
            f"{folders[0]} is a model for {task.name}; analyze takes models whose only inputs are images."
        )
    labels = label_folders(folders)
    found = {
        labels[folder]: (
            task.models[config.model_type].from_pretrained(str(folder)).eval(),
            task.load_processor(str(folder)),
        )
        for folder, config in configs.items()
    }
    known = list(dict.fromkeys(tap for model, _ in found.values() for tap in tap_points(model)))
    if unknown := [tap for tap in at if tap not in known]:
        has_block = any(model.llm_block is not None for model, _ in found.values())
        cause = "" if has_block else " Models without an LLM block have no others."
        raise ValueError(f"No model has the tap point {' or '.join(unknown)}; there are {', '.join(known)}.{cause}")
    return found


def take_usable(
    found: Mapping[str, tuple[Any, Any]], images: Sequence[MaskedImage], data: str | Path
) -> tuple[list[MaskedImage], dict[str, np.ndarray], dict[str, int]]:
    """
    Return the images that have an object and background for every model, the masks of each model's tokens, of shape
    `(images, rows, columns)`, and how many images are left out for each reason.
    """
    grids = {name: find_grid(model, processor, images[0]) for name, (model, processor) in found.items()}
    masks: dict[str, list[np.ndarray]] = {name: [] for name in found}
    for image in images:
        _, mask = image.read()
        for name, (_, processor) in found.items():
            masks[name].append(mask_of_tokens(mask, processor, grids[name]))
    stacked = {name: np.stack(of_model) for name, of_model in masks.items()}
    lacks = {
        reason: np.any([~(of_model == value).any((1, 2)) for of_model in stacked.values()], axis=0)
        for reason, value in (("object", 1), ("background", 0))
    }
    is_usable = ~(lacks["object"] | lacks["background"])
    if not is_usable.any():
        raise ValueError(
            f"{data}: no image has both an object and background at the size of the models' tokens; of "
            f"{count(len(images), 'image')}, {lacks['object'].sum():,} have no object that covers half of a token."
        )
    skipped = {reason: int(of_reason.sum()) for reason, of_reason in lacks.items() if of_reason.any()}
    usable = [image for image, is_kept in zip(images, is_usable) if is_kept]
    return usable, {name: of_model[is_usable] for name, of_model in stacked.items()}, skipped


def describe_skipped(skipped: Mapping[str, int]) -> str:
    return "".join(f"; {count(number, 'image')} without {reason} skipped" for reason, number in skipped.items())


def describe_baselines(masks: np.ndarray) -> list[tuple[Any, ...]]:
    """Score maps that have seen no image: random numbers, and the nearness to the centre."""
    rows, columns = masks.shape[1:]
    y, x = np.meshgrid(*(np.abs(np.linspace(-1, 1, size)) for size in (rows, columns)), indexing="ij")
    nearness = 1 - np.hypot(y, x) / max(np.hypot(y, x).max(), 1e-9)
    baselines = {
        "random map": np.random.default_rng(0).random((len(masks), rows * columns)),
        "map of the centre": np.tile(nearness.flatten(), (len(masks), 1)),
    }
    flat = masks.reshape(len(masks), -1)
    return [
        (name, "", "", score, *summarize(values))
        for name, maps in baselines.items()
        for score, values in score_maps(maps, flat).items()
    ]


def describe_model(name: str, model: Any, analysis: ImageAnalysis) -> list[tuple[Any, ...]]:
    """Return the rows of the table, in the order of the tap points."""
    order = tap_points(model)
    rows: list[tuple[Any, ...]] = [(name, *key, *summarize(values)) for key, values in analysis.values.items()]
    rows += [(name, *key, value, np.nan, np.nan, np.nan) for key, value in analysis.totals.items()]
    return sorted(rows, key=lambda row: order.index(row[1]))


def summarize(values: np.ndarray) -> tuple[float, float, float, int]:
    """Return the mean over images, its 95 % interval, and the number of images for which it is defined."""
    known = values[~np.isnan(values)].astype(float)
    if not len(known):
        return np.nan, np.nan, np.nan, 0
    return float(known.mean()), *bootstrap_interval(known), len(known)


def write_tables(table: pd.DataFrame, notes: str) -> str:
    """Return the tables of `analysis.md`."""
    curves = {"deletion": "deletion (lower is better)", "insertion": "insertion (higher is better)"}
    lines = ["# What the models look at", "", f"{notes}. Means over images with 95 % bootstrap intervals."]
    for measure in (*MEASURES, "attention"):
        of_measure = table[(table["measure"] == measure) | (table["tap"] == "")]
        if (of_measure["measure"] == measure).any():
            ratio = {"filtering_ratio_of_layer": "filtering ratio of the layer"}
            lines += ["", f"## {measure.capitalize()}", "", *list_scores(of_measure, {**SCORES, **ratio, **curves})]
    of_tokens = table[(table["measure"] == "") & (table["tap"] != "")]
    lines += ["", "## Tokens", "", *list_scores(of_tokens, TOKEN_SCORES)]
    return "\n".join(lines) + "\n"


def list_scores(table: pd.DataFrame, labels: Mapping[str, str]) -> list[str]:
    scores = [score for score in labels if (table["score"] == score).any()]
    names = ["model", "tap point", *(labels[score].replace("\n", " ") for score in scores)]
    lines = [format_row(names), f"|---|---|{'---:|' * len(scores)}"]
    for (model, tap), rows in table.groupby(["model", "tap"], sort=False):
        cells = dict(zip(rows["score"], rows.itertuples()))
        shown = [format_value(cells[score]) if score in cells else "" for score in scores]
        lines.append(format_row([str(model), str(tap).replace("_", " "), *shown]))
    return lines


def format_value(row: Any) -> str:
    if np.isnan(row.value):
        return "not defined"
    interval = "" if np.isnan(row.low) else f" ({row.low:.3g} to {row.high:.3g})"
    return f"{row.value:.3g}{interval}"


def draw(
    folder: Path,
    found: Mapping[str, tuple[Any, Any]],
    images: Sequence[MaskedImage],
    masks: Mapping[str, np.ndarray],
    analyses: Mapping[str, ImageAnalysis],
    table: pd.DataFrame,
    notes: str,
) -> None:
    """Write the figures, as PNG and SVG."""

    def files(name: str) -> list[Path]:
        return [folder / f"{name}.{suffix}" for suffix in ("png", "svg")]

    chosen = evenly_spaced(len(images), NUM_DRAWN)
    first, (_, processor) = next(iter(found.items()))
    pictures = [as_seen(images[i].read()[0], processor) for i in chosen]
    drawn_masks = [masks[first][i] for i in chosen]
    for measure in MEASURES:
        columns = {name: maps_of(analysis, measure, chosen) for name, analysis in analyses.items()}
        title = f"{measure.capitalize()} of the tokens, and attention"
        plot_overlays(files(f"overlays_{measure}"), pictures, drawn_masks, columns, title)
    plot_scores(files("scores"), table, SCORES, [*MEASURES, "attention"], notes)
    plot_scores(files("tokens"), table, TOKEN_SCORES, [""], notes)
    curves = {}
    for name, analysis in analyses.items():
        last = next((tap for tap in LAST_TAPS if (tap, "magnitude", "deletion") in analysis.curves), None)
        curves[name if last is None else f"{name}, {last.replace('_', ' ')}"] = {
            (measure, kind): curve
            for (tap, measure, kind), curve in analysis.curves.items()
            if tap == last or measure == "attention"
        }
    if any(curves.values()):
        plot_removal(files("curves"), curves, notes)


def maps_of(analysis: ImageAnalysis, measure: str, chosen: list[int]) -> dict[str, np.ndarray]:
    """Return the maps of some images, by the name of their column; the attention is the last one."""
    maps = {tap: of_tap[chosen] for (tap, of), of_tap in analysis.maps.items() if of == measure}
    attention = [of_tap[chosen] for (_, of), of_tap in analysis.maps.items() if of == "attention"]
    return {**maps, **({"attention scores": attention[0]} if attention else {})}


def as_seen(image: Image.Image, processor: Any) -> Image.Image:
    """Return an image as the processor resizes and crops it."""
    pixels = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    return Image.fromarray(pixels.transpose(1, 2, 0).astype(np.uint8))
