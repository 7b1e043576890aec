# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""A toy task: several candidate futures of a set of varying size, as in motion forecasting. It streams, too."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel, FeatureExtractionMixin, PreTrainedConfig
from transformers.utils import ModelOutput

from hf_frozen_llm import LLMBlock, LLMBlockConfig
from hf_frozen_llm.auto import TASK_MODELS
from hf_frozen_llm.data.arguments import DataArguments
from hf_frozen_llm.data.datasets import Example, HFDataset, Row, SeededLengthGroupedSampler, load_rows
from hf_frozen_llm.metrics import Metric
from hf_frozen_llm.modeling.configuration_llm_block import WithLLMBlockConfigMixin, with_value_errors
from hf_frozen_llm.modeling.pretrained_model import PreTrainedModelWithLLMBlock
from hf_frozen_llm.tasks import TASKS, Task
from hf_frozen_llm.tasks.task import Batch, Record


@with_value_errors
@strict
class ToyPointSetsConfig(WithLLMBlockConfigMixin, PreTrainedConfig):
    model_type = "toy_point_sets"

    num_channels: int = 3
    num_steps: int = 4
    num_candidates: int = 3
    hidden_size: int = 16
    num_hidden_layers: int = 2
    dropout: float = 0.1
    llm_block: LLMBlockConfig | dict | None = None

    def complete_llm_block(self) -> None:
        super().complete_llm_block()
        self.check_position()


@dataclass
class ToyPointSetsOutput(ModelOutput):
    loss: torch.Tensor | None = None
    trajectories: torch.Tensor | None = None
    scores: torch.Tensor | None = None


