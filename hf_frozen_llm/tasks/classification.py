# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Shared code of the classification tasks: labels, views, loss, metrics."""

import json
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import datasets
import numpy as np
import torch
from torch.nn import functional as F
from transformers import TrainingArguments

from hf_frozen_llm.data.arguments import DataArguments
from hf_frozen_llm.data.datasets import Example, HFDataset, Row
from hf_frozen_llm.metrics import Metric, TopKAccuracy, classification
from hf_frozen_llm.tasks.task import Batch, Record, Task


MULTI_LABEL = "multi_label_classification"


@dataclass
class ClassificationArguments(DataArguments):
    """
    The source of labelled data, besides [`DataArguments`]. A folder of files holds `<split>/<class>/<file>`.

    Args:
        label_column (`str`, *optional*, defaults to `"label"`):
            Column of the labels: class labels, integers from 0, or strings. For a multi-label problem, lists of these,
            `[]` for a row without labels; in a table of texts, such as CSV, `cat|dog` or `["cat", "dog"]`.
        class_names (`list[str]`, *optional*):
            Names of the classes, for data without class names.
        problem_type (`"single_label_classification"` or `"multi_label_classification"`, *optional*):
            Whether a row has one label, the default, or any number of labels, each with a probability of its own.
        metrics (`list[str]`, *optional*):
            Further metrics, besides the default ones: `accuracy`, `balanced_accuracy`, `precision`, `recall`, `f1` and
            `auc`; for a multi-label problem `f1`, `f1_micro`, `precision`, `recall`, `exact_match`, `map` and `auc`.
            With any of them, the results have a table of the classes and a confusion matrix.
        class_weights (`"balanced"`, `list[float]` or `dict[str, float]`, *optional*):
            Weights of the classes in the training loss: a list in the order of the classes, or by name (1 for those
            not named); `"balanced"` weighs the rows of every class alike. For a multi-label problem, the weights of
            the rows that have the label.
        training_loss (`"cross_entropy"` or `"binary_cross_entropy"`, *optional*):
            Loss of the training with one label for each row, the cross-entropy by default; the binary one is timm's
            and DeiT III's. Evaluation losses remain cross-entropies.
    """

    input_key: ClassVar[str]  # the key that names the column of the inputs
    evaluation_keys: ClassVar[tuple[str, ...]] = ("label_column", "class_names", "metrics")

    label_column: str = "label"
    class_names: list[str] | None = None
    problem_type: Literal["single_label_classification", "multi_label_classification"] | None = None
    metrics: list[str] | None = None
    class_weights: Literal["balanced"] | list[float] | dict[str, float] | None = None
    training_loss: Literal["cross_entropy", "binary_cross_entropy"] | None = None

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
        classification.check_names(self.metrics or (), self.is_multi_label)
        given = self.class_weights
        weights = given.values() if isinstance(given, dict) else given if isinstance(given, list) else ()
        if wrong := [weight for weight in weights if not 0 <= weight < math.inf]:
            raise ValueError(f"class_weights holds {wrong[0]}; a weight must be finite, and not negative.")
        if self.is_multi_label and self.training_loss == "cross_entropy":
            raise ValueError("training_loss is 'cross_entropy', which is for one label for each row. Remove it.")
        if self.training_loss == "binary_cross_entropy" and given is not None and not self.is_multi_label:
            raise ValueError("class_weights is set, but training_loss is 'binary_cross_entropy'. Remove one of them.")

    @property
    def is_multi_label(self) -> bool:
        return self.problem_type == MULTI_LABEL

    def check_training(self) -> None:
        if self.metrics or self.is_multi_label:
            classification.check_installed()
        if self.class_weights == "balanced" and self.streaming:
            raise ValueError(
                "class_weights is 'balanced', but the rows of a stream cannot be counted. Give the weights themselves."
            )


def column_keys(args: ClassificationArguments, with_targets: bool) -> list[str]:
    """Return the keys that name the columns to read."""
    return [args.input_key, *(["label_column"] if with_targets else [])]


def find_label_feature(args: ClassificationArguments, rows: HFDataset) -> Any:
    """Return the feature of a label; `None` if a stream does not know it."""
    feature = rows.features.get(args.label_column) if rows.features else None
    if not args.is_multi_label or feature is None:
        return feature
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return feature.feature
    if isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string"):
        return feature
    raise ValueError(
        f"{args.dataset_name}: problem_type is {MULTI_LABEL!r}, but column {args.label_column!r} holds one label for "
        f"each row ({feature}). Set label_column to a column of lists (for files of a folder: of its metadata.jsonl), "
        "or remove problem_type."
    )


