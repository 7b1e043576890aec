# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The metadata of a model card, and the evaluation results in the form of `.eval_results/`."""

import math
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from hf_frozen_llm.hub.saved_model import Evaluation, SavedModel


LIBRARY = "hf_frozen_llm"
# The Hub's names of metrics, where they are others than ours.
METRIC_IDS = {"top1": "accuracy", "auc": "roc_auc"}


class FrozenLLMModelCardData(ModelCardData):
    """
    The metadata of the card of a model of this package.

    Args:
        llm_license (`str`, *optional*):
            Licence of the language model, whose layer the model has or reads.
        base_model_relation (`str`, *optional*):
            `"merge"` of a model with a layer of a language model, `"finetune"` of one that has only a published host.
        widget (`list[dict]`, *optional*):
            Examples of inputs on the model's page.
        kwargs:
            The fields of `huggingface_hub.ModelCardData`. Facts that are not known are left out.
    """

    def __init__(
        self,
        *,
        llm_license: str | None = None,
        base_model_relation: str | None = None,
        widget: list[dict[str, str]] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.llm_license = llm_license
        self.base_model_relation = base_model_relation
        self.widget = widget


def build_card_data(
    model: SavedModel, name: str, license: str | None, llm_license: str | None, widget: list[dict[str, str]]
) -> FrozenLLMModelCardData:
    """Return the metadata of a saved model; `name` is that of the model."""
    host, llm = (model.base_models[key] for key in ("host", "llm"))
    training_set = (model.results or {}).get("training_set", {})
    dataset_id = training_set.get("dataset_id") or model.dataset_id
    results = [
        result
        for evaluation in model.evaluations
        if evaluation.dataset_id
        for result in list_results(model, evaluation)
    ]
    metrics = [METRIC_IDS.get(metric, metric) for evaluation in model.evaluations for metric in evaluation.metrics]
    block = model.config.llm_block
    return FrozenLLMModelCardData(
        library_name=LIBRARY,
        pipeline_tag=model.pipeline_tag,
        license=license,
        llm_license=llm_license,
        base_model=[origin for origin in (host, llm) if origin] or None,
        base_model_relation=None if not (host or llm) else "merge" if llm else "finetune",
        datasets=[dataset_id] if dataset_id else None,
        metrics=[metric for metric in dict.fromkeys(metrics) if metric not in ("loss", "top5")] or None,
        tags=[
            LIBRARY,
            *(["vision", model.task.name] if model.has_classes else ["vision"]),
            *([] if block is None else ["llm-block" if block.kind == "llm" else f"llm-block-control-{block.kind}"]),
        ],
        widget=widget or None,
        model_name=name if results else None,
        eval_results=results or None,
    )


def list_results(model: SavedModel, evaluation: Evaluation) -> list[EvalResult]:
    """Return an evaluation as entries of the `model-index`."""
    return [
        EvalResult(
            task_type=model.task.name,
            dataset_type=str(evaluation.dataset_id),
            dataset_name=str(evaluation.dataset_id),
            dataset_config=evaluation.config_name,
            dataset_split=evaluation.split,
            dataset_revision=evaluation.revision,
            metric_type=METRIC_IDS.get(metric, metric),
            metric_name=model.find_metric(metric).title + evaluation.changes_in_words,
            metric_args=evaluation.changes or None,
            metric_value=value,
        )
        for metric, value in evaluation.metrics.items()
        if is_number(value)
    ]


def list_entries(model: SavedModel, evaluation: Evaluation, repo_id: str | None) -> list[dict[str, Any]]:
    """Return an evaluation of data on the Hub as the content of a file of `.eval_results/`."""
    notes = [evaluation.place, *([] if evaluation.seed is None else [f"one training, seed {evaluation.seed}"])]
    url = f"https://huggingface.co/{repo_id}/blob/main/{evaluation.file}"
    entries = []
    for name, value in evaluation.metrics.items():
        if name == "loss" or not is_number(value):
            continue
        entry = {
            "dataset": {"id": evaluation.dataset_id, "task_id": METRIC_IDS.get(name, name)},
            "value": value,
            "date": evaluation.date,
            "source": None if repo_id is None else {"url": url, "name": evaluation.file},
            "notes": ", ".join([model.find_metric(name).title, *notes, evaluation.command]),
        }
        if evaluation.revision is not None:
            entry["dataset"]["revision"] = evaluation.revision
        entries.append({key: content for key, content in entry.items() if content is not None})
    return entries


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
