# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""A saved model and the results files beside it."""

import json
import shlex
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers.pipelines import PIPELINE_REGISTRY

import hf_frozen_llm
from hf_frozen_llm.hub.weights import tensor_sizes
from hf_frozen_llm.metrics import Metric
from hf_frozen_llm.metrics.classification import MULTI_LABEL_METRICS, SINGLE_LABEL_METRICS
from hf_frozen_llm.tasks import Task, find_task
from hf_frozen_llm.training.results import (
    LLM_TENSORS,
    RESULTS_FILE,
    digest_weights,
    find_base_models,
    load_own_config,
    read_results,
    to_json,
)


# Entries of the metrics that are no metrics.
SPEEDS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


@dataclass
class Evaluation:
    """
    The metrics of a model on a split, with the file that holds them.

    Args:
        file (`str`): the name of the results file.
        dataset (`str`): the name of the data.
        dataset_id (`str`, *optional*): its id on the Hub, if it is there.
        config_name (`str`, *optional*): its configuration.
        revision (`str`, *optional*): its revision.
        split (`str`): the split.
        command (`str`): the command that computed the metrics.
        metrics (`dict[str, Any]`): the metrics, without their prefix.
        num_rows (`int`, *optional*): the rows of the split that were evaluated.
        seed (`int`, *optional*): the seed of the training.
        date (`str`, *optional*): when they were computed.
        changes (`dict[str, Any]`, *optional*): the keys that change the inputs, such as a corruption.
        classes (`list[dict[str, Any]]`, *optional*): the table of the classes.
    """

    file: str
    dataset: str
    dataset_id: str | None
    config_name: str | None
    revision: str | None
    split: str
    command: str
    metrics: dict[str, Any]
    num_rows: int | None = None
    seed: int | None = None
    date: str | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    classes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def changes_in_words(self) -> str:
        return "".join(f", {name} {value}" for name, value in self.changes.items())

    @property
    def place(self) -> str:
        """Return the split, how the inputs were changed, and the number of rows, in words."""
        rows = "" if self.num_rows is None else f", {self.num_rows:,} rows"
        return f"{self.split}{self.changes_in_words}{rows}"


@dataclass
class SavedModel:
    """
    A folder with a model of this package, see [`read_saved_model`].

    Args:
        folder (`Path`): the folder.
        config: the configuration of the model.
        architecture (`str`): the name of its class.
        results (`dict[str, Any]`, *optional*): the content of `results.json`.
        dataset_id (`str`, *optional*): the id on the Hub of the data, which a local copy may have replaced.
    """

    folder: Path
    config: Any
    architecture: str
    results: dict[str, Any] | None
    dataset_id: str | None = None
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def task(self) -> type[Task]:
        return find_task(self.config.model_type, self.architecture)

    @property
    def has_classes(self) -> bool:
        return self.architecture.endswith("Classification")

    @property
    def recipe(self) -> dict[str, Any]:
        return self.results["recipe"] if self.results else {}

    @cached_property
    def meta_model(self) -> Any:
        with torch.device("meta"):
            return getattr(hf_frozen_llm, self.architecture)(self.config)

    @cached_property
    def whole_sizes(self) -> dict[str, int]:
        """Return the bytes of each tensor by the configuration, with those that a light folder lacks."""
        return {name: tensor.nbytes for name, tensor in self.meta_model.state_dict().items()}

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Return the bytes of each saved tensor; by the configuration, if the folder has no weights."""
        if sizes := tensor_sizes(self.folder):
            return sizes
        block = self.config.llm_block
        is_light = block is not None and not block.save_weights
        return {name: size for name, size in self.whole_sizes.items() if not (is_light and LLM_TENSORS.search(name))}

    @cached_property
    def digest(self) -> str | None:
        return find_digest(self.folder)

    @property
    def input_kind(self) -> str:
        """Return `"picture"`, `"video"`, `"points"` or, of an image and a text, `"pair"`, by the model's inputs."""
        inputs = self.meta_model.dummy_inputs
        if "input_ids" in inputs:
            return "pair"
        pixels = inputs.get("pixel_values")
        return "points" if pixels is None else "picture" if pixels.ndim == 4 else "video"

    @property
    def pipeline_tag(self) -> str | None:
        """Return the pipeline of transformers that takes the model; `None` if there is none."""
        if self.has_classes:
            return self.task.name if self.task.name in PIPELINE_REGISTRY.get_supported_tasks() else None
        if self.architecture.endswith("QuestionAnswering"):
            return self.task.name
        return "image-feature-extraction" if self.input_kind == "picture" else None

    @property
    def base_models(self) -> dict[str, str | None]:
        known = (self.results or {}).get("base_models")
        return known or find_base_models(self.config, self.recipe.get("host", {}).get("name_or_path"))

    @property
    def main_metric(self) -> Metric:
        return self.task.find_main_metric({"problem_type": getattr(self.config, "problem_type", None)})

    def find_metric(self, name: str) -> Metric:
        """Return the description of a metric."""
        if name == self.main_metric.name:
            return self.main_metric
        if name == "top5":
            return Metric("top5", "top-5", is_share=True)
        several = getattr(self.config, "problem_type", None) == "multi_label_classification"
        known = MULTI_LABEL_METRICS if several else SINGLE_LABEL_METRICS
        return known.get(name) or Metric(name, name, greater_is_better=name != "loss")