def read_labels(value: Any) -> list[Any]:
    """Return the labels of a row of a multi-label problem."""
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, str) and value.strip():
        value = json.loads(value) if value.lstrip().startswith("[") else [part.strip() for part in value.split("|")]
    if not isinstance(value, (list, tuple)) or None in value:
        raise ValueError(f"the labels of a row are {value!r}; they must be a list, [] for a row without labels")
    if len(set(value)) < len(value):
        raise ValueError(
            f"the labels of a row, {list(value[:10])}, hold one twice. Of vectors of zeros and ones, store the places "
            "of the ones"
        )
    return list(value)


def find_labels(args: ClassificationArguments, rows: HFDataset) -> set[Any]:
    """Return the different labels of all rows."""
    return set(list_labels(args, rows) if args.is_multi_label else rows.unique(args.label_column))


def list_labels(args: ClassificationArguments, rows: HFDataset) -> Iterable[Any]:
    """Return the labels of all rows."""
    values = rows.select_columns([args.label_column]).with_format(None)[args.label_column][:]
    if not args.is_multi_label:
        return values
    try:
        return [label for value in values for label in read_labels(value)]
    except ValueError as error:
        raise ValueError(f"{args.dataset_name}: column {args.label_column!r}: {error}.") from error


def find_class_names(args: ClassificationArguments, rows: HFDataset) -> list[str]:
    """Return the names of the classes, in the order of their labels."""
    feature = find_label_feature(args, rows)
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
    values: set[Any] = find_labels(args, rows) if isinstance(feature, datasets.Value) else {None}
    if not values:
        raise ValueError(f"{args.dataset_name}: no row has a label in column {args.label_column!r}.")
    if all(isinstance(value, bytes) for value in values):
        return sorted(value.decode() for value in values)
    if all(isinstance(value, str) for value in values):
        return sorted(values)
    if not all(isinstance(value, int) for value in values):
        raise ValueError(
            f"{args.dataset_name}: column {args.label_column!r} must hold class labels, integers or strings in every "
            f"row, not {feature}. Set label_column to another column"
            f"{'' if args.is_multi_label else f', or problem_type to {MULTI_LABEL!r} for lists of labels'}."
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
    feature = find_label_feature(args, rows)
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        raise ValueError(
            f"{args.dataset_name}: column {args.label_column!r} holds lists of labels, but the model gives each row "
            "one label. Set label_column to another column."
        )
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
        if args.streaming or find_labels(args, rows) <= set(by_id):
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

    def find_label(self, row: Row, key: tuple[int, ...]) -> dict[str, Any]:
        """Return `{"labels": …}`, and nothing for a row without a label column."""
        if self.args.label_column not in row:
            return {}
        value = row[self.args.label_column]
        try:
            labels = read_labels(value) if self.args.is_multi_label else [value]
        except ValueError as error:
            raise ValueError(f"{self.locate(key)}: {error}.") from error
        for label in labels:
            if not isinstance(label, Hashable) or label not in self.label_ids:
                raise ValueError(
                    f"{self.locate(key)}: {self.args.label_column!r} is {label!r}, which is not one of the "
                    f"{len(set(self.label_ids.values()))} classes."
                )
        ids = [self.label_ids[label] for label in labels]
        return {"labels": ids if self.args.is_multi_label else ids[0]}


class ClassificationTask(Task):
    """
    A task whose rows have an input and one of several classes, or any number of them, which the model's `id2label`
    names.
    """

    main_metric = Metric("top1", "top-1", is_share=True)

    def __init__(self, args: Any, processor: Any, config: Any):
        super().__init__(args, processor, config)
        self.is_multi_label = getattr(config, "problem_type", None) == MULTI_LABEL
        self.class_weights: torch.Tensor | None = None
        if self.is_multi_label:
            self.main_metric = classification.MULTI_LABEL_METRICS["f1"]
            self.num_shown = None

    @classmethod
    def find_main_metric(cls, settings: Mapping[str, Any]) -> Metric:
        is_multi_label = settings.get("problem_type") == MULTI_LABEL
        return classification.MULTI_LABEL_METRICS["f1"] if is_multi_label else cls.main_metric

    @property
    def metric_names(self) -> list[str]:
        """Return the names of the metrics that scikit-learn computes."""
        main = [self.main_metric.name] if self.is_multi_label else []
        return list(dict.fromkeys([*main, *(self.args.metrics or ())]))

    @property
    def depths(self) -> tuple[int, ...]:
        """Return the k of the top-k accuracies: with five classes, the best five are always right."""
        return (1, 5) if self.config.num_labels > 5 else (1,)

    @classmethod
    def config_fields(cls, args: ClassificationArguments, rows: HFDataset) -> dict[str, Any]:
        names = find_class_names(args, rows)
        fields = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
        # A published host may say otherwise.
        return {**fields, "problem_type": MULTI_LABEL if args.is_multi_label else None}

    def label_ids(self, rows: HFDataset) -> dict[Any, int]:
        return match_labels(self.args, rows, self.config.label2id)

    def label_counts(self, rows: HFDataset) -> dict[str, int]:
        ids, column = self.label_ids(rows), self.args.label_column
        values = Counter(list_labels(self.args, rows))
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

    def check_evaluation(self, rows: HFDataset, metric_for_best_model: str | None = None) -> None:
        names = self.metric_names
        if names:
            classification.check_installed()
        if {"auc", "map"} & set(names) and not self.args.streaming:
            classification.check_defined(names, self.label_counts(rows), len(rows), self.is_multi_label)
        tops = [] if self.is_multi_label else [f"top{depth}" for depth in self.depths]
        computed = ["loss", *tops, *names]
        best = (metric_for_best_model or "loss").removeprefix("eval_")
        if best not in computed:
            known = classification.MULTI_LABEL_METRICS if self.is_multi_label else classification.SINGLE_LABEL_METRICS
            fix = f"Add {best!r} to metrics" if best in known else f"It must be one of {', '.join(computed)}"
            raise ValueError(f"metric_for_best_model is {best!r}, which is not computed. {fix}.")

    def dataset(self, rows: HFDataset, split: str, training: bool = False, seed: int = 0) -> Any:
        if training and self.args.class_weights is not None:
            self.class_weights = torch.tensor(self.find_class_weights(rows, split))
        return super().dataset(rows, split, training, seed)

    def find_class_weights(self, rows: HFDataset, split: str) -> list[float]:
        """Return the weight of each class in the loss; the balanced ones are those of scikit-learn."""
        given, names = self.args.class_weights, list(self.config.id2label.values())
        if isinstance(given, dict):
            if unknown := [name for name in given if name not in names]:
                raise ValueError(
                    f"class_weights names {', '.join(unknown[:5])}, which is none of the classes: "
                    f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}."
                )
            return [given.get(name, 1.0) for name in names]
        if given != "balanced":
            if len(given) != len(names):
                raise ValueError(f"class_weights holds {len(given)} numbers, but there are {len(names)} classes.")
            return given
        counts, total = self.label_counts(rows), len(rows)
        if constant := [n for n, c in counts.items() if c == 0 or (self.is_multi_label and c == total)]:
            raise ValueError(
                f"class_weights is 'balanced', but {self.args.dataset_name} [{split}] has no rows to compare for "
                f"{', '.join(constant[:5])}. Give the weights themselves, such as {{{names[0]}: 2}}."
            )
        if self.is_multi_label:
            return [(total - count) / count for count in counts.values()]
        return [total / (len(names) * count) for count in counts.values()]

    def collate(self, examples: list[Example]) -> Batch:
        if self.is_multi_label:
            examples = [self.with_vector(example) for example in examples]
        return super().collate(examples)

    def with_vector(self, example: Example) -> Example:
        """Replace the labels of an example by 1 for each of them, and 0 for the others."""
        if "labels" not in example:
            return example
        vector = torch.zeros(self.config.num_labels)
        vector[example["labels"]] = 1
        return {**example, "labels": vector}

    def loss(self, args: TrainingArguments) -> "ClassificationLoss":
        if self.is_multi_label and args.label_smoothing_factor != 0:
            raise ValueError(
                f"label_smoothing_factor is {args.label_smoothing_factor}, but the loss of a multi-label problem is "
                "not smoothed. Remove it."
            )
        is_binary = self.args.training_loss == "binary_cross_entropy"
        return ClassificationLoss(args.label_smoothing_factor, self.class_weights, self.is_multi_label, is_binary)

    @abstractmethod
    def views(self, batch: Batch) -> list[Batch]:
        """Return the inputs of the model in evaluation, one for each view."""

    def average(self, logits: torch.Tensor) -> torch.Tensor:
        """Combine logits of shape `(views, batch, labels)` to `(batch, labels)`."""
        return logits.mean(0)

    def predict(self, model: Any, batch: Batch) -> list[Record]:
        """
        Return for each example the five best `labels` with their `probabilities`, and its true `label` and `loss` if
        it has a label. In a multi-label problem: the `scores` of all labels, and the `targets`, 1 for each true one.
        """
        batch = dict(batch)
        numbers, labels = batch.pop("row").tolist(), batch.pop("labels", None)
        logits = self.average(torch.stack([model(**view)["logits"].float() for view in self.views(batch)]))
        if self.is_multi_label:
            columns = {"row": numbers, "scores": logits.cpu().double().sigmoid().tolist()}
            if labels is not None:
                losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
                columns |= {"targets": labels.int().tolist(), "loss": losses.tolist()}
            return [dict(zip(columns, values)) for values in zip(*columns.values())]
        best = logits.topk(min(5, logits.shape[-1])).indices
        columns = {
            "row": numbers,
            "labels": best.tolist(),
            "probabilities": logits.softmax(-1).gather(-1, best).tolist(),
        }
        if labels is not None:
            losses = F.cross_entropy(logits, labels, reduction="none")
            columns |= {"label": labels.tolist(), "loss": losses.tolist()}
            if "auc" in self.metric_names:
                columns["scores"] = logits.cpu().double().softmax(-1).tolist()
        return [dict(zip(columns, values)) for values in zip(*columns.values())]

    def metrics(self, records: list[Record], rows: HFDataset) -> dict[str, Any]:
        loss, names = {"loss": float(np.mean([record["loss"] for record in records]))}, self.metric_names
        classes = list(self.config.id2label.values())
        if self.is_multi_label:
            targets, probabilities = (np.array([record[key] for record in records]) for key in ("targets", "scores"))
            self.check_counts(targets.sum(0), len(records))
            tables = classification.tabulate_multi_label(names, classes, targets, probabilities)
            return {**loss, **classification.score_multi_label(names, targets, probabilities), **tables}
        accuracy = TopKAccuracy(keep_in_memory=True).compute(
            predictions=[record["labels"] for record in records],
            references=[record["label"] for record in records],
            k=self.depths,
        )
        if not names:
            return {**loss, **accuracy}
        labels, predictions = (
            np.array(part) for part in zip(*((record["label"], record["labels"][0]) for record in records))
        )
        self.check_counts(np.bincount(labels, minlength=len(classes)), len(records))
        scores = np.array([record["scores"] for record in records]) if "auc" in names else None
        values = classification.score_single_label(names, labels, predictions, scores)
        return {**loss, **accuracy, **values, **classification.tabulate_single_label(classes, labels, predictions)}

    def check_counts(self, counts: np.ndarray, num_rows: int) -> None:
        by_name = dict(zip(self.config.id2label.values(), counts.tolist()))
        classification.check_defined(self.metric_names, by_name, num_rows, self.is_multi_label)

    def describe(self, record: Record) -> dict[str, Any]:
        """Return the five best labels as `predictions`; in a multi-label problem, all with a score of at least 0.5."""
        if self.is_multi_label:
            order = sorted(enumerate(record["scores"]), key=lambda pair: -pair[1])
            pairs = [pair for pair in order if pair[1] >= classification.THRESHOLD]
        else:
            pairs = list(zip(record["labels"], record["probabilities"]))
        return {"predictions": [{"label": self.config.id2label[label], "score": score} for label, score in pairs]}


