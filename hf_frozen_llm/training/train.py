# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm train`: a recipe run by the Trainer of transformers."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    PreTrainedModel,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    enable_full_determinism,
    set_seed,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.trainer_callback import ExportableState

from hf_frozen_llm import LLMBlockConfig
from hf_frozen_llm.data.examples import (
    HFDataset,
    PreparedDataset,
    Preparer,
    StreamingPreparedDataset,
    find_class_names,
    match_labels,
    take_samples,
)
from hf_frozen_llm.modeling.configuration_llm_block import own_fields
from hf_frozen_llm.modeling.pretrained_model import PreTrainedModelWithLLMBlock
from hf_frozen_llm.modeling.vision_host import vision_config_of
from hf_frozen_llm.tasks import DATA_ARGUMENTS, DATA_MODULES, MODELS
from hf_frozen_llm.training.arguments import DataArguments, ModelArguments, RunArguments
from hf_frozen_llm.training.checkpoints import find_checkpoints, find_defect, last_complete_checkpoint
from hf_frozen_llm.training.lora import add_lora
from hf_frozen_llm.training.recipe import Recipe, read_recipe
from hf_frozen_llm.training.results import collect_versions, describe_device, find_git_revision, write_json
from hf_frozen_llm.training.trainer import ClassificationTrainer


