# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Render the model card of a saved model."""

import hashlib
import json
import math
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import metadata_load

import hf_frozen_llm.hub_cards
from hf_frozen_llm.hub.card_data import FrozenLLMModelCardData, build_card_data, list_entries
from hf_frozen_llm.hub.card_facts import (
    describe_block,
    describe_cost,
    describe_host,
    describe_layer,
    describe_state,
    find_auto_class,
    find_llm,
    list_training_labels,
    list_training_rows,
    list_worst_classes,
    name_llm,
    write_recipe,
)
from hf_frozen_llm.hub.comparison import (
    compare_plain_host,
    compare_variants,
    copy_ablation,
    copy_plain_host,
)
from hf_frozen_llm.hub.examples import EXAMPLES_FILE, draw_examples, list_widgets
from hf_frozen_llm.hub.licences import UNKNOWN, find_licence
from hf_frozen_llm.hub.saved_model import SavedModel, find_digest, read_saved_model
from hf_frozen_llm.plotting import plot_run
from hf_frozen_llm.training.results import replacing, write_text


CARD_FILE = "README.md"
CURVES_FILE = "training_curves.png"
# Written by hand: facts that no results file holds.
NOTES_FILE = "notes.md"
RESULTS_FOLDER = ".eval_results"
TEMPLATE = "model_card_template.md"
# The last line of a rendered card: who changes the text above it owns the card.
SIGNATURE = "<!-- Rendered by `hf-frozen-llm card`; text {}, weights {} -->"
# In the cards that Trainer and transformers write.
GENERATED = "generated automatically according to the information the Trainer had access to"


def write_card(
    folder: Path,
    repo_id: str | None = None,
    ablation: Path | None = None,
    *,
    plain_host: Path | None = None,
    license: str | None = None,
    dataset: str | None = None,
    examples: bool = False,
    force: bool = False,
    results: dict[str, Any] | None = None,
    needs_weights: bool = True,
) -> Path:
    """
    Write the model card of a saved model, `README.md`, with its figures and `.eval_results/`, from the files in its
    folder. Given facts, and the tables of an ablation, are kept when the card is rendered again. The text of
    `notes.md`, if there is one, is in the card.

    Args:
        folder (`Path`):
            The folder of the model.
        repo_id (`str`, *optional*):
            Its id on the Hub, for the commands and links of the card.
        ablation (`Path`, *optional*):
            A folder of `hf-frozen-llm ablate` on the same data; its tables are copied into the folder.
        plain_host (`Path`, *optional*):
            The folder of a run without LLM block to compare with; its results are copied into the folder.
        license (`str`, *optional*):
            The licence of the model; it is never guessed.
        dataset (`str`, *optional*):
            The Hub id of the training data, where the run read a local copy.
        examples (`bool`, *optional*, defaults to `False`):
            Whether an example of each label is drawn from the evaluation data, which is published with the card.
        force (`bool`, *optional*, defaults to `False`):
            Whether a card that was written or changed by hand is overwritten.
        results (`dict[str, Any]`, *optional*):
            The results of a run that has not finished, instead of the results files in the folder.
        needs_weights (`bool`, *optional*, defaults to `True`):
            Whether a folder without weights is an error. Without them, the card has the sizes of the configuration
            and the digest of `results.json`.

    Returns:
        `Path`: the card.

    Raises:
        `FileExistsError`: if the folder has a card that was written or changed by hand.
        `OSError`: if there is no such folder.
        `ValueError`: if it is not a model of this package, or a results file belongs to other weights.
    """
    folder = Path(folder)
    card = folder / CARD_FILE
    if has_own_card(folder) and not force:
        raise FileExistsError(
            f"{card} was written or changed by hand, and is left as it is. To replace it: `hf-frozen-llm card "
            f"{folder} --force`."
        )
    earlier = read_given_facts(folder)
    name = repo_id or folder.resolve().name
    model = read_saved_model(folder, name, dataset or earlier.get("datasets", [None])[0], results, needs_weights)
    if ablation is not None:
        copy_ablation(model, Path(ablation))
    if plain_host is not None:
        copy_plain_host(model, Path(plain_host))
    if examples:
        draw_examples(model)
    widgets = list_widgets(model, repo_id)
    data = build_card_data(model, name, license or earlier.get("license"), find_llm_license(model), widgets)
    has_curves = draw_curves(model)
    text = render(model, data, name, has_curves)
    write_eval_results(model, repo_id)
    write_text(card, f"{text}\n\n{SIGNATURE.format(digest_text(text), str(model.digest)[:16])}\n")
    return card


def has_own_card(folder: Path) -> bool:
    """Return whether a folder has a card that neither this package nor Trainer wrote, or that was changed since."""
    card = Path(folder, CARD_FILE)
    if not card.is_file():
        return False
    text = card.read_text(encoding="utf-8")
    if GENERATED in " ".join(text.replace("`", "").split()):
        return False
    signature = read_signature(text)
    return signature is None or signature[0] != digest_text(text[: text.rindex("<!--")].strip())


def read_signature(text: str) -> tuple[str, str] | None:
    """Return the digests of the text and of the weights in the last line of a rendered card."""
    pattern = re.escape(SIGNATURE).replace(re.escape("{}"), "(\\w+)")
    match = re.fullmatch(pattern, text.rstrip().rpartition("\n")[2])
    return None if match is None else (match[1], match[2])


def read_given_facts(folder: Path) -> dict[str, Any]:
    """Return the metadata of a card that was rendered for the same weights: licence and data may have been given."""
    card = folder / CARD_FILE
    signature = read_signature(card.read_text(encoding="utf-8")) if card.is_file() else None
    if signature is None or signature[1] != str(find_digest(folder))[:16]:
        return {}
    return metadata_load(card) or {}