class ClassificationLoss:
    """
    Cross-entropy with labels, or with the shares of all labels; or the binary cross-entropy of each label. The loss is
    the mean over the examples (and, if it is binary, labels), also with weights.

    Args:
        label_smoothing (`float`): of training; evaluation losses are not smoothed, to be comparable between runs.
        weights (`torch.Tensor`, *optional*): the weight of each label in training, of the rows that have it.
        is_multi_label (`bool`, *optional*, defaults to `False`): whether a row may have any number of labels.
        is_binary (`bool`, *optional*, defaults to `False`): whether it is binary with one label in each row, too.
    """

    def __init__(
        self,
        label_smoothing: float,
        weights: torch.Tensor | None = None,
        is_multi_label: bool = False,
        is_binary: bool = False,
    ):
        self.label_smoothing, self.weights = label_smoothing, weights
        self.is_multi_label, self.is_binary = is_multi_label, is_binary

    def __call__(self, outputs, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None):
        logits = outputs["logits"].float()
        weights = None if self.weights is None else self.weights.to(logits.device)
        if self.is_multi_label:
            loss = F.binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=weights, reduction="sum")
            return loss / (labels.numel() if num_items_in_batch is None else num_items_in_batch)
        number, smoothing = logits.shape[-1], self.label_smoothing
        if self.is_binary:
            targets = (labels if labels.ndim == 2 else F.one_hot(labels, number)) * (1 - smoothing)
            loss = F.binary_cross_entropy_with_logits(logits, targets + smoothing / number, reduction="sum") / number
        else:
            loss = F.cross_entropy(logits, labels, weights, reduction="sum", label_smoothing=smoothing)
        return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)
