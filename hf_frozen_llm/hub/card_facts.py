# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The facts of a model card: the parts of the model, its training and its cost."""

import copy
from pathlib import Path
from typing import Any

import pandas as pd
import transformers
import yaml

from hf_frozen_llm.flops import count_flops
from hf_frozen_llm.hub.saved_model import SavedModel
from hf_frozen_llm.training.results import LLM_TENSORS, count_parameters, find_hub_id


MAX_ROWS = 30  # of the training table
MAX_LABELS = 40  # of the table of the training set
NUM_WORST = 5


def describe_state(model: SavedModel) -> dict[str, str]:
    """Return the state of each part of the model: frozen or trained."""
    recipe, block, was_trained = model.recipe, model.config.llm_block, model.results is not None
    host = model.base_models["host"]
    origin = (
        f", from {host}"
        if host
        else ", from scratch"
        if was_trained and not recipe["host"].get("name_or_path")
        else ""
    )
    trained = "trained" if was_trained else "trainable"
    parts = {f"host: {describe_host(model)}{origin}": "frozen" if recipe.get("freeze_host") else trained}
    if block is not None:
        parts["projections into and out of the block"] = trained
        if block.kind == "mlp":
            parts["MLP in place of the LLM layer"] = trained
        elif block.kind == "identity":
            parts["no LLM layer, only its norm"] = "frozen"
        elif block.kind == "llm":
            lora = ", with LoRA, which is merged into it" if recipe.get("lora") else ""
            parts[describe_layer(model)] = (trained if block.trainable else "frozen") + lora
    if model.has_classes:
        parts[f"classifier, {model.config.num_labels} labels"] = trained
    return parts


def describe_host(model: SavedModel) -> str:
    is_any_host = model.config.model_type == "vision_with_llm_block"
    host = model.config.vision_config if is_any_host else model.config
    name = host.model_type.removesuffix("_with_llm_block").replace("_", "-")
    sizes = {"layers": getattr(host, "num_hidden_layers", None), "width": getattr(host, "hidden_size", None)}
    facts = [
        f"{sizes['layers']} layers" if sizes["layers"] else "",
        f"width {sizes['width']}" if sizes["width"] else "",
    ]
    return f"{name} ({', '.join(filter(None, facts))})"


def name_llm(model: SavedModel) -> str:
    """Return the Hub id of the language model, or else its family and size."""
    llm = find_llm(model)
    if llm is not None:
        return llm
    config = model.config.llm_block.llm_config
    if config is None:
        return "a language model"
    text = config.get_text_config(decoder=True)
    return (
        f"a language model of the type {text.model_type} ({text.num_hidden_layers} layers, width {text.hidden_size})"
    )


def find_llm(model: SavedModel) -> str | None:
    """Return the Hub id of the language model, also if the model has none of its weights."""
    return model.base_models["llm"] or find_hub_id(model.config.llm_block.llm_name_or_path)


def list_layers(model: SavedModel) -> str:
    """Return the indices of the layers in the language model, counted from its start where its depth is known."""
    block = model.config.llm_block
    indices = block.layer_index if isinstance(block.layer_index, list) else [block.layer_index]
    if block.llm_config is not None:
        total = block.llm_config.get_text_config(decoder=True).num_hidden_layers
        indices = [index % total for index in indices]
    return ", ".join(map(str, indices))


def describe_layer(model: SavedModel) -> str:
    block = model.config.llm_block
    several = isinstance(block.layer_index, list) and len(block.layer_index) > 1
    layers = f"layer{'s' if several else ''} {list_layers(model)} of {name_llm(model)}"
    kinds = {"pretrained": "", "random": ", with random weights", "shuffled": ", with shuffled weights"}
    return layers + kinds[block.weights]


def describe_block(model: SavedModel, licence: str | None) -> dict[str, str]:
    """Return the settings of the LLM block; facts that are not known are left out."""
    block = model.config.llm_block
    if block is None:
        return {}
    facts: dict[str, Any] = {"kind": None if block.kind == "llm" else f"{block.kind}, a control without an LLM layer"}
    if block.kind == "llm":
        facts |= {
            "language model": find_llm(model),
            "revision": block.llm_revision,
            "licence of the language model": licence,
            "layer": list_layers(model),
            "weights": block.weights,
            "quantisation of the frozen layer": block.quantization,
            "included in this repository": "yes"
            if has_layer(model)
            else "no: loading reads it from the language model",
            "fingerprint (SHA-256)": block.fingerprint,
        }
    place = "after the last layer" if block.position == -1 else f"after {block.position} layers"
    facts["position"] = f"{place} of the host"
    if block.kind == "llm":
        facts |= {
            "attention": block.attention,
            "input scale": f"{block.input_scale:g}",
            "final norm": block.final_norm,
        }
    if block.residual != "none":
        facts["residual"] = block.residual
    return {name: str(value) for name, value in facts.items() if value is not None}


def has_layer(model: SavedModel) -> bool:
    return any(".llm_layers." in f".{name}" for name in model.sizes)


