# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm predict`: predict with a saved model on files, or on a split without labels."""

import glob
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hf_frozen_llm.data.datasets import Example, ExampleTransform, Row
from hf_frozen_llm.tasks import TASKS, Task
from hf_frozen_llm.tasks.task import Batch, Predict, Record
from hf_frozen_llm.training.arguments import EvaluationArguments
from hf_frozen_llm.training.evaluate import read_evaluation_recipe
from hf_frozen_llm.training.progress import progress_bars
from hf_frozen_llm.training.results import replacing, to_json, write_text
from hf_frozen_llm.training.run import load_run


# Keys of an evaluation that do not apply to a prediction. Rows keep their numbers, so none are drawn.
UNUSED_KEYS = {"eval_split", "max_eval_samples", "label_column", "class_names", "metrics"}
SPLIT_KEYS = {"dataset_name", "dataset_config_name", "dataset_revision", "split", "streaming"}
# Records in the picture of `plot`.
NUM_PLOTTED = 24
# Replaces `dataset_name` and the split in errors about files.
FILES = ("INPUT", "files")


@dataclass
class Predictions:
    """
    The predictions of a model.

    Args:
        records (`list[dict]`):
            One for each input that could be read, in their order: its `file`, or the number of its `row`, and the
            prediction: for a classifier `predictions`, a list of `label` and `score`, the best first; in a multi-label
            problem all those with a score of at least 0.5.
        failures (`dict[str, str]`):
            The reason why each other input could not be read, by file or row.
        num_shown (`int`, *optional*, defaults to 3):
            How many `predictions` of each input a table shows; `None` is all.
    """

    records: list[dict[str, Any]]
    failures: dict[str, str]
    num_shown: int | None = 3


