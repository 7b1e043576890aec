# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The interface of a task: its data, the predictions of a model on it, and their metrics."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias

import datasets
import numpy as np
import torch
from transformers import TrainerCallback, TrainingArguments

from hf_frozen_llm.data.arguments import DataArguments
from hf_frozen_llm.data.datasets import (
    Example,
    ExampleTransform,
    HFDataset,
    Row,
    StreamingTransformedDataset,
    TransformedDataset,
)
from hf_frozen_llm.data.images import decode_image, to_rgb
from hf_frozen_llm.metrics import Metric
from hf_frozen_llm.modeling.pretrained_model import PreTrainedModelWithLLMBlock
from hf_frozen_llm.plotting import plot_predictions


Batch: TypeAlias = dict[str, Any]
Record: TypeAlias = dict[str, Any]
Predict: TypeAlias = Callable[[Batch], list[Record]]

NUM_DRAWN_ANSWERS = 5


class SuiteSource(NamedTuple):
    """
    The source of suites of robustness.

    Args:
        split (`str`, *optional*): the split of the model's own data, for suites that change it.
        folder (`str`, *optional*): the folder of published test sets, a folder in it for each.
        wnids (`str`, *optional*): a file with the WordNet id of each label of the model.
    """

    split: str | None = None
    folder: str | None = None
    wnids: str | None = None


class SuitePart(NamedTuple):
    """
    A data set of a suite.

    Args:
        build (`Callable`):
            Returns a task whose records have `scores` (`{"top1": 1.0}`), its data set, and the number of rows that
            were left out because they have no target.
        data (`str`):
            The data, for results.
        corruption (`str`, *optional*, defaults to `""`):
            The corruption of the data, if the suite has several.
        severity (`int`, *optional*):
            Its severity.
        constants (`str`, *optional*, defaults to `""`):
            What was done to the data, for results.
        published_error (`float`, *optional*):
            Error under this corruption, over all severities, of the model to which mean corruption errors relate.
    """

    build: Callable[[], tuple["Task", Any, int]]
    data: str
    corruption: str = ""
    severity: int | None = None
    constants: str = ""
    published_error: float | None = None


class EvaluationLoop(Protocol):
    """Runs a model over a data set, on all processes."""

    def __call__(self, predict: Predict, dataset: Any = None) -> list[Record]:
        """Return the records of all rows, in their order; `dataset` is by default the one that is evaluated."""