def describe_cost(model: SavedModel) -> dict[str, str]:
    """Return parameters, operations, bytes and speed."""
    results, block = model.results or {}, model.config.llm_block
    parameters = results.get("parameters") or count_parameters(model.meta_model)
    facts = {
        name: f"{parameters[key]:,}"
        for name, key in (("parameters", "total"), ("trained", "trainable"), ("frozen", "frozen"))
    }
    if model.has_classes:
        batch_size = model.recipe.get("per_device_train_batch_size", 64)
        lora = model.recipe.get("lora")
        forward, step = count_flops(model.config, batch_size, bool(model.recipe.get("freeze_host")), lora)
        facts["MFLOP for one input, forward"] = f"{forward / 1e6:,.2f}"
        facts[f"MFLOP for one input in a training step of {batch_size}"] = f"{step / 1e6:,.2f}"
    total = sum(model.sizes.values())
    facts["weights in this repository"] = format_megabytes(total)
    if has_layer(model) and block.weights != "random" and not block.trainable:
        layer = sum(size for name, size in model.sizes.items() if LLM_TENSORS.search(name))
        facts["weights without the LLM layer (a light folder)"] = format_megabytes(total - layer)
    elif block is not None and block.kind == "llm" and not block.save_weights:
        whole = sum(model.whole_sizes.values())
        facts["weights with the LLM layer (a self-contained folder)"] = format_megabytes(whole)
    metrics = results.get("metrics", {})
    if "train_samples_per_second" in metrics:
        device = (
            f"{results['num_processes']} x {results['device']}" if "num_processes" in results else results["device"]
        )
        facts["training time"] = f"{results['train_time_seconds']:,.0f} s on {device}"
        facts["training examples a second"] = f"{metrics['train_samples_per_second']:,.1f}"
    if (peak := results.get("peak_memory_bytes")) is not None:
        where = (
            "of the whole process (resident set)" if results["device"].startswith("cpu") else "allocated on one GPU"
        )
        facts["peak memory of the training"] = f"{format_megabytes(peak)}, {where}"
    if "eval_samples_per_second" in metrics:
        facts["evaluated examples a second"] = f"{metrics['eval_samples_per_second']:,.1f}"
    return facts


def format_megabytes(number: float) -> str:
    return f"{number / 1e6:,.2f} MB"


def list_training_rows(model: SavedModel) -> list[dict[str, Any]]:
    """Return a row for each evaluation of the training, or else for each log; one may be `saved`."""
    history = (model.results or {}).get("log_history", [])
    end = next((i for i, entry in enumerate(history) if "train_runtime" in entry), len(history))
    rows: list[dict[str, Any]] = []
    loss, by_evaluation = None, any("eval_loss" in entry for entry in history[:end])
    for entry in history[:end]:
        loss = entry.get("loss", loss)
        if ("eval_loss" if by_evaluation else "loss") in entry:
            metrics = {name: value for name, value in entry.items() if name.startswith("eval_")}
            rows.append({"step": entry["step"], "epoch": entry["epoch"], "loss": loss, "metrics": metrics})
    saved = (model.results or {}).get("saved_step")
    for row in rows:
        row["saved"] = row["step"] == saved
    kept = {round(i * (len(rows) - 1) / (MAX_ROWS - 1)) for i in range(MAX_ROWS)} if len(rows) > MAX_ROWS else None
    return [row for i, row in enumerate(rows) if kept is None or i in kept or row["saved"]]


def list_worst_classes(model: SavedModel) -> list[dict[str, Any]]:
    """Return the classes with the lowest F1, and the class that each is taken for most often."""
    evaluation = next((e for e in model.evaluations if e.classes), None)
    if evaluation is None:
        return []
    stem = "" if evaluation.file == "results.json" else f"{Path(evaluation.file).stem}_"
    file = model.folder / f"{stem}confusion_matrix.csv"
    confused: dict[str, str] = {}
    if file.is_file():
        table = pd.read_csv(file, index_col=0, dtype={0: str})
        table.index = table.index.map(str)
        if list(table.index) == list(table.columns):
            for label, counts in table.iterrows():
                others = counts.drop(label)
                if others.max() > 0:
                    confused[str(label)] = f"{others.idxmax()} ({others.max():,} of {counts.sum():,})"
    rows = sorted((row for row in evaluation.classes if row["f1"] is not None), key=lambda row: row["f1"])
    return [{**row, "confused": confused.get(row["label"], ""), "place": evaluation.place} for row in rows[:NUM_WORST]]


def list_training_labels(model: SavedModel) -> dict[str, int]:
    labels = (model.results or {}).get("training_set", {}).get("labels", {})
    return labels if len(labels) <= MAX_LABELS else {}


def write_recipe(model: SavedModel) -> str | None:
    """Return the settings of the training as a recipe, in which Hub ids replace the paths of this machine."""
    if model.results is None:
        return None
    recipe = copy.deepcopy(model.recipe)
    recipe["dataset_name"] = (
        model.results.get("training_set", {}).get("dataset_id")
        or model.dataset_id
        or Path(recipe["dataset_name"]).name
    )
    if recipe["host"].get("name_or_path"):
        recipe["host"]["name_or_path"] = model.base_models["host"] or Path(recipe["host"]["name_or_path"]).name
    if recipe["llm_block"]:
        name = recipe["llm_block"].get("llm_name_or_path")
        recipe["llm_block"]["llm_name_or_path"] = find_llm(model) or (Path(name).name if name else None)
    for key in ("output_dir", "resume", "resume_changes"):
        recipe.pop(key, None)
    kept = {key: value for key, value in recipe.items() if value not in (None, {}) or key == "llm_block"}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


def find_auto_class(model: SavedModel) -> str:
    """Return the name of the Auto class of transformers that loads the model."""
    head = model.architecture.partition("For")[2]
    if f"AutoModelFor{head}" in dir(transformers):
        return f"AutoModelFor{head}"
    return "AutoBackbone" if model.architecture.endswith("Backbone") else "AutoModel"