def digest_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def find_llm_license(model: SavedModel) -> str | None:
    """Return the licence of the language model, if the model has its weights and the licence is known."""
    block = model.config.llm_block
    if block is None or block.kind != "llm" or block.weights == "random":
        return None
    llm = model.base_models["llm"]
    names = dict.fromkeys(filter(None, (llm, block.llm_name_or_path)))
    licences = [licence for licence in map(find_licence, names) if not licence.startswith(UNKNOWN)]
    return licences[0] if licences else None


def draw_curves(model: SavedModel) -> bool:
    """Draw the curves of the training, if there are any; return whether the figure is there."""
    file = model.folder / CURVES_FILE
    history = (model.results or {}).get("log_history", [])
    if any("loss" in entry for entry in history) and find_spec("matplotlib") is not None:
        with replacing(file) as temporary:
            plot_run(temporary, history, model.main_metric, (model.results or {}).get("saved_step"))
        return True
    return False


def write_eval_results(model: SavedModel, repo_id: str | None) -> None:
    """Write each evaluation of data on the Hub into a file of `.eval_results/`; files of other names stay there."""
    folder = model.folder / RESULTS_FOLDER
    for file in [*folder.glob("results.yaml"), *folder.glob("eval_results*.yaml")]:
        file.unlink()
    for evaluation in model.evaluations:
        entries = list_entries(model, evaluation, repo_id) if evaluation.dataset_id else []
        if entries:
            folder.mkdir(exist_ok=True)
            text = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)
            write_text(folder / f"{Path(evaluation.file).stem}.yaml", text)


def render(model: SavedModel, data: FrozenLLMModelCardData, name: str, has_curves: bool) -> str:
    """Return the text of the card."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"cell": format_cell, "number": format_number}
    template = Path(hf_frozen_llm.hub_cards.__file__).parent / TEMPLATE
    block, results, notes = model.config.llm_block, model.results or {}, model.folder / NOTES_FILE
    metric = model.main_metric
    text = environment.from_string(template.read_text(encoding="utf-8")).render(
        metadata=data.to_yaml(),
        name=name,
        model=model,
        notes=notes.read_text(encoding="utf-8").strip() if notes.is_file() else None,
        block=block,
        llm=None if block is None or block.kind != "llm" else name_llm(model),
        llm_id=None if block is None else find_llm(model),
        layer=None if block is None or block.kind != "llm" else describe_layer(model),
        host=describe_host(model),
        auto_class=find_auto_class(model),
        dataset_id=data.datasets[0] if data.datasets else None,
        state=describe_state(model),
        block_facts=describe_block(model, data.llm_license),
        evaluations=list_metrics(model),
        variants=compare_variants(model),
        plain_host=compare_plain_host(model),
        worst_classes=list_worst_classes(model),
        training_rows=list_training_rows(model),
        metric=metric,
        labels=list_training_labels(model),
        training_set=results.get("training_set", {}),
        examples=EXAMPLES_FILE if (model.folder / EXAMPLES_FILE).is_file() else None,
        curves=CURVES_FILE if has_curves else None,
        recipe=write_recipe(model),
        cost=describe_cost(model),
        versions=results.get("versions", {}),
        results=results,
        has_code=bool(getattr(model.config, "auto_map", None)),
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def list_metrics(model: SavedModel) -> list[dict[str, Any]]:
    """Return a row for each metric of each evaluation."""
    rows = []
    for evaluation in model.evaluations:
        for name, value in evaluation.metrics.items():
            if isinstance(value, (int, float)):
                metric = model.find_metric(name)
                score = metric.format(metric.scale * value) + metric.unit
                rows.append({"metric": metric.title, "score": score, "evaluation": evaluation})
    return rows


def format_cell(text: Any) -> str:
    """Return a text as the content of a cell of a table, without markup of its own."""
    text = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_|\[\]])", r"\\\1", text)


def format_number(value: Any, digits: int = 4) -> str:
    return "" if value is None else f"{value:#.{digits}g}"


def check_card(folder: Path) -> None:
    """
    Compare the evaluation results in a card's metadata, and those in `.eval_results/`, with the results files.

    Raises:
        `ValueError`: for a number that no results file of the folder holds.
    """
    folder = Path(folder)
    known = []
    for path in [folder / "results.json", *folder.glob("eval_results*.json")]:
        if path.is_file():
            known += json.loads(path.read_text(encoding="utf-8")).get("metrics", {}).values()
    numbers = [number for number in known if isinstance(number, (int, float))]
    card = folder / CARD_FILE
    metadata = (metadata_load(card) if card.is_file() else None) or {}
    found = [
        (card, metric.get("type"), metric.get("value"))
        for index in metadata.get("model-index") or []
        for result in index.get("results", [])
        for metric in result.get("metrics", [])
    ]
    for path in sorted((folder / RESULTS_FOLDER).glob("*.yaml")):
        entries = yaml.safe_load(path.read_text(encoding="utf-8")) or []
        found += [(path, entry["dataset"]["task_id"], entry["value"]) for entry in entries]
    for path, name, value in found:
        held = isinstance(value, (int, float)) and any(
            math.isclose(value, scale * number, rel_tol=1e-6) for number in numbers for scale in (1, 100)
        )
        if not held:
            raise ValueError(
                f"{path} says that {name} is {value}, but no results file in {folder} (results.json, "
                "eval_results*.json) holds this number. Evaluate the model, or remove the number."
            )
