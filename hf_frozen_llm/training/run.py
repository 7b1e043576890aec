# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Build a run, from a recipe or from a saved model: the basis of training, evaluation, prediction and checks."""

import json
from collections.abc import Callable, Sequence, Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraModel
from torch import nn
from transformers import (
    AutoConfig,
    PreTrainedConfig,
    TrainerCallback,
    TrainingArguments,
    enable_full_determinism,
    set_seed,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_frozen_llm import LLMBlockConfig
from hf_frozen_llm.data.arguments import DataArguments
from hf_frozen_llm.data.datasets import HFDataset, find_local, hold_out, take_samples
from hf_frozen_llm.modeling.configuration_llm_block import own_fields
from hf_frozen_llm.modeling.pretrained_model import PreTrainedModelWithLLMBlock
from hf_frozen_llm.modeling.vision_host import load_host_config, vision_config_of
from hf_frozen_llm.tasks import TASKS, Task, find_task
from hf_frozen_llm.training.arguments import ModelArguments, RunArguments
from hf_frozen_llm.training.lora import add_lora
from hf_frozen_llm.training.optimizer import Schedule
from hf_frozen_llm.training.recipe import Recipe
from hf_frozen_llm.training.resizing import ProgressiveResizing
from hf_frozen_llm.training.results import load_saved_config, to_json
from hf_frozen_llm.training.resume import check_same_run, continues, find_checkpoint_to_resume, find_results
from hf_frozen_llm.training.trainer import TaskTrainer


# The fields of TrainingArguments that affect evaluation.
EVALUATION_TRAINER_KEYS = {
    *("per_device_eval_batch_size", "dataloader_num_workers", "dataloader_prefetch_factor", "use_cpu", "ddp_backend"),
    *("bf16", "fp16", "tf32", "bf16_full_eval", "fp16_full_eval", "torch_compile", "torch_compile_backend"),
    *("torch_compile_mode", "disable_tqdm", "accelerator_config"),
}


@dataclass
class Settings:
    """
    A recipe as the arguments of each part, checked.

    Args:
        recipe ([`Recipe`]): the recipe.
        task (`type[Task]`): its task.
        model_args ([`ModelArguments`]): the keys that choose the model.
        data_args ([`DataArguments`]): the keys of the task.
        run_args ([`RunArguments`]): the keys that `TrainingArguments` does not have.
        llm_block ([`LLMBlockConfig`], *optional*): the configuration of the block.
    """

    recipe: Recipe
    task: type[Task]
    model_args: ModelArguments
    data_args: DataArguments
    run_args: RunArguments
    llm_block: LLMBlockConfig | None

    def to_dict(self) -> dict[str, Any]:
        """Return the entry `recipe` of `results.json`."""
        arguments = (self.model_args, self.data_args, self.run_args)
        return {**{k: v for part in arguments for k, v in asdict(part).items()}, **self.recipe.to_dict()}


@dataclass
class Run:
    """
    Everything that training, evaluation and prediction need.

    Args:
        settings ([`Settings`]): the arguments.
        args (`TrainingArguments`): those of the Trainer.
        task ([`Task`]): the task, made for this model.
        model (`PreTrainedModelWithLLMBlock`): the model.
        train_dataset: the data set to train on, if there is one.
        eval_dataset: the data set to evaluate on, if there is one.
        lora (`peft.LoraModel`, *optional*): the adapters in the LLM layers.
        checkpoint (`Path`, *optional*): the checkpoint to resume from.
        results (`dict[str, Any]`, *optional*): the results of the run to resume, if it has finished.
    """

    settings: Settings
    args: TrainingArguments
    task: Task
    model: PreTrainedModelWithLLMBlock
    train_dataset: Any = None
    eval_dataset: Any = None
    lora: LoraModel | None = None
    checkpoint: Path | None = None
    results: dict[str, Any] | None = None

    def flat_settings(self) -> dict[str, Any]:
        """Return all resolved settings in one flat dictionary of JSON values: the content of `recipe.json`."""
        config: Any = self.model.config
        settings = self.settings
        flat = {**self.args.to_dict(), "num_processes": self.args.world_size}
        flat = {name: value for name, value in flat.items() if not name.endswith("_token")}
        for arguments in (settings.model_args, settings.data_args, settings.run_args):
            flat |= asdict(arguments)
        if (local := find_local(settings.data_args)) is not None:
            flat["dataset_name"] = str(local.resolve())  # from any folder
        flat |= {"lora": settings.recipe.lora, "pooling": getattr(config, "pooling", None)}
        flat["label2id"] = config.label2id
        host = config.vision_config if config.model_type == "vision_with_llm_block" else config
        if config.model_type == "vision_with_llm_block" and not hasattr(host, "drop_path_rate"):
            flat["host.drop_path_rate"] = config.drop_path_rate
        groups = {"host": (host, ["model_type", *own_fields(type(host))])}
        if config.llm_block is not None:
            groups["llm_block"] = (config.llm_block, list(own_fields(LLMBlockConfig)))
        for group, (group_config, names) in groups.items():
            values = json.loads(group_config.to_json_string(use_diff=False))
            flat |= {f"{group}.{name}": values.get(name) for name in names if name != "llm_block"}
        flat |= {f"host.{name}": settings.recipe.host.get(name) for name in ("name_or_path", "revision")}
        return json.loads(to_json(flat))

    def num_eval_rows(self) -> int | None:
        """Return the number of rows to evaluate on; `None` without evaluation, or for a stream."""
        return None if self.eval_dataset is None or self.task.args.streaming else len(self.eval_dataset.rows)

    def trainer(
        self, callbacks: Sequence[TrainerCallback] = (), write_card: Callable[[], None] | None = None
    ) -> TaskTrainer:
        """Return the Trainer of this run; see [`TaskTrainer`] for `write_card`."""
        run_args = self.settings.run_args
        sizes = run_args.progressive_resizing
        return TaskTrainer(
            self.model,
            self.args,
            task=self.task,
            layer_decay=run_args.layer_decay,
            learning_rate_scales=run_args.learning_rate_scales,
            learning_rate_drops=run_args.learning_rate_drops,
            learning_rate_drop_factor=run_args.learning_rate_drop_factor,
            clip_grad_value=run_args.clip_grad_value,
            schedule=Schedule(
                warmup_epochs=run_args.warmup_epochs,
                warmup_learning_rate=run_args.warmup_learning_rate,
                min_learning_rate=run_args.min_learning_rate,
                cooldown_epochs=run_args.cooldown_epochs,
            ),
            weight_decay_rule=run_args.weight_decay_rule,
            ema_decay=run_args.ema_decay,
            ema_warmup=run_args.ema_warmup,
            resize=ProgressiveResizing(sizes, self.model) if sizes else None,
            settings=None if self.train_dataset is None else self.flat_settings(),
            train_dataset=self.train_dataset,
            eval_dataset=self.eval_dataset,
            callbacks=[*callbacks, *self.task.callbacks()],
            write_card=write_card,
        )


def resolve(recipe: Recipe) -> Settings:
    """Return the arguments of a recipe, checked as far as they can be without data and model."""
    model_args = recipe.arguments(ModelArguments)
    task = TASKS[model_args.task]
    if recipe.host.get("revision") is not None and recipe.host.get("name_or_path") is None:
        raise ValueError("host.revision is set, but host.name_or_path is not: it is the revision of a published host.")
    if model_args.model_type == "meter_with_llm_block" and recipe.host.get("name_or_path") is None:
        for name in ("text_name_or_path", "text_revision", "image_size"):
            if recipe.host.get(name) is not None:
                raise ValueError(
                    f"host.{name} is set, but host.name_or_path is not. Name the published vision encoder, too, or "
                    "set the sizes of host.vision_config and host.text_config instead."
                )
    data_args = recipe.arguments(task.arguments)
    data_args.check_training()
    return Settings(
        recipe=recipe,
        task=task,
        model_args=model_args,
        data_args=data_args,
        run_args=recipe.arguments(RunArguments),
        llm_block=None if recipe.llm_block is None else LLMBlockConfig(**recipe.llm_block),
    )


def build_run(recipe: Recipe) -> Run:
    """
    Build the run of a recipe: data, model, processor.

    Args:
        recipe ([`Recipe`]): the settings.

    Returns:
        [`Run`]: ready to train, or to resume an interrupted run.

    Raises:
        `ValueError`: for settings that contradict each other, the data, the host or the checkpoint to resume from.
    """
    settings = resolve(recipe)
    return prepare_run(settings, build_training_arguments(settings))


def prepare_run(settings: Settings, args: TrainingArguments) -> Run:
    """Build the run of checked settings, see [`build_run`]."""
    task_class, data_args = settings.task, settings.data_args
    checkpoint = find_checkpoint_to_resume(args, settings.run_args)

    enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
    with args.main_process_first(desc="loading the data"):
        train_rows = read_rows(task_class, data_args, "train_split")
        config_fields = task_class.config_fields(data_args, train_rows)
        eval_rows = None
        if data_args.holdout is not None:
            train_rows, eval_rows = hold_out(train_rows, data_args.holdout)
            eval_rows = take_samples(data_args, eval_rows, data_args.max_eval_samples)
        elif data_args.eval_split is not None:
            eval_rows = read_rows(task_class, data_args, "eval_split")
            eval_rows = take_samples(data_args, eval_rows, data_args.max_eval_samples)
        train_rows = take_samples(data_args, train_rows, data_args.max_train_samples)
    check_batches(args, train_rows)
    run = assemble_run(settings, args, build_model(settings, config_fields), train_rows, eval_rows)
    if eval_rows is not None:
        run.task.check_evaluation(eval_rows, best_metric_of_task(settings.run_args, args))
    run.checkpoint = checkpoint
    resume_changes, changed = settings.run_args.resume_changes, list[str]()
    if checkpoint is not None:
        changed = check_same_run(checkpoint, run.flat_settings(), resume_changes)
    if continues(args, settings.run_args) and not changed:
        now = {**json.loads(to_json(settings.to_dict())), "label2id": getattr(run.model.config, "label2id", None)}
        run.results = find_results(Path(str(args.output_dir)), checkpoint, now, resume_changes)
    if run.results is None:
        with args.main_process_first(desc="preparing the examples"):
            run.task.prepare(run.train_dataset)
            if eval_rows is not None:
                run.task.prepare(run.eval_dataset)
    return run


def best_metric_of_task(run_args: RunArguments, args: TrainingArguments) -> str | None:
    """Return `metric_for_best_model` as the task calls it: also that of the averaged weights, if there are some."""
    best = args.metric_for_best_model
    return best if best is None or run_args.ema_decay is None else best.removeprefix("eval_").removeprefix("ema_")


def read_rows(task: type[Task], args: DataArguments, key: str) -> HFDataset:
    """Read the split that a key names; the error of a split that is not there names the key."""
    split = getattr(args, key)
    try:
        return task.read(args, split)
    except ValueError as error:
        if not any(words in str(error) for words in ("Unknown split", "Bad split")):  # of datasets; the last streams
            raise
        raise ValueError(f"{key} is {split!r}: {error} Set {key} to one of them.") from error


def check_batches(args: TrainingArguments, rows: HFDataset) -> None:
    """Refuse data of which no step can be made."""
    batch_size = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and isinstance(rows, Sized) and len(rows) < batch_size:
        raise ValueError(
            f"There are {len(rows)} rows to train on, fewer than the {batch_size} of a batch, and "
            "dataloader_drop_last leaves none. Lower per_device_train_batch_size, or remove dataloader_drop_last."
        )


def assemble_run(
    settings: Settings,
    args: TrainingArguments,
    model: PreTrainedModelWithLLMBlock,
    train_rows: HFDataset,
    eval_rows: HFDataset | None,
) -> Run:
    """Return the run of a model that was just built, with the rows to train and to evaluate it on."""
    data_args, recipe = settings.data_args, settings.recipe
    lora = freeze_and_adapt(settings, model)
    task = settings.task(data_args, settings.task.build_processor(data_args, recipe.host, model.config), model.config)
    seed = args.seed if args.data_seed is None else args.data_seed
    run = Run(
        settings,
        args,
        task,
        model,
        train_dataset=task.dataset(train_rows, data_args.train_split, training=True, seed=seed),
        lora=lora,
    )
    if eval_rows is not None:
        split = data_args.eval_split if data_args.holdout is None else f"{data_args.train_split}, held out"
        run.eval_dataset = task.dataset(eval_rows, str(split))
    return run


def freeze_and_adapt(settings: Settings, model: PreTrainedModelWithLLMBlock) -> LoraModel | None:
    """Freeze the host if the recipe says so, and add LoRA."""
    if settings.model_args.freeze_host:
        model.freeze_host()
    return None if settings.recipe.lora is None else add_lora(model, settings.recipe.lora)


def load_run(saved_model: str, recipe: Recipe, output_dir: str) -> Run:
    """
    Load a saved model as a run, without data.

    Args:
        saved_model (`str`): folder or Hub id.
        recipe ([`Recipe`]): data settings, how to run, and `llm_block.llm_name_or_path` if the LLM has moved.
        output_dir (`str`): a folder that Trainer may write into.

    Returns:
        [`Run`]: to which `eval_dataset` is to be added.
    """
    config = load_saved_config(saved_model)
    task_class = find_task(config.model_type, (config.architectures or [None])[0])
    settings = Settings(
        recipe=recipe,
        task=task_class,
        model_args=ModelArguments(task_class.name, config.model_type),
        data_args=recipe.arguments(task_class.arguments),
        run_args=RunArguments(),
        llm_block=None,
    )
    # A prefetch factor of the training is of no use without loader processes.
    unused = set() if recipe.values.get("dataloader_num_workers") else {"dataloader_prefetch_factor"}
    kept = EVALUATION_TRAINER_KEYS - unused
    args = TrainingArguments(
        output_dir,
        dataloader_pin_memory=pins_memory(recipe),
        remove_unused_columns=False,
        report_to="none",
        **{name: value for name, value in recipe.values.items() if name in kept},
    )
    # A light model reads its LLM layer again; a flag may give another location.
    moved = {"llm_block": recipe.llm_block} if recipe.llm_block else {}
    model: Any = task_class.models[config.model_type].from_pretrained(saved_model, **moved)
    task = task_class(settings.data_args, task_class.load_processor(saved_model), model.config)
    return Run(settings, args, task, model)


def read_eval_rows(task: type[Task], args: DataArguments, split: str, with_targets: bool = True) -> HFDataset:
    return take_samples(args, task.read(args, split, with_targets), args.max_eval_samples)


def pins_memory(recipe: Recipe) -> bool:
    return torch.cuda.is_available() and not recipe.values.get("use_cpu", False)


def build_training_arguments(settings: Settings) -> TrainingArguments:
    """Return the arguments of the Trainer, with this package's defaults."""
    values, data_args, run_args = settings.recipe.values, settings.data_args, settings.run_args
    if not values.get("output_dir"):
        raise ValueError("output_dir is not set; say where the model goes, as in `--output_dir runs/first`.")
    if run_args.base_learning_rate is not None and "learning_rate" in values:
        raise ValueError(
            "base_learning_rate and learning_rate are both set; remove one of them (`--base_learning_rate null`)."
        )
    if run_args.warmup_epochs is not None and values.get("warmup_steps"):
        raise ValueError("warmup_epochs and warmup_steps are both set; remove one of them (`--warmup_steps 0`).")
    if run_args.ema_decay is not None and settings.recipe.lora is not None:
        raise ValueError("ema_decay does not average the adapters of lora. Remove one of them (`--ema_decay null`).")
    if not values.get("num_train_epochs", 1) > 0 and values.get("max_steps", -1) <= 0:
        raise ValueError(
            f"num_train_epochs is {values['num_train_epochs']}; nothing would be trained. Set it above 0."
        )
    if not 0 <= values.get("label_smoothing_factor", 0) < 1:
        raise ValueError(f"label_smoothing_factor is {values['label_smoothing_factor']}; it must lie in [0, 1).")
    if data_args.streaming and values.get("max_steps", -1) <= 0:
        raise ValueError("streaming needs max_steps: the length of a stream is not known.")
    # Other metrics of a task have the direction of its main one; the direction of a loss Trainer knows.
    compares_loss = (values.get("metric_for_best_model") or "loss").endswith("loss")
    args = settings.recipe.arguments(
        TrainingArguments,
        data_seed=values.get("seed", TrainingArguments.seed),
        dataloader_pin_memory=pins_memory(settings.recipe),
        # Hosts may have parameters that a classifier does not use: DINOv2's mask token, SigLIP's pooling head.
        ddp_find_unused_parameters=settings.model_args.model_type == "vision_with_llm_block",
        greater_is_better=None if compares_loss else settings.task.main_metric.greater_is_better,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        report_to="none",
    )
    has_eval_rows = data_args.eval_split is not None or data_args.holdout is not None
    if not has_eval_rows and args.eval_strategy != "no":
        raise ValueError(f"eval_strategy is {args.eval_strategy.value!r}, but there is no eval_split to evaluate on.")
    if has_eval_rows and args.dataloader_drop_last:
        raise ValueError("dataloader_drop_last would leave out examples of eval_split as well; remove it.")
    if run_args.base_learning_rate is not None:
        examples_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        args.learning_rate = run_args.base_learning_rate * examples_per_step / run_args.base_batch_size
    return args


def split_fields(
    settings: Settings, config_fields: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the host's fields, the fields that name a host (of the recipe's group), and the model's other fields."""
    optional = ("text_name_or_path", "text_revision", "image_size")  # of a METER
    fields = {name: v for name, v in settings.recipe.host.items() if v is not None or name not in optional}
    named = {name: fields.pop(name, None) for name in ("name_or_path", "revision", "model_type")}
    named["trust_remote_code"] = fields.pop("trust_remote_code", False)
    if read := sorted(fields.keys() & config_fields.keys()):
        name = read[0]
        raise ValueError(
            f"host.{name} is {fields[name]!r}, but the task reads it out of the data ({config_fields[name]!r}). "
            f"Remove host.{name}."
        )
    options: dict[str, Any] = {**config_fields, "llm_block": settings.llm_block}
    if settings.model_args.model_type == "vision_with_llm_block":
        options["pooling"] = settings.model_args.pooling
    return fields, named, options


def build_config(settings: Settings, config_fields: dict[str, Any]) -> PreTrainedConfig:
    """
    Build the configuration of a recipe's model; only the configuration of a published host is read.

    Args:
        settings ([`Settings`]): the settings of the recipe.
        config_fields (`dict[str, Any]`): the fields that the task read from the data.
    """
    fields, named, options = split_fields(settings, config_fields)
    name_or_path, revision = named["name_or_path"], named["revision"]
    config_class: Any = CONFIG_MAPPING[settings.model_args.model_type]
    if settings.model_args.model_type == "vision_with_llm_block":
        drop_path = {"drop_path_rate": fields.pop("drop_path_rate")} if "drop_path_rate" in fields else {}
        if name_or_path is None:
            host = AutoConfig.for_model(named["model_type"], **fields)
        else:
            fields["trust_remote_code"] = named["trust_remote_code"]
            host = vision_config_of(load_host_config(name_or_path, revision=revision, **fields))
        if hasattr(host, "drop_path_rate"):
            host.update(drop_path)
        else:
            options |= drop_path
        check_heads(host)
        return config_class(vision_config=host, **options)
    if name_or_path is None:
        config = config_class(**fields, **options)
        check_heads(config)
        return config
    # A METER may start from two published encoders.
    read = getattr(config_class, "from_host_pretrained", config_class.from_pretrained)
    return read(name_or_path, revision=revision, **fields, **options)


def check_heads(host: PreTrainedConfig) -> None:
    """Refuse a width that the attention heads do not divide: some hosts drop the remainder."""
    width, heads = (getattr(host, name, None) for name in ("hidden_size", "num_attention_heads"))
    if isinstance(width, int) and isinstance(heads, int) and (heads < 1 or width % heads != 0):
        raise ValueError(
            f"host.hidden_size is {width}, which host.num_attention_heads {heads} does not divide. Change one of them."
        )


def build_model(settings: Settings, config_fields: dict[str, Any]) -> PreTrainedModelWithLLMBlock:
    """Build the model of a recipe; see [`build_config`] for the arguments."""
    args = settings.model_args
    fields, named, options = split_fields(settings, config_fields)
    name_or_path, revision = named["name_or_path"], named["revision"]
    model_class: Any = settings.task.models[args.model_type]
    if name_or_path is None:
        model = model_class(build_config(settings, config_fields))
    else:
        if named["model_type"] is not None:
            published = load_host_config(name_or_path, named["trust_remote_code"], revision=revision)
            published_type = vision_config_of(published).model_type
            if named["model_type"] != published_type:
                raise ValueError(
                    f"host.model_type is {named['model_type']!r}, but host.name_or_path {name_or_path!r} is a "
                    f"{published_type}. Remove host.model_type."
                )
        if revision is not None:
            options["revision"] = revision
        if named["trust_remote_code"]:
            options["trust_remote_code"] = True
        model = model_class.from_host_pretrained(name_or_path, dtype=torch.float32, **options, **fields)
    if args.classifier_init_scale != 1:
        if not hasattr(model, "classifier"):
            raise ValueError(f"classifier_init_scale is set, but a {args.model_type} has no classifier. Remove it.")
        with torch.no_grad():
            last = [module for module in model.classifier.modules() if isinstance(module, nn.Linear)][-1]
            last.weight.mul_(args.classifier_init_scale)
    return model
