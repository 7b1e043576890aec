# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Shared code of the classification tasks: labels, views, top-k accuracy."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
from torch.nn import functional as F
from transformers import TrainingArguments

from hf_frozen_llm.data.arguments import DataArguments
from hf_frozen_llm.data.datasets import Example, HFDataset, Row
from hf_frozen_llm.metrics import Metric, TopKAccuracy
from hf_frozen_llm.tasks.task import Batch, Record, Task


@dataclass
class ClassificationArguments(DataArguments):
    """
    The source of labelled data, besides [`DataArguments`]. A folder of files holds `<split>/<class>/<file>`.

    Args:
        label_column (`str`, *optional*, defaults to `"label"`):
            Column of the labels: class labels, integers from 0, or strings.
        class_names (`list[str]`, *optional*):
            Names of the classes, for data without class names.
    """

    input_key: ClassVar[str]  # the key that names the column of the inputs
    evaluation_keys: ClassVar[tuple[str, ...]] = ("label_column", "class_names")

    label_column: str = "label"
    class_names: list[str] | None = None

    @property
    def input_column(self) -> str:
        return getattr(self, self.input_key)

    def __post_init__(self):
        super().__post_init__()
        if self.input_column == self.label_column:
            raise ValueError(
                f"{self.input_key} and label_column are both {self.input_column!r}; they are two columns."
            )
        if self.class_names is not None and len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"class_names holds a name twice: {self.class_names}.")


def column_keys(args: ClassificationArguments, with_targets: bool) -> list[str]:
    """Return the keys that name the columns to read."""
    return [args.input_key, *(["label_column"] if with_targets else [])]


def find_class_names(args: ClassificationArguments, rows: HFDataset) -> list[str]:
    """Return the names of the classes, in the order of their labels."""
    feature = rows.features[args.label_column] if rows.features else None
    if isinstance(feature, datasets.ClassLabel):
        if args.class_names is not None and len(args.class_names) != feature.num_classes:
            raise ValueError(
                f"class_names holds {len(args.class_names)} names, but column {args.label_column!r} has "
                f"{feature.num_classes} classes."
            )
        return args.class_names or feature.names
    if args.class_names is not None:
        return args.class_names
    if args.streaming:
        raise ValueError(
            f"Column {args.label_column!r} of {args.dataset_name} does not say which classes there are, and a stream "
            "cannot be searched for them. Set class_names."
        )
    values: set[Any] = set(rows.unique(args.label_column)) if isinstance(feature, datasets.Value) else {None}
    if all(isinstance(value, bytes) for value in values):
        return sorted(value.decode() for value in values)
    if all(isinstance(value, str) for value in values):
        return sorted(values)
    if not all(isinstance(value, int) for value in values):
        raise ValueError(
            f"{args.dataset_name}: column {args.label_column!r} must hold class labels, integers or strings in every "
            f"row, not {feature}. Set label_column to another column."
        )
    if are_ids(values):
        raise ValueError(
            f"{args.dataset_name}: column {args.label_column!r} holds {len(values)} different integers, the largest "
            f"{max(values)}: these are ids, no integers from 0. Set class_names to the ids that are classes, such as "
            f"{[str(value) for value in sorted(values)[:2]]}."
        )
    return [str(index) for index in range(max(values) + 1)]


def are_ids(values: Collection[int]) -> bool:
    """Return whether integers are ids, such as dates or WordNet's numbers, not the indices of classes."""
    return max(values) >= 1000 + 10 * len(values)


def match_labels(args: ClassificationArguments, rows: HFDataset, label2id: Mapping[str, int]) -> dict[Any, int]:
    """Map the values of the label column to the labels of the model, by the names of the classes if it has them."""
    feature = rows.features.get(args.label_column) if rows.features else None
    if isinstance(feature, datasets.ClassLabel):
        names = args.class_names or feature.names
        missing = [name for name in names if name not in label2id]
        if missing:
            raise ValueError(
                f"{args.dataset_name}: the model does not know the classes {', '.join(missing[:5])} of column "
                f"{args.label_column!r}; it knows {', '.join(list(label2id)[:5])}, …"
            )
        return {index: label2id[name] for index, name in enumerate(names)}
    by_bytes = {name.encode(): index for name, index in label2id.items()}
    indices = {index: index for index in range(len(label2id))}
    by_id = {int(name): index for name, index in label2id.items() if name.isdecimal()}
    if len(by_id) == len(label2id) > 0 and are_ids(by_id) and feature is not None:
        # Names such as "1990" may be ids in the column, or name its indices.
        if args.streaming or set(rows.unique(args.label_column)) <= set(by_id):
            indices = by_id
    return {**indices, **by_bytes, **label2id}