class Task(ABC):
    """
    A task. The class loads data; an instance, made for one model, turns rows into batches, batches into records and
    records into metrics.

    Args:
        args ([`DataArguments`]): the recipe keys of the task, an instance of `arguments`.
        processor: the processor that is saved with the model.
        config (`PreTrainedConfig`): the model's configuration.
    """

    name: ClassVar[str]  # the Hub's pipeline tag if there is one
    arguments: ClassVar[type[DataArguments]]
    models: ClassVar[dict[str, type[PreTrainedModelWithLLMBlock]]]  # by model type
    main_metric: Metric
    num_shown: int | None = 3  # `predictions` of each input in the table of `predict`; `None`: all
    suffixes: ClassVar[tuple[str, ...]] = ()  # of the files that `read_files` takes; none: it takes no files

    def __init__(self, args: Any, processor: Any, config: Any):
        self.args = args
        self.processor = processor
        self.config = config

    @classmethod
    @abstractmethod
    def read(cls, args: Any, split: str, with_targets: bool = True) -> HFDataset:
        """Return the rows of a split, checked, in the schema that the task documents."""

    @classmethod
    def read_files(cls, args: Any, files: Sequence[str]) -> HFDataset:
        """Return a row without targets for each file."""
        raise ValueError(f"{cls.name} predicts on a split (`--dataset_name … --split …`), not on single files.")

    @classmethod
    def check_plot(cls, rows: HFDataset) -> None:
        """Refuse rows that [`Task.plot`] cannot draw."""
        if not isinstance(rows, datasets.Dataset) or "image" not in rows.column_names:
            raise ValueError(f"{cls.name}: plot needs a column of images, called `image`, that is not streamed.")

    @classmethod
    def check_submission(cls, rows: HFDataset, path: str | Path) -> None:
        """Refuse rows, and names of files, of which [`Task.write_submission`] cannot write a submission."""
        raise ValueError(f"{cls.name} has no server that takes predictions. Remove submission; output is a file.")

    @classmethod
    def config_fields(cls, args: Any, rows: HFDataset) -> dict[str, Any]:
        """Return the fields of the model's configuration that the training rows set, such as names of classes."""
        return {}

    @classmethod
    @abstractmethod
    def build_processor(cls, args: Any, host: Mapping[str, Any], config: Any) -> Any:
        """Return the processor that is saved with the model; `host` is the recipe's group of that name."""

    @classmethod
    @abstractmethod
    def load_processor(cls, name_or_path: str) -> Any:
        """Return the processor of a saved model."""

    @classmethod
    def find_main_metric(cls, settings: Mapping[str, Any]) -> Metric:
        """Return the metric by which runs with these settings of a recipe are compared."""
        return cls.main_metric

    def suite_parts(self, suite: str, source: SuiteSource) -> list[SuitePart]:
        """
        Return the data sets of a suite of robustness, such as one for each corruption and severity. Refuse a suite
        that cannot be evaluated now, not when a part of it is built.
        """
        raise ValueError(f"suite is {suite!r}, but there are no suites for {self.name}.")

    def check_evaluation(self, rows: HFDataset, metric_for_best_model: str | None = None) -> None:
        """Refuse rows on which a metric is not defined, and a best model by a metric that is not computed."""
        return None

    def label_counts(self, rows: HFDataset) -> dict[str, int]:
        """Return how many rows have each label that the model knows, by its name; refuse rows with another label."""
        return {}

    @abstractmethod
    def example_transform(self, rows: HFDataset, split: str, training: bool, seed: int) -> ExampleTransform:
        """Return the transform from rows of a split to examples: dictionaries of tensors and numbers."""

    def dataset(self, rows: HFDataset, split: str, training: bool = False, seed: int = 0) -> Any:
        """Return the data set of a DataLoader; it keeps its `rows`. In evaluation, each example has its `row`."""
        transform = self.example_transform(rows, split, training, seed)
        if not self.args.streaming:
            return TransformedDataset(rows, transform, numbered=not training)
        if training:
            rows = rows.shuffle(seed=seed, buffer_size=self.args.shuffle_buffer_size)
        return StreamingTransformedDataset(rows, transform, repeat=training)

    def prepare(self, dataset: Any) -> None:
        """Do what the examples of a data set need once, before a training; the first process does it first."""
        return None

    def sampler(self, dataset: Any, batch_size: int, seed: int) -> torch.utils.data.Sampler | None:
        """Return the order of training examples, `batch_size` a step; `None` is a random one."""
        return None

    def collate(self, examples: list[Example]) -> Batch:
        """Return a batch, and leave the examples as they are; galleries are collated, too."""
        return torch.utils.data.default_collate(examples)

    def augment(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Change a training batch on the device. Draw only from `rng`, so that a resumed run is the same."""
        return batch

    def loss(self, args: TrainingArguments) -> Callable[..., torch.Tensor] | None:
        """
        Return `loss(outputs, labels, num_items_in_batch)` for batches that have `labels`; `None` is the model's own.
        Trainer counts the items of `labels` over all of its dimensions: use another name for soft targets.
        """
        return None

    def callbacks(self) -> list[TrainerCallback]:
        return []

    @abstractmethod
    def predict(self, model: Any, batch: Batch) -> list[Record]:
        """
        Return one JSON-able record for each example: its `row`, the prediction, and what `metrics` needs, such as the
        target and the `loss`. A batch of files has no targets. Call the model, not its submodules: it is wrapped.
        """

    @abstractmethod
    def metrics(self, records: list[Record], rows: HFDataset) -> dict[str, Any]:
        """
        Return the metrics of all records, among them `main_metric`, and `loss`, which Trainer needs. A table, a list
        of dictionaries, is not logged: `confusion_matrix` goes into files beside the results, the others into the
        results.
        """

    def evaluate(self, model: Any, dataset: Any, loop: EvaluationLoop) -> dict[str, Any]:
        """Return the metrics of a data set that [`Task.dataset`] made. A ranking over a gallery overrides this."""
        return self.metrics(loop(lambda batch: self.predict(model, batch)), dataset.rows)

    def predict_rows(self, model: Any, dataset: Any, loop: EvaluationLoop) -> list[Record]:
        """
        Return the records of rows without targets, in any order; those of rows that cannot be read have an `error`
        instead of a prediction. A search in a gallery overrides this.
        """
        return loop(lambda batch: self.predict(model, batch), dataset)

    def describe(self, record: Record) -> dict[str, Any]:
        """Describe a record in words. A list of `label` and `score`, the best first, is called `predictions`."""
        return {name: value for name, value in record.items() if name != "row"}

    def arrange(self, predictions: list[Record]) -> list[Record]:
        """Return described records in the order in which `predict` shows them; by default that of the inputs."""
        return predictions

    def plot(self, path: str | Path, rows: Sequence[Row], records: Sequence[Record], names: Sequence[str]) -> None:
        """Write a picture of rows, which have these names, with their described records; by default of images."""
        images = [
            to_rgb(decode_image(row["image"], name)[0], None, name) for row, name in zip(rows, names, strict=True)
        ]
        labels = {found["label"] for record in records for found in record["predictions"]}
        is_search = len(labels) == 1 and len(records) > 1
        headings = [f"{place}. {name}" if is_search else name for place, name in enumerate(names, start=1)]
        headings = [record.get("question", heading) for record, heading in zip(records, headings)]
        best = [record["predictions"][:NUM_DRAWN_ANSWERS] for record in records]
        plot_predictions(path, images, headings, best, labels.pop() if is_search else "")

    def write_submission(self, path: str | Path, rows: HFDataset, records: Sequence[Record]) -> None:
        """Write the described records of checked rows as a leaderboard takes them."""
        raise NotImplementedError

    def draw(self, axis: Any, batch: Batch, index: int) -> None:
        """Draw an augmented example into matplotlib's `axis`. By default, print its shapes."""
        shapes = {name: tuple(values[index].shape) for name, values in batch.items() if torch.is_tensor(values)}
        axis.text(0.5, 0.5, "\n".join(f"{name} {shape}" for name, shape in shapes.items()), ha="center", va="center")