def predict(
    model_name_or_path: str,
    inputs: str | Path | Sequence[str | Path] = (),
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    plot: str | Path | None = None,
    submission: str | Path | None = None,
) -> Predictions:
    """
    Predict with a saved model.

    Args:
        model_name_or_path (`str`):
            Folder or Hub id of the model.
        inputs (`str`, `Path` or a sequence of these, *optional*):
            Files, folders (searched with their sub-folders, without hidden files) and patterns such as `"*.jpg"`.
        overrides (`Sequence[str]`, *optional*):
            Flags as those of `evaluate`: instead of `inputs` a split (`["--dataset_name", "…", "--split", "test"]`),
            which needs no labels, and settings of the computation (`["--per_device_eval_batch_size", "64"]`).
        output (`str` or `Path`, *optional*):
            File for the records, a line of JSON for each; it is written as a whole at the end.
        plot (`str` or `Path`, *optional*):
            File for a picture of the first 24 images or scenes of traffic with their predictions, such as `.png` or
            `.svg`, or an animation of the first scene (`.gif`); it needs the extra `plot`.
        submission (`str` or `Path`, *optional*):
            File for a leaderboard, written only if all rows have a prediction: answers to questions about images as
            the server of VQA takes them (`.json`), or forecasts as those of Argoverse 1 (`.h5`, with the extra
            `motion`) and Argoverse 2 (`.parquet`) take them.

    Returns:
        [`Predictions`]: the records, and the inputs that could not be read.

    Raises:
        `ValueError`: if there are no inputs of the model's kind, or if a submission cannot be made of them.
        `OSError`: if an input, or the model, does not exist.

    Example:

    ```python
    >>> from hf_frozen_llm.commands.predict import predict

    >>> predict("runs/pictures", "photo.jpg").records[0]["predictions"][0]  # doctest: +SKIP
    {'label': 'cat', 'score': 0.93}
    ```"""
    inputs = [inputs] if isinstance(inputs, (str, Path)) else list(inputs)
    for option, path in (("output", output), ("plot", plot), ("submission", submission)):
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise FileNotFoundError(
                f"{option} is {str(path)!r}, but there is no folder {Path(path).absolute().parent}."
            )
    recipe = read_evaluation_recipe(model_name_or_path, overrides, "predict", UNUSED_KEYS)
    task_class, split = TASKS[recipe.values["task"]], recipe.arguments(EvaluationArguments).split
    files: list[str] = []
    failures: dict[str, str] = {}
    if inputs:
        if useless := {flag[2:].partition("=")[0].replace("-", "_") for flag in overrides} & SPLIT_KEYS:
            raise ValueError(
                f"Give files or a split, not both: remove the files, or --{', --'.join(sorted(useless))}."
            )
        files, failures = find_files(inputs, task_class, model_name_or_path)
        recipe.values |= {"dataset_name": FILES[0], "streaming": False}
        rows = task_class.read_files(recipe.arguments(task_class.arguments), files)
    elif split is None:
        raise ValueError(
            "There is nothing to predict on: give files, folders or patterns, or a split, as in `--dataset_name … "
            "--split test`."
        )
    else:
        rows = task_class.read(recipe.arguments(task_class.arguments), split, with_targets=False)
    if submission is not None:
        task_class.check_submission(rows, submission)
    if plot is not None:
        task_class.check_plot(rows)

    with tempfile.TemporaryDirectory() as output_dir, progress_bars(recipe.values.get("disable_tqdm")):
        run = load_run(model_name_or_path, recipe, output_dir)
        run.args.disable_tqdm = run.args.disable_tqdm or not sys.stderr.isatty()
        # accelerate would split the batches of a stream among processes, and it splits only tensors.
        accelerator_config: Any = run.args.accelerator_config
        accelerator_config.dispatch_batches = False
        dataset = run.task.dataset(rows, split or FILES[1])
        dataset.transform = ReadableRows(dataset.transform)
        trainer = run.trainer()
        trainer.data_collator = CollateReadable(run.task.collate)
        records = trainer.predict_records(dataset, lambda predict: partial(predict_readable, predict))

    found = Predictions([], failures, run.task.num_shown)
    location = f"{run.settings.data_args.dataset_name} [{split or FILES[1]}], row "
    for record in records:
        row = record["row"]
        name = {"file": files[row]} if files else {"row": row}
        if "error" in record:
            key = files[row] if files else f"row {row}"
            cause = record["error"].removeprefix(f"{location}{row}").removeprefix(f" ({key})").removeprefix(": ")
            found.failures[key] = cause.removeprefix(key).removeprefix(": ").strip()
        else:
            found.records.append({**name, **run.task.describe(record)})
    found.records = run.task.arrange(found.records)
    if output is not None and PartialState().is_main_process:
        write_text(output, "".join(to_json(record, ensure_ascii=False) + "\n" for record in found.records))
    if plot is not None and PartialState().is_main_process:
        shown = [record for record in found.records if record.get("predictions") != []][:NUM_PLOTTED]
        if not shown:
            raise ValueError("There is nothing to draw: no input has a prediction with a label.")
        names = [Path(record["file"]).name if files else f"row {record['row']}" for record in shown]
        numbers = [files.index(record["file"]) if files else record["row"] for record in shown]
        with replacing(plot) as temporary:
            run.task.plot(temporary, [rows[number] for number in numbers], shown, names)
    if submission is not None:
        if found.failures:
            failed, cause = next(iter(found.failures.items()))
            raise ValueError(
                f"No submission is written: {len(found.failures):,} of {len(rows):,} rows have no prediction, the "
                f"first is {failed}: {cause}"
            )
        if PartialState().is_main_process:
            with replacing(submission) as temporary:
                run.task.write_submission(temporary, rows, found.records)
    return found


def find_files(
    inputs: Sequence[str | Path], task: type[Task], model_name_or_path: str
) -> tuple[list[str], dict[str, str]]:
    """Return the files of `inputs` that the task accepts, and for each other file the reason why not."""
    if not task.suffixes:
        return [str(given) for given in inputs], {}
    files: dict[str, None] = {}
    others: dict[str, str] = {}
    takes = f"{model_name_or_path} is a model for {task.name}, which takes {', '.join(task.suffixes)}"
    for path in expand_patterns(inputs):
        if path.is_dir():
            inside = [file for file in sorted(path.rglob("*")) if is_visible_file(file, path)]
            fitting = [file for file in inside if file.suffix.lower() in task.suffixes]
            if not fitting:
                kinds = Counter(file.suffix.lower() or "files without a suffix" for file in inside)
                content = ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common(5))
                raise ValueError(f"{path}: the folder holds {content or 'no files'}; {takes}.")
            files |= dict.fromkeys(map(str, fitting))
        elif path.suffix.lower() in task.suffixes:
            files[str(path)] = None
        else:
            owners = [other.name for other in TASKS.values() if path.suffix.lower() in other.suffixes]
            kind = f"a {path.suffix} file" if path.suffix else "a file without a suffix"
            others[str(path)] = f"{kind}{f' ({owners[0]} takes these)' if owners else ''}"
    if not files:
        other, kind = next(iter(others.items()))
        number = f" ({len(others)} files of other kinds in all)" if len(others) > 1 else ""
        raise ValueError(f"{other} is {kind}{number}; {takes}.")
    return list(files), {path: f"{kind}; {takes}" for path, kind in others.items()}