class ClassificationTransform(ABC):
    """
    Turn rows into inputs of a model and labels: `labels` where a row has one.

    Args:
        args ([`ClassificationArguments`]):
            Names the columns.
        split (`str`):
            Named in errors.
        processor:
            The processor that is saved with the model.
        label_ids (`dict[Any, int]`):
            The label of each value of the label column.
        seed (`int`, *optional*, defaults to 0):
            The random numbers of an example depend only on this seed, the epoch and the row, not on workers, devices
            or earlier draws. A resumed run therefore sees exactly the same examples.
    """

    def __init__(self, args: Any, split: str, processor: Any, label_ids: dict[Any, int], seed: int = 0) -> None:
        self.args = args
        self.split = split
        self.processor = processor
        self.label_ids = label_ids
        self.seed = seed

    @abstractmethod
    def __call__(self, rows: Sequence[Row], keys: Sequence[tuple[int, ...]]) -> list[Example]:
        """Return the examples of rows; see [`ExampleTransform`]."""

    def locate(self, key: tuple[int, ...]) -> str:
        return f"{self.args.dataset_name} [{self.split}], row {key[-1]}"

    def find_label(self, row: Row, key: tuple[int, ...]) -> dict[str, int]:
        """Return `{"labels": …}`, and nothing for a row without a label column."""
        if self.args.label_column not in row:
            return {}
        label = row[self.args.label_column]
        if label not in self.label_ids:
            raise ValueError(
                f"{self.locate(key)}: {self.args.label_column!r} is {label!r}, which is not one of the "
                f"{len(set(self.label_ids.values()))} classes."
            )
        return {"labels": self.label_ids[label]}


class ClassificationTask(Task):
    """A task whose rows have an input and one of several classes, which the model's `id2label` names."""

    main_metric = Metric("top1", "top-1", is_share=True)

    @classmethod
    def config_fields(cls, args: ClassificationArguments, rows: HFDataset) -> dict[str, Any]:
        names = find_class_names(args, rows)
        return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}

    def label_ids(self, rows: HFDataset) -> dict[Any, int]:
        return match_labels(self.args, rows, self.config.label2id)

    def label_counts(self, rows: HFDataset) -> dict[str, int]:
        ids, column = self.label_ids(rows), self.args.label_column
        values = Counter(rows.select_columns([column]).with_format(None)[column][:])
        if unknown := [value for value in values if value not in ids]:
            number = sum(values[value] for value in unknown)
            raise ValueError(
                f"{column!r} is not one of the {self.config.num_labels} classes in {number:,} of {len(rows):,} rows: "
                f"{', '.join(repr(value) for value in unknown[:5])}{', …' if len(unknown) > 5 else ''}."
            )
        counts = dict.fromkeys(self.config.id2label.values(), 0)
        for value, number in values.items():
            counts[self.config.id2label[ids[value]]] += number
        return counts

    def loss(self, args: TrainingArguments) -> "ClassificationLoss":
        return ClassificationLoss(args.label_smoothing_factor)

    @abstractmethod
    def views(self, batch: Batch) -> list[Batch]:
        """Return the inputs of the model in evaluation, one for each view."""

    def average(self, logits: torch.Tensor) -> torch.Tensor:
        """Combine logits of shape `(views, batch, labels)` to `(batch, labels)`."""
        return logits.mean(0)

    def predict(self, model: Any, batch: Batch) -> list[Record]:
        """
        Return for each example the five best `labels` with their `probabilities`, and its true `label` and `loss` if
        it has a label.
        """
        batch = dict(batch)
        numbers, labels = batch.pop("row").tolist(), batch.pop("labels", None)
        logits = self.average(torch.stack([model(**view)["logits"].float() for view in self.views(batch)]))
        best = logits.topk(min(5, logits.shape[-1])).indices
        probabilities = logits.softmax(-1).gather(-1, best).tolist()
        records = [
            {"row": number, "labels": indices, "probabilities": shares}
            for number, indices, shares in zip(numbers, best.tolist(), probabilities)
        ]
        if labels is None:
            return records
        losses = F.cross_entropy(logits, labels, reduction="none").tolist()
        return [
            {**record, "label": label, "loss": loss} for record, label, loss in zip(records, labels.tolist(), losses)
        ]

    def metrics(self, records: list[Record], rows: HFDataset) -> dict[str, float]:
        accuracy = TopKAccuracy(keep_in_memory=True).compute(
            predictions=[record["labels"] for record in records], references=[record["label"] for record in records]
        )
        return {"loss": float(np.mean([record["loss"] for record in records])), **accuracy}

    def describe(self, record: Record) -> dict[str, Any]:
        pairs = zip(record["labels"], record["probabilities"])
        return {"predictions": [{"label": self.config.id2label[label], "score": score} for label, score in pairs]}


class ClassificationLoss:
    """
    Cross-entropy with labels, or with the shares of all labels.

    Args:
        label_smoothing (`float`): of training; evaluation losses are not smoothed, so that they are comparable between
            runs.
    """

    def __init__(self, label_smoothing: float):
        self.label_smoothing = label_smoothing

    def __call__(self, outputs, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None):
        logits = outputs["logits"].float()
        loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=self.label_smoothing)
        return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)
