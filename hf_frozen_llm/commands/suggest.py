# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm suggest`: which LLM layer, and which input scale, to try first behind a trained host."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch

from hf_frozen_llm import LLMBlock, LLMBlockConfig, VisionWithLLMBlockConfig, VisionWithLLMBlockModel
from hf_frozen_llm.analysis import linear_cka, token_activations, token_layout, update_ratio
from hf_frozen_llm.analysis.images import CKA_TOKENS
from hf_frozen_llm.analysis.suggestion import choose_candidate, linear_probe, name_scale, recovery_rate
from hf_frozen_llm.commands.layer import find_stored_layers
from hf_frozen_llm.commands.report import count
from hf_frozen_llm.data.datasets import evenly_spaced
from hf_frozen_llm.modeling.configuration_llm_block import WithLLMBlockConfigMixin
from hf_frozen_llm.modeling.llm_checkpoint import LLMCheckpoint, load_llm_config
from hf_frozen_llm.modeling.llm_layer import build_llm_layers
from hf_frozen_llm.tasks import find_task
from hf_frozen_llm.training.results import load_saved_config, refuse_missing_folder, replacing, to_json, write_text


COLUMNS = ["layer", "input_scale", "factor", "probe", "cka_to_host", "update_ratio", "suggested"]
NUM_LAYERS = 5


def suggest(
    host: str,
    llm: str,
    data: str,
    layers: Sequence[int] = (),
    input_scales: Sequence[float | str] = (1.0, "balanced"),
    split: str = "train",
    image_column: str = "image",
    label_column: str = "label",
    max_images: int = 512,
    batch_size: int = 32,
    seed: int = 0,
    output: str | Path | None = None,
    sweep: str | Path | None = None,
    device: str | None = None,
) -> pd.DataFrame:
    """
    Compare layers of a language model, and input scales, for a trained host, without training. The host's tokens of
    some images, projected at random as an untrained block does, go through each layer and the block's norm. A linear
    probe on the token that the head reads, or on the mean of all, says what the block's linear output projection and a
    classifier could read from them.

    The tokens of all images are kept in memory in float32, and one layer at a time, which is read once.

    Args:
        host (`str`):
            Folder or Hub id of an image classifier of this package without a block, or of a vision encoder that
            `VisionWithLLMBlockModel.from_host_pretrained` takes.
        llm (`str`):
            The language model, as `llm_block.llm_name_or_path`.
        data (`str`):
            Images with labels, as `dataset_name` in recipes.
        layers (`Sequence[int]`, *optional*):
            Layers, negative from the end; by default five from the first to the last that are there.
        input_scales (`Sequence[float | str]`, *optional*, defaults to `(1.0, "balanced")`):
            As `llm_block.input_scale`.
        split (`str`, *optional*, defaults to `"train"`):
            The split; do not choose by the one that reports results.
        image_column (`str`, *optional*, defaults to `"image"`):
            Column of the images.
        label_column (`str`, *optional*, defaults to `"label"`):
            Column of the labels.
        max_images (`int`, *optional*, defaults to 512):
            Take a random choice of as many images.
        batch_size (`int`, *optional*, defaults to 32):
            Images in a forward.
        seed (`int`, *optional*, defaults to 0):
            Of the choice of images, and of the projection.
        output (`str` or `Path`, *optional*):
            A `.csv` or `.json` file for the table.
        sweep (`str` or `Path`, *optional*):
            `ablation.csv` of a sweep over the same layers, to compare the suggestion with.
        device (`str`, *optional*):
            `"cpu"` or a GPU such as `"cuda:0"`; by default a GPU if there is one.

    Returns:
        `pandas.DataFrame`: a row for each layer and input scale: `layer`; `input_scale` and its number, `factor`;
        `probe`, the share of left-out images that are right; `cka_to_host`; `update_ratio`; whether it is `suggested`.
        The first row, without a layer, is the host itself.

    Raises:
        `ValueError`: for a host of another task or with a block, layers that are not there, or data with one class.
    """
    if output is not None and Path(output).suffix not in (".csv", ".json"):
        raise ValueError(f"output is {str(output)!r}; give a .csv or a .json file.")
    if output is not None and not Path(output).absolute().parent.is_dir():
        raise FileNotFoundError(f"output is {str(output)!r}, but there is no folder {Path(output).parent}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    results = None if sweep is None else pd.read_csv(sweep)
    chosen, num_layers = find_layers(llm, layers)
    tokens, layout, labels = read_tokens(
        host, data, split, (image_column, label_column), max_images, batch_size, seed, device
    )
    sample = layout.take(tokens).flatten(0, 1)[:: find_stride(len(tokens), layout)]
    is_correct = [linear_probe(pool(tokens, layout).double().numpy(), labels)]
    rows: list[dict[str, Any]] = [{"probe": is_correct[0].mean(), "cka_to_host": 1.0}]
    for layer in chosen:
        block = build_block(llm, layer, tokens.shape[-1], seed, device)
        for scale in input_scales:
            block.config.input_scale = cast(Any, scale)
            try:
                block.complete_from_weights()  # finds the number of a balanced scale
            except ValueError as error:
                print(f"layer {layer}, input scale {scale}, is left out: {error}", flush=True)
                continue
            found = run_block(block, tokens, layout, batch_size)
            is_correct.append(linear_probe(found["features"].double().numpy(), labels))
            rows.append(
                {
                    "layer": layer,
                    "input_scale": name_scale(scale),
                    "factor": block.config.input_scale,
                    "probe": is_correct[-1].mean(),
                    "cka_to_host": linear_cka(sample, found["sample"]),
                    "update_ratio": found["ratios"].mean().item(),
                }
            )
            print(describe_row(rows[-1]), flush=True)
    if len(rows) == 1:
        raise ValueError("There is no candidate left; give other layers, or a number as input scale.")
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"layer": "Int64"})
    best = 1 + choose_candidate(np.stack(is_correct[1:]), table["cka_to_host"].to_numpy()[1:])
    table["suggested"] = table.index == best
    print(describe_row(rows[0]))
    flags = f"--llm_block.layer_index {rows[best]['layer']} --llm_block.input_scale {rows[best]['input_scale']}"
    print(f"Suggested by {count(len(labels), 'image')}: {flags}")
    if output is not None:
        write_table(table, Path(output))
    if results is not None:
        print_recovery(results, rows[best], num_layers)
    return table


