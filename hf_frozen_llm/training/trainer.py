# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The Trainer of transformers for a task: augmentation on the device, records in evaluation, learning rates."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.data_loader import IterableDatasetShard
from accelerate.utils import broadcast_object_list, gather_object
from huggingface_hub import upload_folder
from huggingface_hub.errors import HfHubHTTPError
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments, set_seed
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_pt_utils import nested_gather
from transformers.trainer_utils import EvalLoopOutput, HubStrategy, SaveStrategy, SchedulerType
from transformers.utils import PushInProgress, logging

from hf_frozen_llm.modeling.pretrained_model import PreTrainedModelWithLLMBlock
from hf_frozen_llm.modeling.publishing import leave_out_local_paths, publishing
from hf_frozen_llm.tasks import Task
from hf_frozen_llm.tasks.task import Batch, Predict, Record
from hf_frozen_llm.training.diverged import describe_divergence
from hf_frozen_llm.training.ema import EMA_FOLDER, WeightAverage
from hf_frozen_llm.training.optimizer import Schedule, drop_learning_rates, names_of_decayed, scale_learning_rates
from hf_frozen_llm.training.progress import RunProgress
from hf_frozen_llm.training.results import without_infinite, write_json
from hf_frozen_llm.training.sharding import name_sharded_layers
from hf_frozen_llm.training.throughput import Throughput


logger = logging.get_logger(__name__)

RECIPE_FILE = "recipe.json"
# Steps in a row that the scaler of fp16 may skip: it begins far too high, and halves its scale at each of them.
MAX_SKIPPED_STEPS = 50
CONSTANT = (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP)