def train(recipe_path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """
    Trains the model of a recipe, saves it in `output_dir`, and writes `results.json` there last of all.

    Args:
        recipe_path (`str` or `Path`):
            The YAML file.
        overrides (`Sequence[str]`, *optional*):
            Flags such as `["--learning_rate", "1e-3", "--llm_block.layer_index", "30"]`.

    Returns:
        `dict[str, Any]`: what was written to `results.json`.
    """
    recipe = read_recipe(recipe_path, overrides)
    run_args = recipe.arguments(RunArguments)
    model_args = recipe.arguments(ModelArguments)
    data_args = recipe.arguments(DATA_ARGUMENTS[model_args.task])
    data = DATA_MODULES[model_args.task]
    args = build_training_arguments(recipe, model_args, run_args, data_args)
    llm_block = None if recipe.llm_block is None else LLMBlockConfig(**recipe.llm_block)
    checkpoint = find_checkpoint_to_resume(args, run_args)

    enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
    with args.main_process_first(desc="loading the data"):
        train_split = data.load_split(data_args, data_args.train_split)
        class_names = find_class_names(data_args, train_split)
        train_split = take_samples(data_args, train_split, data_args.max_train_samples)
        eval_split = None
        if data_args.eval_split is not None:
            eval_split = data.load_split(data_args, data_args.eval_split)
            eval_split = take_samples(data_args, eval_split, data_args.max_eval_samples)
        label2id = {name: index for index, name in enumerate(class_names)}
    model = build_model(model_args, recipe.host, llm_block, label2id)
    if model_args.freeze_host:
        model.freeze_host()
    lora = None if recipe.lora is None else add_lora(model, recipe.lora)
    if checkpoint is not None:
        check_same_model(checkpoint, model, recipe.lora)

    processor = data.build_processor(data_args, recipe.host, model.config)
    label_ids = match_labels(data_args, train_split, label2id)
    data_seed = args.seed if args.data_seed is None else args.data_seed
    prepare = data.build_preparer(data_args, data_args.train_split, processor, label_ids, model.config, data_seed)
    train_dataset: PreparedDataset | StreamingPreparedDataset
    if data_args.streaming:
        train_split = train_split.shuffle(seed=data_seed, buffer_size=data_args.shuffle_buffer_size)
        train_dataset = StreamingPreparedDataset(train_split, prepare, repeat=True)
    else:
        train_dataset = PreparedDataset(train_split, prepare)
    eval_dataset = None
    if eval_split is not None:
        label_ids = match_labels(data_args, eval_split, label2id)
        prepare = data.build_preparer(data_args, data_args.eval_split, processor, label_ids, model.config, None)
        eval_dataset = prepared_for_evaluation(eval_split, prepare)

    progress = RunProgress(train_dataset, recipe.lora)
    trainer = ClassificationTrainer(
        model,
        args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=data.collate,
        processing_class=processor,
        batches=data.build_batches(data_args, processor, len(label2id)),
        label_smoothing=args.label_smoothing_factor,
        layer_decay=run_args.layer_decay,
        projection_learning_rate_scale=run_args.projection_learning_rate_scale,
        callbacks=[progress],
    )
    if trainer.is_world_process_zero():
        print(describe_model(model), flush=True)
    result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    seconds = progress.seconds()
    parameters = count_parameters(model)
    if lora is not None:
        lora.merge_and_unload()
    trainer.save_model()  # before the evaluation, which may cast the model (bf16_full_eval)
    metrics = {**result.metrics, **(trainer.evaluate() if eval_dataset is not None else {})}

    results = {
        "metrics": metrics,
        "parameters": parameters,
        "recipe": {**asdict(model_args), **asdict(data_args), **asdict(run_args), **recipe.to_dict()},
        "config": json.loads(model.config.to_json_string(use_diff=False)),
        "versions": collect_versions(),
        "seed": args.seed,
        "git_revision": find_git_revision(),
        "device": describe_device(args.device),
        "num_processes": args.world_size,
        "train_time_seconds": seconds,
        "resumed_from_checkpoint": None if checkpoint is None else checkpoint.name,
        "log_history": trainer.state.log_history,
    }
    if trainer.is_world_process_zero():
        write_json(Path(str(args.output_dir), "results.json"), results)
        print(json.dumps(metrics, indent=2), flush=True)
    return results


def build_training_arguments(
    recipe: Recipe, model_args: ModelArguments, run_args: RunArguments, data_args: DataArguments
) -> TrainingArguments:
    if not recipe.values.get("output_dir"):
        raise ValueError("output_dir is not set; say where the model goes, as in `--output_dir runs/first`.")
    if run_args.base_learning_rate is not None and "learning_rate" in recipe.values:
        raise ValueError(
            "base_learning_rate and learning_rate are both set; remove one of them (`--base_learning_rate null`)."
        )
    if data_args.streaming and recipe.values.get("max_steps", -1) <= 0:
        raise ValueError("streaming needs max_steps: the length of a stream is not known.")
    args = recipe.arguments(
        TrainingArguments,
        data_seed=recipe.values.get("seed", TrainingArguments.seed),
        dataloader_pin_memory=torch.cuda.is_available() and not recipe.values.get("use_cpu", False),
        # Hosts may hold what a classifier makes no use of: DINOv2's mask token, SigLIP's pooling head.
        ddp_find_unused_parameters=model_args.model_type == "vision_with_llm_block",
        label_names=["labels"],
        remove_unused_columns=False,
        report_to="none",
    )
    if data_args.eval_split is None and args.eval_strategy != "no":
        raise ValueError(f"eval_strategy is {args.eval_strategy.value!r}, but there is no eval_split to evaluate on.")
    if data_args.eval_split is not None and args.dataloader_drop_last:
        raise ValueError("dataloader_drop_last would leave out examples of eval_split as well; remove it.")
    if run_args.base_learning_rate is not None:
        examples_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        args.learning_rate = run_args.base_learning_rate * examples_per_step / run_args.base_batch_size
    return args


def find_checkpoint_to_resume(args: TrainingArguments, run_args: RunArguments) -> Path | None:
    output_dir = str(args.output_dir)
    if (args.fsdp or args.deepspeed) and (run_args.resume or args.resume_from_checkpoint is not None):
        raise ValueError("resume knows the checkpoints of one process and of DDP, not those of fsdp and deepspeed.")
    if args.resume_from_checkpoint is not None and str(args.resume_from_checkpoint).lower() not in ("true", "false"):
        defect = find_defect(args.resume_from_checkpoint, args.world_size)
        if defect is not None:
            raise ValueError(f"resume_from_checkpoint is {args.resume_from_checkpoint!r}, but {defect}")
        return Path(args.resume_from_checkpoint)
    if run_args.resume or str(args.resume_from_checkpoint).lower() == "true":
        return last_complete_checkpoint(output_dir, args.world_size)
    if find_checkpoints(output_dir):
        raise ValueError(
            f"output_dir {output_dir} holds the checkpoints of an earlier run. Go on with it by `--resume true`, "
            "or choose another output_dir."
        )
    return None


def build_model(
    args: ModelArguments, host: dict[str, Any], llm_block: LLMBlockConfig | None, label2id: dict[str, int]
) -> PreTrainedModelWithLLMBlock:
    config_class = CONFIG_MAPPING[args.model_type]
    is_any_host = args.model_type == "vision_with_llm_block"
    fields = dict(host)
    name_or_path, host_type = fields.pop("name_or_path", None), fields.pop("model_type", None)
    options: dict[str, Any] = {
        "id2label": {index: name for name, index in label2id.items()},
        "label2id": label2id,
        "llm_block": llm_block,
        **({"pooling": args.pooling} if is_any_host else {}),
    }
    model_class: Any = MODELS[args.model_type]
    if name_or_path is None:
        if is_any_host:
            fields = {"vision_config": AutoConfig.for_model(host_type, **fields)}
        model = model_class(config_class(**fields, **options))
    else:
        if host_type is not None:
            published_type = vision_config_of(AutoConfig.from_pretrained(name_or_path)).model_type
            if host_type != published_type:
                raise ValueError(
                    f"host.model_type is {host_type!r}, but host.name_or_path {name_or_path!r} is a {published_type}. "
                    "Remove host.model_type."
                )
        model = model_class.from_host_pretrained(name_or_path, dtype=torch.float32, **options, **fields)
    if args.classifier_init_scale != 1:
        with torch.no_grad():
            last = [module for module in model.classifier.modules() if isinstance(module, nn.Linear)][-1]
            last.weight.mul_(args.classifier_init_scale)
    return model


def check_same_model(checkpoint: Path, model: PreTrainedModelWithLLMBlock, lora: dict[str, Any] | None) -> None:
    """
    The model to go on with must be the checkpoint's, which Trainer does not check. As the checkpoint does not hold the
    LLM layer, the one read now must be the one it was trained with.
    """
    block = model.config.llm_block
    stored_config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    stored = stored_config.get("llm_block")
    if (block is None) != (stored is None):
        there, here = ("an", "none") if block is None else ("no", "one")
        raise ValueError(f"{checkpoint} has {there} llm_block, but the recipe has {here}; they are different runs.")
    if block is not None and stored.get("fingerprint") not in (None, block.fingerprint):
        raise ValueError(
            f"{checkpoint} was trained with the LLM layer of fingerprint {stored['fingerprint']} "
            f"({stored['llm_name_or_path']}, layer {stored['layer_index']}), but llm_block.llm_name_or_path "
            f"{block.llm_name_or_path!r}, layer {block.layer_index}, has {block.fingerprint}."
        )
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    stored_lora = state.stateful_callbacks.get("RunProgress", {}).get("attributes", {}).get("lora")
    if stored_lora != lora:
        raise ValueError(f"{checkpoint} was trained with lora {stored_lora}, the recipe now says {lora}.")
    config = json.loads(model.config.to_json_string(use_diff=False))
    host_class, stored_host, host = type(model.config), stored_config, config
    if "vision_config" in config:
        host_class = type(model.config.vision_config)
        stored_host, host = stored_config.get("vision_config"), config["vision_config"]
    host_names = ["model_type", *sorted(set(own_fields(host_class)) - {"llm_block"})]
    groups = [("", ["model_type", "pooling"], stored_config, config), ("host.", host_names, stored_host, host)]
    if block is not None:
        # Where the LLM lies and how the model is saved may change; the fingerprint says that the layer is the same.
        free = {"llm_name_or_path", "llm_revision", "llm_config", "fingerprint", "save_weights", "fast"}
        groups.append(("llm_block.", sorted(set(own_fields(LLMBlockConfig)) - free), stored, config["llm_block"]))
    for prefix, names, before, now in groups:
        for name in names:
            if before.get(name) != now.get(name):
                raise ValueError(
                    f"{checkpoint} was trained with {prefix}{name} {before.get(name)!r}, the recipe now says "
                    f"{now.get(name)!r}. Go on with the same model, or start another run in another output_dir."
                )


def prepared_for_evaluation(split: HFDataset, prepare: Preparer) -> PreparedDataset | StreamingPreparedDataset:
    if prepare.args.streaming:
        return StreamingPreparedDataset(split, prepare, repeat=False)
    return PreparedDataset(split, prepare)


class RunProgress(TrainerCallback, ExportableState):
    """
    Tells the training data which epoch it is, adds up the time of all sessions of a resumed run, and keeps in every
    checkpoint the LoRA it was trained with.
    """

    def __init__(self, dataset: PreparedDataset | StreamingPreparedDataset, lora: dict[str, Any] | None):
        self.dataset = dataset
        self.lora = lora
        self.earlier_seconds = 0.0
        self.started = time.monotonic()

    def seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.started

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"earlier_seconds": self.seconds(), "lora": self.lora}}

    def on_train_begin(self, args, state, control, **kwargs):
        stored = state.stateful_callbacks.get("RunProgress", {})
        self.earlier_seconds = stored.get("attributes", {}).get("earlier_seconds", 0.0)
        self.started = time.monotonic()

    def on_epoch_begin(self, args, state, control, **kwargs):
        if isinstance(self.dataset, PreparedDataset):
            self.dataset.set_epoch(int(state.epoch or 0))


def count_parameters(model: PreTrainedModel) -> dict[str, int]:
    total, trainable = model.num_parameters(), model.num_parameters(only_trainable=True)
    return {"total": total, "trainable": trainable, "frozen": total - trainable}


def describe_model(model: PreTrainedModel) -> str:
    numbers = ", ".join(f"{count:,} {name}" for name, count in count_parameters(model).items())
    block = model.config.llm_block
    if block is None or block.kind != "llm":
        instead = "no LLM block" if block is None else f"in the place of the LLM layer: {block.kind}"
        return f"{type(model).__name__}: parameters: {numbers}; {instead}"
    return (
        f"{type(model).__name__}: parameters: {numbers}; LLM: {block.llm_name_or_path}, layer {block.layer_index}, "
        f"weights {block.weights}, fingerprint {block.fingerprint}"
    )