def find_digest(folder: Path) -> str | None:
    """Return the digest of a folder's weights; of a folder without weights, the one in its results."""
    file = folder / RESULTS_FILE
    return digest_weights(folder) or (read_results(file).get("weights_digest") if file.is_file() else None)


def read_saved_model(
    folder: Path,
    name: str,
    dataset_id: str | None = None,
    results: dict[str, Any] | None = None,
    needs_weights: bool = True,
) -> SavedModel:
    """
    Read a saved model and its results files.

    Args:
        folder (`Path`): the folder.
        name (`str`): the name of the model in commands.
        dataset_id (`str`, *optional*): the id on the Hub of the training data, if the run read a local copy.
        results (`dict[str, Any]`, *optional*): the results so far, instead of the files.
        needs_weights (`bool`, *optional*, defaults to `True`): whether a folder without weights is an error.

    Raises:
        `OSError`: if there is no such folder.
        `ValueError`: if it is not a model of this package, or if a results file belongs to other weights.
    """
    config = load_own_config(str(folder))
    if needs_weights and not any(folder.glob("model*.safetensors")):
        raise ValueError(f"{folder} has a config.json, but no weights (model.safetensors).")
    file, so_far = folder / RESULTS_FILE, results
    if so_far is None and file.is_file():
        results = read_results(file)
    architecture = (config.architectures or [find_task(config.model_type).models[config.model_type].__name__])[0]
    model = SavedModel(folder, config, architecture, results, dataset_id)
    if results is not None:
        check_belongs(file, results, model)
        if evaluation := evaluation_of_training(results, dataset_id):
            model.evaluations.append(evaluation)
    for path in sorted(folder.glob("eval_results*.json")) if so_far is None else ():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            model.evaluations.append(evaluation_of_file(path, content, name, model))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} does not hold the results of an evaluation: delete or move it.") from error
        check_belongs(path, content, model)
    return model


def check_belongs(file: Path, content: dict[str, Any], model: SavedModel) -> None:
    """Refuse results of other weights; results without a digest only if they are of another configuration."""
    digest = content.get("weights_digest")
    is_other = digest is not None and digest != model.digest
    if digest is None and "config" in content:
        config = json.loads(to_json(model.config.to_dict()))
        names = ("model_type", "id2label", "hidden_size", "num_hidden_layers")
        is_other = any(content["config"].get(name, config.get(name)) != config.get(name) for name in names)
    if is_other:
        raise ValueError(
            f"{file} holds the results of other weights than those in {model.folder}. Evaluate this model again "
            f"(`hf-frozen-llm evaluate {model.folder}`), and delete or move {file.name}."
        )


def strip_prefix(metrics: dict[str, Any]) -> dict[str, Any]:
    names = {name: name.removeprefix("eval_") for name in metrics if name.startswith("eval_")}
    return {short: metrics[name] for name, short in names.items() if short not in SPEEDS}


def evaluation_of_training(results: dict[str, Any], dataset_id: str | None) -> Evaluation | None:
    """Return the evaluation at the end of a training."""
    recipe, training_set = results["recipe"], results.get("training_set", {})
    metrics = strip_prefix(results["metrics"])
    if not metrics:
        return None
    held_out = recipe.get("holdout")
    return Evaluation(
        file=RESULTS_FILE,
        dataset=Path(recipe["dataset_name"]).name,
        dataset_id=training_set.get("dataset_id") or dataset_id,
        config_name=recipe.get("dataset_config_name"),
        revision=recipe.get("dataset_revision"),
        split=f"{100 * held_out:g} % of {recipe['train_split']}, held out" if held_out else recipe["eval_split"],
        command="hf-frozen-llm train recipe.yaml",
        metrics=metrics,
        num_rows=results.get("num_eval_rows"),
        seed=results.get("seed"),
        date=results.get("date"),
        classes=results.get("classes", []),
    )


def evaluation_of_file(path: Path, content: dict[str, Any], name: str, model: SavedModel) -> Evaluation:
    """Return the evaluation that `hf-frozen-llm evaluate` wrote."""
    data = dict(content["dataset"])
    dataset, revision, split = data.pop("name"), data.pop("revision"), data.pop("split")
    dataset_id, trained_on = content.get("dataset_id"), model.recipe.get("dataset_name")
    flags = {} if dataset == trained_on else {"dataset_name": dataset_id or Path(dataset).name}
    flags |= {"split": split, **data}
    known = {**{key: value for key, value in content["settings"].items() if value is None}, **model.recipe}
    flags |= {key: value for key, value in content["settings"].items() if key not in data and known.get(key) != value}
    words = ["hf-frozen-llm", "evaluate", name]
    for key, value in flags.items():
        words += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    return Evaluation(
        file=path.name,
        dataset=Path(dataset).name,
        dataset_id=dataset_id or (model.dataset_id if dataset == trained_on else None),
        config_name=model.recipe.get("dataset_config_name") if dataset == trained_on else None,
        revision=revision,
        split=split,
        command=shlex.join(words),
        metrics=strip_prefix(content["metrics"]),
        num_rows=content.get("num_eval_rows"),
        seed=(model.results or {}).get("seed"),
        date=content.get("date"),
        changes=data,
        classes=content.get("classes", []),
    )