def find_layers(llm: str, layers: Sequence[int]) -> tuple[list[int], int]:
    """Return the layers to compare, from 0, and the number of the language model's layers."""
    config, commit = load_llm_config(llm, None, {})
    built = build_llm_layers(config, -1, torch.float32)
    number = built.config.num_hidden_layers
    if wrong := [layer for layer in layers if not -number <= layer < number]:
        raise ValueError(f"{llm} has no layer {wrong[0]}; it has {number} layers, 0 to {number - 1}.")
    if layers:
        return list(dict.fromkeys(layer % number for layer in layers)), number
    with LLMCheckpoint(llm, commit) as checkpoint:
        stored = find_stored_layers(checkpoint, built)
    return [stored[place] for place in evenly_spaced(len(stored), NUM_LAYERS)], number


def read_tokens(
    host: str,
    data: str,
    split: str,
    columns: tuple[str, str],
    max_images: int,
    batch_size: int,
    seed: int,
    device: str,
) -> tuple[torch.Tensor, Any, np.ndarray]:
    """Return the host's tokens of some images, where they come from, and the labels of the images."""
    refuse_missing_folder(host)
    config = load_saved_config(host)
    is_own = isinstance(config, WithLLMBlockConfigMixin)
    kind = config.model_type if is_own else VisionWithLLMBlockConfig.model_type
    task_class = find_task(kind, (config.architectures or [None])[0])
    model_class: Any = task_class.models[kind]
    if getattr(model_class, "input_modalities", None) != ["image"]:
        raise ValueError(f"{host} is a model for {task_class.name}; suggest takes hosts whose only inputs are images.")
    if is_own and cast(Any, config).llm_block is not None:
        raise ValueError(f"{host} has an LLM block; give a host that was trained without one.")
    keys: dict[str, Any] = {"image_column": columns[0], "label_column": columns[1], "train_split": split}
    args = task_class.arguments(dataset_name=data, **keys)
    if is_own:
        model, processor = model_class.from_pretrained(host), task_class.load_processor(host)
    else:
        model = VisionWithLLMBlockModel.from_host_pretrained(host)
        processor = task_class.build_processor(args, {"name_or_path": host}, model.config)
    rows = task_class.read(args, split)
    rows = rows.shuffle(seed=seed).select(range(min(max_images, len(rows))))
    labelled = copy.deepcopy(model.config)  # the data may have other classes than the host
    for name, value in task_class.config_fields(args, rows).items():
        setattr(labelled, name, value)
    task = task_class(args, processor, labelled)
    model = model.to(device)
    tokens, labels = [], []
    loader = torch.utils.data.DataLoader(task.dataset(rows, split), batch_size, collate_fn=task.collate)
    for batch in loader:
        inputs = {"pixel_values": batch["pixel_values"].to(model.device, model.dtype)}
        tokens.append(token_activations(model, inputs, at=["host"]).states["host"].float().cpu())
        labels.append(batch["labels"].numpy())
    return torch.cat(tokens), token_layout(model, inputs, tokens[0].shape[1]), np.concatenate(labels)