class TaskTrainer(Trainer):
    """
    Train and evaluate a model of a task.

    Args:
        model (`PreTrainedModelWithLLMBlock`):
            The model to train.
        args (`TrainingArguments`):
            The training arguments.
        task ([`Task`]):
            The task, made for this model.
        layer_decay (`float`, *optional*, defaults to 1.0):
            See [`RunArguments`].
        learning_rate_scales (`dict[str, float]`, *optional*):
            See [`RunArguments`].
        learning_rate_drops (`Sequence[float]`, *optional*):
            See [`RunArguments`].
        learning_rate_drop_factor (`float`, *optional*, defaults to 0.1):
            See [`RunArguments`].
        clip_grad_value (`float`, *optional*):
            See [`RunArguments`].
        schedule ([`Schedule`], *optional*):
            The learning rate by step; by default that of `args` alone.
        weight_decay_rule (`str`, *optional*, defaults to `"trainer"`):
            See [`RunArguments`].
        ema_decay (`float`, *optional*):
            See [`RunArguments`].
        ema_warmup (`bool`, *optional*, defaults to `False`):
            See [`RunArguments`].
        resize (`Callable[[Batch, int], Batch]`, *optional*):
            Resizes the images of an augmented batch of an epoch, see [`ProgressiveResizing`].
        settings (`dict[str, Any]`, *optional*):
            The resolved settings of the run, which are written into every checkpoint as `recipe.json`.
        write_card (`Callable[[], None]`, *optional*):
            Writes the model card into `output_dir` before a push; by default, Trainer writes its own.
        kwargs:
            The other arguments of `Trainer`: data sets, callbacks.
    """

    model: nn.Module
    deepspeed: Any

    def __init__(
        self,
        model: PreTrainedModelWithLLMBlock,
        args: TrainingArguments,
        *,
        task: Task,
        layer_decay: float = 1.0,
        learning_rate_scales: dict[str, float] | None = None,
        learning_rate_drops: Sequence[float] | None = None,
        learning_rate_drop_factor: float = 0.1,
        clip_grad_value: float | None = None,
        schedule: Schedule | None = None,
        weight_decay_rule: str = "trainer",
        ema_decay: float | None = None,
        ema_warmup: bool = False,
        resize: Callable[[Batch, int], Batch] | None = None,
        settings: dict[str, Any] | None = None,
        write_card: Callable[[], None] | None = None,
        **kwargs,
    ):
        loss = task.loss(args)
        if loss is None and args.label_smoothing_factor != 0:
            raise ValueError(
                f"label_smoothing_factor is {args.label_smoothing_factor}, but a model of the task {task.name} "
                "computes its own loss, without label smoothing. Remove it."
            )
        if learning_rate_drops and args.lr_scheduler_type not in CONSTANT:
            kind = SchedulerType(args.lr_scheduler_type).value
            raise ValueError(
                f"learning_rate_drops is set, and lr_scheduler_type is {kind}. Set it to constant, or to "
                "constant_with_warmup."
            )
        self.rate_schedule = schedule or Schedule()
        self.rate_schedule.check(args)
        block: Any = model._get_llm_block()
        if args.push_to_hub and block is not None and block.is_reloadable():
            leave_out_local_paths(copy.deepcopy(block.config))  # an error now, not at the first push
        super().__init__(
            model,
            args,
            data_collator=task.collate,
            processing_class=task.processor,
            compute_loss_func=loss,
            **kwargs,
        )
        self.task = task
        self.llm_block = block
        self.layer_decay = layer_decay
        self.learning_rate_scales = learning_rate_scales or {}
        self.learning_rate_drops = learning_rate_drops or ()
        self.learning_rate_drop_factor = learning_rate_drop_factor
        self.clip_grad_value = clip_grad_value
        self.weight_decay_rule = weight_decay_rule
        self.resize = resize
        self.settings = settings
        self.write_card = write_card
        self.stops_when_infinite = True
        self.last_loss = torch.zeros(())
        self.skipped_steps = 0
        self.tables: dict[str, list[dict[str, Any]]] = {}  # of the last evaluation, see `Task.metrics`
        self.progress = RunProgress(self)
        self.throughput = Throughput(self)
        self.add_callback(self.progress)
        self.add_callback(self.throughput)
        if self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap is None:
            self.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = name_sharded_layers(model)
        is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        self.ema = None if ema_decay is None else WeightAverage(model, ema_decay, ema_warmup, is_sharded)
        if self.ema is not None:
            self.add_callback(self.ema)
        self.last_batch = (-1, -1)  # step, and number within it
        self.block_tokens: torch.Tensor | None = None  # a few tokens that entered the LLM block in the last step

    @property
    def data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def training_step(self, model, inputs, num_items_in_batch=None):
        step, number = self.last_batch
        self.last_batch = (self.state.global_step, number + 1 if step == self.state.global_step else 0)
        # Seed only from values that a resumed run can reconstruct. Loaders move the generators of dropout, too: how
        # often depends on their processes.
        batch = (*self.last_batch, self.args.process_index)
        set_seed(int(np.random.SeedSequence((self.args.seed, *batch)).generate_state(1)[0]))
        rng = np.random.default_rng((self.data_seed, *batch))
        inputs = self.task.augment(self._prepare_inputs(inputs), rng)
        inputs = inputs if self.resize is None else self.resize(inputs, int(self.state.epoch or 0))
        if self.compute_loss_func is not None and "labels" not in inputs:
            # Trainer would call it without a target, and add up the losses of accumulated batches.
            raise ValueError(
                f"The loss of the task {self.task.name} needs `labels` in a batch, which has {', '.join(inputs)}. "
                "Rename the targets to `labels`, or let the model compute its loss (`Task.loss` returns None)."
            )
        with self._keeping_block_tokens():
            loss = super().training_step(model, inputs, num_items_in_batch)
        # Infinity and NaN stay in the sum over the batches of a step.
        self.last_loss = loss if self.last_batch[1] == 0 else self.last_loss + loss
        return loss

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        if self.control.should_training_stop:  # a run that resumes at its last step trains no other
            return [], None
        return super().get_batch_samples(self.throughput.begin_step(epoch_iterator), num_batches, device)

    def _get_grad_norm(self, model, grad_norm=None):
        """Return the norm of the gradient; stop if the step would make the weights NaN. Then clip by value."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        norm, loss = 0.0 if grad_norm is None else float(grad_norm), self.last_loss.item()
        is_skipped = self.accelerator.scaler is not None and not math.isfinite(norm)
        self.skipped_steps = self.skipped_steps + 1 if is_skipped else 0
        if is_skipped and self.skipped_steps < MAX_SKIPPED_STEPS:
            return grad_norm
        if not (math.isfinite(norm) and math.isfinite(loss)):
            self._stop_when_infinite(f"the loss is {loss:g}, and the norm of the gradient {norm:g}", 1)
        if self.clip_grad_value is not None:  # the gradients are no longer scaled
            nn.utils.clip_grad_value_(model.parameters(), self.clip_grad_value)
        return grad_norm

    def _stop_when_infinite(self, problem: str, current_step: int = 0) -> None:
        """Raise an error that says what to do; `current_step` is 1 within a step."""
        if not self.stops_when_infinite:
            return
        step = self.state.global_step + current_step
        raise FloatingPointError(describe_divergence(self.args, step, problem))

    @contextmanager
    def _keeping_block_tokens(self) -> Iterator[None]:
        """Keep some tokens that enter the LLM block, whose layer can be called unless it is sharded or compiled."""
        block = self.llm_block
        is_changed = self.is_fsdp_enabled or self.is_deepspeed_enabled or self.args.torch_compile
        if block is None or block.config.kind != "llm" or is_changed:
            yield
            return

        def keep(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            self.block_tokens = args[0][:1, :32].detach().clone()

        handle = block.register_forward_pre_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as Trainer does; beside the training loss, the throughput and the block's `update_ratio`."""
        if "loss" in logs:
            logs |= self.throughput.describe_since_log()
        if "loss" in logs and self.block_tokens is not None:
            logs["update_ratio"] = float(f"{self.llm_block.update_ratio(self.block_tokens):.4g}")
        if "train_loss" in logs and self.progress.earlier_seconds > 0:
            seconds, steps = self.progress.seconds(), self.state.global_step
            samples_per_step = logs["train_samples_per_second"] / logs["train_steps_per_second"]
            logs["train_runtime"] = round(seconds, 4)
            logs["train_samples_per_second"] = round(samples_per_step * steps / seconds, 3)
            logs["train_steps_per_second"] = round(steps / seconds, 3)
        logs.pop("total_flos", None)
        # The commands print the metrics of the whole training, and of evaluations outside it.
        is_final = "train_runtime" in logs or not self.is_in_train
        with self._without_printing() if is_final else nullcontext():
            super().log(logs, start_time)
        # Trainer writes these into `trainer_state.json`.
        self.state.log_history[-1] = without_infinite(self.state.log_history[-1])

    @contextmanager
    def _without_printing(self) -> Iterator[None]:
        handler = self.callback_handler
        callbacks = handler.callbacks
        handler.callbacks = [c for c in callbacks if not isinstance(c, (PrinterCallback, ProgressCallback))]
        try:
            yield
        finally:
            handler.callbacks = callbacks

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: the estimate of Trainer is for texts, and far too large for pixels."""
        return 0

    def _determine_best_metric(self, metrics, trial):
        is_best = super()._determine_best_metric(metrics, trial)
        if self.state.best_metric is not None and not math.isfinite(self.state.best_metric):
            self.state.best_metric = None  # the metric was NaN
        return is_best

    def _get_train_sampler(self, train_dataset: Dataset | None = None):
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        sampler = self.task.sampler(dataset, batch_size, self.data_seed)
        return super()._get_train_sampler(train_dataset) if sampler is None else sampler

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return (
            names_of_decayed(model) if self.weight_decay_rule == "timm" else super().get_decay_parameter_names(model)
        )

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        trained = self.accelerator.unwrap_model(self.model if model is None else model)
        scale_learning_rates(optimizer, trained, self.layer_decay, self.learning_rate_scales)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        if self.lr_scheduler is None:
            args, schedule, dataset = self.args, self.rate_schedule, cast(Any, self.train_dataset)
            optimizer = self.optimizer if optimizer is None else optimizer
            batch_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            # a stream is one epoch
            per_epoch = math.ceil(len(dataset) / batch_size) if hasattr(dataset, "__len__") else num_training_steps
            if self.learning_rate_drops:
                self.lr_scheduler = drop_learning_rates(
                    optimizer,
                    [epoch * per_epoch for epoch in self.learning_rate_drops],
                    self.learning_rate_drop_factor,
                    schedule.num_warmup_steps(args, num_training_steps, per_epoch),
                )
            else:
                self.lr_scheduler = schedule.create(optimizer, args, num_training_steps, per_epoch)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as Trainer does, unless the weights are not finite; a checkpoint also gets the settings of the run."""
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            infinite = [parameter for parameter in trained if not parameter.isfinite().all()]
            if infinite:
                self._stop_when_infinite(f"{len(infinite)} of {len(trained)} trained tensors are not finite")
        is_checkpoint = _internal_call and output_dir is not None  # `push_to_hub` names no folder
        is_published = not is_checkpoint and (self.args.push_to_hub or _internal_call)
        folder = str(output_dir or self.args.output_dir)
        with publishing() if is_published else nullcontext():
            if self.ema is not None and not is_checkpoint:  # before a push
                with self.ema.applied():
                    super().save_model(str(Path(folder, EMA_FOLDER)), _internal_call=True)
            super().save_model(output_dir, _internal_call)
        if self.ema is not None and is_checkpoint and self.args.should_save:
            self.ema.save(folder)
        if is_published and self.args.should_save:  # it may hold a token
            for place in (folder, Path(folder, EMA_FOLDER)):
                Path(place, TRAINING_ARGS_NAME).unlink(missing_ok=True)
        if is_checkpoint and hasattr(self, "_tr_loss"):
            losses: Any = nested_gather(self._tr_loss, self.args.parallel_mode)
            self.progress.losses = losses.reshape(-1).tolist()
            self.throughput.gather_totals()
        if is_checkpoint and self.settings is not None and self.args.should_save:
            write_json(Path(str(output_dir), RECIPE_FILE), self.settings)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.ema is not None:
            self.ema.load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.ema is not None:
            self.ema.load(str(self.state.best_model_checkpoint))

    def _save_checkpoint(self, model, trial):
        try:
            super()._save_checkpoint(model, trial)
        except HfHubHTTPError:
            raise
        except (OSError, RuntimeError) as error:  # torch.save raises the latter on a full disk
            name = f"checkpoint-{self.state.global_step}"
            raise OSError(
                f"{name} could not be written in {self.args.output_dir}: {error}. Is the disk full? With room, the "
                "same command with `--resume true` resumes from the last checkpoint that is whole."
            ) from error

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push as Trainer does, but the model: the checkpoint lacks the LLM layer, and the published names."""
        args = self.args
        in_progress = getattr(self, "push_in_progress", None)
        is_due = [args.hub_always_push or in_progress is None or in_progress.is_done()]
        broadcast_object_list(is_due)  # that of the first process
        if args.hub_strategy == HubStrategy.END or not is_due[0]:
            return
        self._finish_current_push()  # it reads the files that are written now
        modules = [] if self.llm_block is None else self.llm_block.modules()
        is_mergeable = any(hasattr(module, "base_layer") for module in modules)
        if is_mergeable:
            logger.warning_once("The model is pushed at the end of the training, with LoRA merged into its layer.")
        else:
            self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        if not is_mergeable:
            self.create_model_card(model_name=str(self.hub_model_id))
        progress = f"epoch {int(self.state.epoch or 0)}"
        if args.save_strategy == SaveStrategy.STEPS:
            progress = f"step {self.state.global_step}"
        message = f"Training in progress, {progress}"
        common: dict[str, Any] = {"repo_id": self.hub_model_id, "token": args.hub_token, "run_as_future": True}
        common["revision"] = args.hub_revision
        jobs: Any = []
        if not is_mergeable:
            ignored = ["_*", "checkpoint-*"]
            jobs.append(
                upload_folder(
                    folder_path=str(args.output_dir), commit_message=message, ignore_patterns=ignored, **common
                )
            )
        if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            is_last = args.hub_strategy == HubStrategy.CHECKPOINT
            jobs.append(
                upload_folder(
                    folder_path=checkpoint_folder,
                    path_in_repo="last-checkpoint" if is_last else Path(checkpoint_folder).name,
                    commit_message=f"{message}, checkpoint",
                    ignore_patterns=[TRAINING_ARGS_NAME],
                    **common,
                )
            )
        self.push_in_progress: Any = PushInProgress(jobs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        if self.write_card is None:
            super().create_model_card(*args, **kwargs)
        else:
            self.write_card()

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate as the task says; `prediction_loss_only` and `ignore_keys` have no effect."""
        model = self._prepare_for_evaluation()
        logger.info(f"\n***** Running {description} *****\n  Batch size = {self.args.eval_batch_size}")
        num_samples = 0

        def loop(predict: Predict, dataset: Any = None) -> list[Record]:
            nonlocal num_samples
            records = self.collect_records(predict, dataloader if dataset is None else self._build_loader(dataset))
            num_samples += len(records)
            return records

        # A stream that is not dispatched is wrapped: each process takes its share.
        dataset: Any = dataloader.dataset
        dataset = dataset.dataset if isinstance(dataset, IterableDatasetShard) else dataset
        metrics = self.task.evaluate(model, dataset, loop)
        self.tables = {name: metrics.pop(name) for name in list(metrics) if isinstance(metrics[name], list)}
        needed = {"loss", self.task.main_metric.name} - set(metrics)
        if needed:
            raise KeyError(f"The metrics of the task {self.task.name} lack {', '.join(sorted(needed))}.")
        if self.train_dataset is not None and not math.isfinite(metrics["loss"]):
            self._stop_when_infinite(f"the loss of the evaluation is {metrics['loss']:g}")
        if hasattr(self, "model_preparation_time"):
            metrics["model_preparation_time"] = self.model_preparation_time
        if self.ema is not None:
            with self.ema.applied():
                averaged = self.task.evaluate(model, dataset, loop)
            metrics |= {f"ema_{name}": value for name, value in averaged.items() if not isinstance(value, list)}
            num_samples //= 2  # the rows were read twice
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        no_arrays: Any = None  # predictions are records
        return EvalLoopOutput(predictions=no_arrays, label_ids=None, metrics=metrics, num_samples=num_samples)

    def collect_records(self, predict: Predict, dataloader: DataLoader) -> list[Record]:
        """Return the records of all processes, in the order of their rows and without those that fill a last batch."""
        self.callback_handler.eval_dataloader = dataloader
        records: list[Record] = []
        for batch in dataloader:
            inputs: Batch = self._prepare_inputs(batch)
            with torch.no_grad(), self.compute_loss_context_manager():
                records += predict(inputs)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        by_row = {record["row"]: record for record in gather_object(records)}
        return [by_row[row] for row in sorted(by_row)]

    def predict_records(self, every_row: Any, wrap: Callable[[Predict], Predict]) -> list[Record]:
        """Return the records of a data set without targets; `wrap` adds those of rows that cannot be read."""
        model = self._prepare_for_evaluation()

        def loop(predict: Predict, dataset: Any = None) -> list[Record]:
            loader = self.get_test_dataloader(every_row if dataset is None else dataset)
            return self.collect_records(wrap(predict), loader)

        records = self.task.predict_rows(model, every_row, loop)
        self.control = self.callback_handler.on_predict(self.args, self.state, self.control, {})
        return records

    def _build_loader(self, dataset: Any) -> DataLoader:
        """Return a loader of a data set beside the one that is evaluated, such as a gallery."""
        workers = self.args.dataloader_num_workers
        loader = DataLoader(dataset, self.args.eval_batch_size, num_workers=workers, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)

    def _prepare_for_evaluation(self) -> nn.Module:
        """Wrap, cast and switch the model as `Trainer.evaluation_loop` does."""
        args = self.args
        model = self._wrap_model(self.model, training=False)
        if len(self.accelerator._models) == 0 and model is self.model:
            start = time.time()
            is_sharded = self.is_deepspeed_enabled or (self.is_fsdp_enabled and not args.torch_compile)
            prepare = self.accelerator.prepare
            model = prepare(model) if is_sharded else self.accelerator.prepare_model(model, evaluation_mode=True)
            self.model_preparation_time = round(time.time() - start, 4)
            if self.is_fsdp_enabled:
                self.model = model
            if model is not self.model:
                self.model_wrapped = model
            if self.is_deepspeed_enabled:
                self.deepspeed = self.model_wrapped
        if not self.is_in_train and (args.fp16_full_eval or args.bf16_full_eval):
            dtype = torch.float16 if args.fp16_full_eval else torch.bfloat16
            model = model.to(dtype=dtype, device=args.device)
        model.eval()
        optimizer: Any = self.optimizer
        if callable(getattr(optimizer, "eval", None)):
            optimizer.eval()  # schedule-free optimizers
        return model
