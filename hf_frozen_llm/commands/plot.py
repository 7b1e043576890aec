# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm plot`: the curves of several runs in one figure."""

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from hf_frozen_llm.commands.report import name_some
from hf_frozen_llm.plotting import check_figure, plot_curves
from hf_frozen_llm.tasks import TASKS
from hf_frozen_llm.training.results import RESULTS_FILE, read_results, replacing
from hf_frozen_llm.training.trainer import RECIPE_FILE


ABLATION_FILE = "ablation.csv"
HAS_NO_CURVE = ("step", "epoch")  # of the entries of a history, beside the curves


def plot(
    runs: Sequence[str | Path],
    output: str | Path = "curves.png",
    metrics: Sequence[str] = (),
    by: str = "step",
) -> Path:
    """
    Plot the curves of runs of one task: a panel for each metric, and a colour for each run, or for each variant of an
    `ablate`, whose seeds are thin lines.

    Args:
        runs (`Sequence[str | Path]`):
            Folders of `train`, also of a run that is not finished but has a checkpoint, and folders of `ablate`.
        output (`str` or `Path`, *optional*, defaults to `"curves.png"`):
            The file to write, in the format of its suffix, such as `.svg`.
        metrics (`Sequence[str]`, *optional*):
            What to plot, by the names in `log_history` of the results, such as `loss`, `eval_top1`, `update_ratio`. By
            default the training loss, the loss of the evaluations and the main metric of the task.
        by (`str`, *optional*, defaults to `"step"`):
            The horizontal axis, `"step"` or `"epoch"`.

    Returns:
        `Path`: the file.

    Raises:
        `FileNotFoundError`: for a folder that is not there, or has no results and no checkpoint.
        `ValueError`: for runs of different tasks, or a metric that none of them has.
    """
    if by not in ("step", "epoch"):
        raise ValueError(f"by is {by!r}; it must be 'step' or 'epoch'.")
    if not runs:
        raise ValueError("There is no run to plot: give one folder or more.")
    path = check_figure("output", output)
    found = [(Path(run), find_runs(Path(run))) for run in runs]
    labels = label_folders([folder for _, folders in found for folder in folders])
    curves: dict[str, list[list[dict[str, Any]]]] = defaultdict(list)
    tasks: dict[str, Path] = {}
    for given, folders in found:
        for folder in folders:
            task, history = read_history(folder)
            tasks.setdefault(task, folder)
            # A variant of `ablate` has a folder for each seed.
            curves[labels[folder] if folder == given else labels[folder].rpartition("/")[0]].append(history)
    if len(tasks) > 1:
        runs_of_tasks = ", ".join(f"{task} ({folder})" for task, folder in tasks.items())
        raise ValueError(f"The runs are of several tasks: {runs_of_tasks}. Plot each task apart.")
    (task,) = tasks
    metric = TASKS[task].main_metric
    main = f"eval_{metric.name}"
    there = {name for histories in curves.values() for history in histories for entry in history for name in entry}
    there.difference_update(HAS_NO_CURVE)
    if unknown := [name for name in metrics if name not in there]:
        raise ValueError(f"No run has {' or '.join(unknown)}; there are {name_some(sorted(there), 40)}.")
    panels = {
        name: {"loss": "training loss", "eval_loss": "loss of the evaluations", main: metric.label}.get(name, name)
        for name in metrics or [name for name in ("loss", "eval_loss", main) if name in there]
    }
    with replacing(path) as temporary:
        plot_curves(temporary, curves, panels, {main: metric.scale}, by, path.suffix[1:])
    return path


def find_runs(folder: Path) -> list[Path]:
    """Return the folders of the runs: this one, or those of an `ablate`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder. Give the output_dir of `train` or of `ablate`.")
    if not (folder / ABLATION_FILE).is_file():
        return [folder]
    runs = sorted(file.parent for file in folder.glob(f"runs/*/*/{RESULTS_FILE}"))
    if not runs:
        raise FileNotFoundError(f"{folder} has {ABLATION_FILE}, but no finished run in {folder / 'runs'}.")
    return runs


def read_history(folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """Return the task of a run and its history, from its results or from its last checkpoint."""
    if (folder / RESULTS_FILE).is_file():
        results = read_results(folder / RESULTS_FILE)
        return results["recipe"]["task"], results["log_history"]
    checkpoint = get_last_checkpoint(str(folder))
    if checkpoint is None:
        raise FileNotFoundError(
            f"{folder} has neither {RESULTS_FILE}, which `train` writes at its end, nor a checkpoint."
        )
    files = [Path(checkpoint, name) for name in (RECIPE_FILE, TRAINER_STATE_NAME)]
    try:
        recipe, state = (json.loads(file.read_text(encoding="utf-8")) for file in files)
        return recipe["task"], state["log_history"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{checkpoint} is no complete checkpoint of a run of this package: {error}") from error


def label_folders(folders: Sequence[Path]) -> dict[Path, str]:
    """Name each folder by the last parts of its path that tell it from the others; a folder of a seed keeps two."""
    if len(set(folders)) < len(folders):
        raise ValueError(f"{name_some(sorted({str(f) for f in folders if list(folders).count(f) > 1}))}: given twice.")
    common = os.path.commonpath([folder.absolute().parent for folder in folders])
    return {folder: folder.absolute().relative_to(common).as_posix().removeprefix("runs/") for folder in folders}