def expand_patterns(inputs: Sequence[str | Path]) -> list[Path]:
    paths = []
    for given in inputs:
        path = Path(given).expanduser()
        found = [path] if path.exists() else [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        if not found:
            is_pattern = glob.escape(str(path)) != str(path)
            raise FileNotFoundError(f"{given}: there is no {'file of this pattern' if is_pattern else 'such file'}.")
        paths += found
    return paths


def is_visible_file(file: Path, folder: Path) -> bool:
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)


class ReadableRows:
    """
    Transform each row separately. An unreadable row becomes an example with its `error` instead of an exception, so
    that the other rows of its batch are used.
    """

    def __init__(self, transform: ExampleTransform):
        self.transform = transform

    def __call__(self, rows: Sequence[Row], keys: Sequence[tuple[int, ...]]) -> list[Example]:
        examples: list[Example] = []
        for row, key in zip(rows, keys):
            try:
                examples += self.transform([row], [key])
            except (OSError, ValueError) as error:
                examples.append({"error": str(error)})
        return examples


class CollateReadable:
    """Collate the readable examples to a batch; the others are its `failures`."""

    def __init__(self, collate: Callable[[list[Example]], Batch]):
        self.collate = collate

    def __call__(self, examples: list[Example]) -> Batch:
        readable = [example for example in examples if "error" not in example]
        failures = [example for example in examples if "error" in example]
        return {**(self.collate(readable) if readable else {}), "failures": failures}


def predict_readable(predict_batch: Predict, batch: Batch) -> list[Record]:
    readable = {name: values for name, values in batch.items() if name != "failures"}
    return [*(predict_batch(readable) if readable else []), *batch["failures"]]


def print_predictions(predictions: Predictions, output: str | Path | None = None) -> None:
    """Print a table of the predictions, or the path of their file; list unreadable inputs on stderr."""
    if not PartialState().is_main_process:
        return
    if output is None:
        print_table(predictions)
    else:
        print(f"{len(predictions.records)} predictions are in {output}.")
    for name, cause in predictions.failures.items():
        print(f"{name}: {cause}", file=sys.stderr)
    if predictions.failures:
        total = len(predictions.records) + len(predictions.failures)
        print(f"{len(predictions.failures)} of {total} inputs could not be predicted.", file=sys.stderr)


def shorten(value: Any) -> str:
    """Return nested lists by their sizes, such as `6 × 30 × 2`, and other values as they are."""
    sizes = []
    while isinstance(value, list) and value and isinstance(value[0], list):
        sizes.append(len(value))
        value = value[0]
    if sizes:
        return " × ".join(map(str, [*sizes, len(value)]))
    return " ".join(f"{each:.3g}" for each in value) if is_numbers(value) else str(value)


def is_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, float) for each in value)


def print_table(predictions: Predictions) -> None:
    lines = []
    for record in predictions.records:
        name = record["file"] if "file" in record else f"row {record['row']}"
        words = {key: value for key, value in record.items() if key not in ("file", "row")}
        cells = [name]
        answers = words.pop("predictions", None)
        for best in (answers or [])[: predictions.num_shown]:
            cells += [str(best["label"]), f"{100 * best['score']:.1f} %"]
        cells += ["no label"] if answers == [] else []
        lines.append([*cells, *(f"{key} {shorten(value)}" for key, value in words.items())])
    widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(max(map(len, lines), default=0))]
    for line in lines:
        padded = [f"{cell:>{w}}" if cell.endswith(" %") else f"{cell:<{w}}" for cell, w in zip(line, widths)]
        print("  ".join(padded).rstrip())