def build_block(llm: str, layer: int, hidden_size: int, seed: int, device: str) -> LLMBlock:
    """Return a block with the same random projection for every layer."""
    config = LLMBlockConfig(llm_name_or_path=llm, layer_index=layer, hidden_size=hidden_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        block = LLMBlock(config)
    return block.eval().to(device)


def run_block(block: LLMBlock, tokens: torch.Tensor, layout: Any, batch_size: int) -> dict[str, torch.Tensor]:
    """Return features of the images, tokens for the CKA, and update ratios; all but those are dropped at once."""
    parts: dict[str, list[torch.Tensor]] = {"features": [], "sample": [], "ratios": []}
    stride, per_image = find_stride(len(tokens), layout), torch.Size(layout.shape).numel()
    for start in range(0, len(tokens), batch_size):
        inputs = {"hidden_states": tokens[start : start + batch_size].to(block.device)}
        states = token_activations(block, inputs, at=["input_projection", "feed_forward", "final_norm"]).states
        outputs = states["final_norm"].float().cpu()
        parts["features"].append(pool(outputs, layout))
        parts["sample"].append(layout.take(outputs).flatten(0, 1)[-start * per_image % stride :: stride])
        parts["ratios"].append(update_ratio(states["input_projection"], states["feed_forward"]).cpu())
    return {name: torch.cat(part) for name, part in parts.items()}


def pool(tokens: torch.Tensor, layout: Any) -> torch.Tensor:
    return tokens[:, 0] if layout.reads_first_token else layout.take(tokens).mean(1)


def find_stride(num_images: int, layout: Any) -> int:
    return max(1, num_images * torch.Size(layout.shape).numel() // CKA_TOKENS)


def describe_row(row: dict[str, Any]) -> str:
    name = f"layer {row['layer']}, input scale {row['input_scale']}" if "layer" in row else "the host's own tokens"
    update = f", update ratio {row['update_ratio']:.3g}" if "layer" in row else ""
    return f"{name}: probe {100 * row['probe']:.1f} %, CKA to the host {row['cka_to_host']:.3f}{update}"


def write_table(table: pd.DataFrame, file: Path) -> None:
    if file.suffix == ".json":
        records = [{k: None if pd.isna(v) else v for k, v in row.items()} for row in table.to_dict("records")]
        write_text(file, to_json(records, indent=2) + "\n")
        return
    with replacing(file) as temporary:
        table.to_csv(temporary, index=False)


def print_recovery(sweep: pd.DataFrame, suggested: dict[str, Any], num_layers: int) -> None:
    found = recovery_rate(sweep, suggested["layer"], num_layers, suggested["input_scale"])
    print(
        f"In the sweep, the suggestion is number {found.rank} of {found.candidates}: {100 * found.chosen:.2f}, the "
        f"best {100 * found.best:.2f}, the mean {100 * found.mean:.2f}, standard deviation over seeds "
        f"{100 * found.deviation:.2f}; recovery rate {found.rate:.2f}."
    )