class ToyLayer(nn.Module):
    """Each item attends to itself and the mean of all items."""

    def __init__(self, config: ToyPointSetsConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.linear = nn.Linear(2 * config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        normed = self.norm(hidden_states)
        context = masked_mean(normed, mask)[:, None].expand_as(normed)
        return hidden_states + self.dropout(F.gelu(self.linear(torch.cat([normed, context], -1))))


class ToyHost(nn.Module):
    def __init__(self, config: ToyPointSetsConfig):
        super().__init__()
        self.embeddings = nn.Linear(config.num_channels, config.hidden_size)
        self.layers = nn.ModuleList(ToyLayer(config) for _ in range(config.num_hidden_layers))


def masked_mean(hidden_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask[..., None].to(hidden_states.dtype)
    return (hidden_states * weights).sum(1) / weights.sum(1)


def winner_takes_all(trajectories: torch.Tensor, scores: torch.Tensor, future: torch.Tensor) -> torch.Tensor:
    """Return the loss of each example: the error of the best candidate, and the cross-entropy of its score."""
    distances = (trajectories - future[:, None]).norm(dim=-1).mean(-1)
    best, winner = distances.min(1)
    return best + F.cross_entropy(scores, winner, reduction="none")


class ToyPointSetsModel(PreTrainedModelWithLLMBlock):
    """Forecast `num_candidates` trajectories `(steps, 2)` out of items `(batch, items, channels)`."""

    config: ToyPointSetsConfig
    base_model_prefix = "host"
    main_input_name = "items"

    def __init__(self, config: ToyPointSetsConfig):
        super().__init__(config)
        config.complete_llm_block()
        self.host = ToyHost(config)
        self.llm_block = None if config.llm_block is None else LLMBlock(config.llm_block)
        self.head = nn.Linear(config.hidden_size, config.num_candidates * (2 * config.num_steps + 1))
        self.post_init()

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        return {
            "items": torch.zeros(1, 6, self.config.num_channels, dtype=self.dtype),
            "mask": torch.ones(1, 6, dtype=torch.long),
        }

    def forward(self, items: torch.Tensor, mask: torch.Tensor, future: torch.Tensor | None = None, **kwargs):
        layers = [partial(layer, mask=mask) for layer in self.host.layers]
        hidden_states = self._run_layers(layers, self.host.embeddings(items.to(self.dtype)), mask)
        outputs = self.head(masked_mean(hidden_states, mask)).unflatten(-1, (self.config.num_candidates, -1))
        trajectories, scores = outputs[..., :-1].unflatten(-1, (-1, 2)), outputs[..., -1]
        loss = None if future is None else winner_takes_all(trajectories, scores, future).mean()
        return ToyPointSetsOutput(loss, trajectories, scores)


class ToyScaler(FeatureExtractionMixin):
    """The processor, which is saved with the model: the unit of its coordinates."""

    def __init__(self, scale: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def __call__(self, values: Any) -> torch.Tensor:
        return torch.tensor(values) / self.scale


@dataclass
class ToyPointSetsArguments(DataArguments):
    evaluation_keys: ClassVar[tuple[str, ...]] = ("future_column",)

    future_column: str = "future"
    scale: float = 2.0
    random_mirror: bool = False


class ItemsTransform:
    def __init__(self, args: ToyPointSetsArguments, processor: ToyScaler):
        self.args = args
        self.processor = processor

    def __call__(self, rows: Sequence[Row], keys: Sequence[tuple[int, ...]]) -> list[Example]:
        columns = {"items": "items", "future": self.args.future_column}
        return [
            {name: self.processor(row[column]) for name, column in columns.items() if column in row} for row in rows
        ]


class ToyPointSets(Task):
    """Rows have `items`, a list of lists of channels, and in `future_column` the steps `(x, y)` that follow."""

    name = "toy-point-sets"
    arguments = ToyPointSetsArguments
    models = {"toy_point_sets": ToyPointSetsModel}
    main_metric = Metric("min_fde", "minFDE", greater_is_better=False)

    @classmethod
    def read(cls, args: ToyPointSetsArguments, split: str, with_targets: bool = True) -> HFDataset:
        return load_rows(args, split).select_columns(["items", *([args.future_column] if with_targets else [])])

    @classmethod
    def config_fields(cls, args: ToyPointSetsArguments, rows: HFDataset) -> dict[str, Any]:
        row = next(iter(rows))
        return {"num_channels": len(row["items"][0]), "num_steps": len(row[args.future_column])}

    @classmethod
    def build_processor(cls, args: ToyPointSetsArguments, host: Mapping[str, Any], config: Any) -> ToyScaler:
        return ToyScaler(args.scale)

    @classmethod
    def load_processor(cls, name_or_path: str) -> ToyScaler:
        return ToyScaler.from_pretrained(name_or_path)

    def example_transform(self, rows: HFDataset, split: str, training: bool, seed: int) -> ItemsTransform:
        return ItemsTransform(self.args, self.processor)

    def sampler(self, dataset: Any, batch_size: int, seed: int) -> SeededLengthGroupedSampler:
        return SeededLengthGroupedSampler([len(items) for items in dataset.rows["items"]], batch_size, seed)

    def collate(self, examples: list[Example]) -> Batch:
        items = [example["items"] for example in examples]
        mask = [torch.ones(len(of_example), dtype=torch.long) for of_example in items]
        padded = {"items": pad_sequence(items, batch_first=True), "mask": pad_sequence(mask, batch_first=True)}
        others = [{name: value for name, value in example.items() if name != "items"} for example in examples]
        return {**padded, **super().collate(others)}

    def augment(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Mirror some scenes at the x axis; the first two channels are coordinates."""
        if not self.args.random_mirror:
            return batch
        signs = torch.from_numpy(rng.choice([-1.0, 1.0], len(batch["items"]))).float().to(batch["items"].device)
        items, future = batch["items"].clone(), batch["future"].clone()
        items[..., 1] *= signs[:, None]
        future[..., 1] *= signs[:, None]
        return {**batch, "items": items, "future": future}

    def predict(self, model: Any, batch: Batch) -> list[Record]:
        """
        Return for each example its `candidates` `(candidates, steps, 2)`, the best first, with their `probabilities`;
        with a target, also `min_fde`, `min_ade` and `loss`.
        """
        outputs = model(items=batch["items"], mask=batch["mask"])
        trajectories, scores = outputs["trajectories"].float(), outputs["scores"].float()
        order = scores.argsort(1, descending=True)
        columns = {
            "row": batch["row"],
            "candidates": self.processor.scale * trajectories.take_along_dim(order[..., None, None], 1),
            "probabilities": scores.softmax(1).gather(1, order),
        }
        if "future" in batch:
            distances = self.processor.scale * (trajectories - batch["future"][:, None]).norm(dim=-1)
            columns["min_fde"], columns["min_ade"] = distances[..., -1].amin(1), distances.mean(-1).amin(1)
            columns["loss"] = winner_takes_all(trajectories, scores, batch["future"])
        return [dict(zip(columns, values)) for values in zip(*(column.tolist() for column in columns.values()))]

    def metrics(self, records: list[Record], rows: HFDataset) -> dict[str, float]:
        names = ("min_fde", "min_ade", "loss")
        return {name: float(np.mean([record[name] for record in records])) for name in names}

    def describe(self, record: Record) -> dict[str, Any]:
        ends = (candidate[-1] for candidate in record["candidates"])
        return {f"ends at ({x:.2f}, {y:.2f})": share for (x, y), share in zip(ends, record["probabilities"])}


def write_data(folder: Path, sizes: Mapping[str, int], num_channels: int = 3) -> str:
    """Write sets of 2 to 9 items as parquet; the future continues from their mean in one of two directions."""
    folder.mkdir(parents=True)
    for seed, (split, count) in enumerate(sizes.items()):
        features = {"items": datasets.List(datasets.List(datasets.Value("float32")))}
        features["future"] = features["items"]
        rows = datasets.Dataset.from_list(list(make_rows(seed, count, num_channels)), datasets.Features(features))
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def make_rows(seed: int, count: int, num_channels: int) -> Iterator[Row]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        items = rng.normal(size=(rng.integers(2, 10), num_channels))
        start, direction = items[:, :2].mean(0), rng.choice([-1, 1])
        yield {
            "items": items.tolist(),
            "future": [list(start + step * np.array([direction, 0.5])) for step in range(4)],
        }


def add() -> None:
    """Register the task with the package and the Auto classes."""
    AutoConfig.register("toy_point_sets", ToyPointSetsConfig, exist_ok=True)
    AutoModel.register(ToyPointSetsConfig, ToyPointSetsModel, exist_ok=True)
    TASK_MODELS.update(ToyPointSets.models)
    TASKS[ToyPointSets.name] = ToyPointSets
