# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""A toy task: retrieval between two galleries, whose pairs a scorer ranks. It does not stream."""

from collections.abc import Mapping, Sequence
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
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.utils import ModelOutput

from hf_frozen_llm import LLMBlock, LLMBlockConfig
from hf_frozen_llm.auto import TASK_MODELS
from hf_frozen_llm.data.arguments import DataArguments
from hf_frozen_llm.data.datasets import Example, HFDataset, Row, TransformedDataset, load_rows
from hf_frozen_llm.metrics import Metric
from hf_frozen_llm.modeling.configuration_llm_block import WithLLMBlockConfigMixin, with_value_errors
from hf_frozen_llm.modeling.pretrained_model import PreTrainedModelWithLLMBlock
from hf_frozen_llm.tasks import TASKS, Task
from hf_frozen_llm.tasks.task import Batch, EvaluationLoop, Record


SIDES = ("left", "right")


@with_value_errors
@strict
class ToyRetrievalConfig(WithLLMBlockConfigMixin, PreTrainedConfig):
    model_type = "toy_retrieval"

    num_channels: int = 4
    hidden_size: int = 16
    num_hidden_layers: int = 1
    dropout: float = 0.1
    llm_block: LLMBlockConfig | dict | None = None

    def complete_llm_block(self) -> None:
        super().complete_llm_block()
        self.check_position()


@dataclass
class ToyRetrievalOutput(ModelOutput):
    loss: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    left_embeds: torch.Tensor | None = None
    right_embeds: torch.Tensor | None = None


class ToyHost(nn.Module):
    def __init__(self, config: ToyRetrievalConfig):
        super().__init__()
        width = config.hidden_size
        self.embeddings = nn.ModuleDict({side: nn.Linear(config.num_channels, width) for side in SIDES})
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Dropout(config.dropout))
            for _ in range(config.num_hidden_layers)
        )


class ToyRetrievalModel(PreTrainedModelWithLLMBlock):
    """
    Encode items `(batch, tokens, channels)` of both sides with one host and block, and score pairs of encodings.
    """

    config: ToyRetrievalConfig
    base_model_prefix = "host"
    main_input_name = "left"

    def __init__(self, config: ToyRetrievalConfig):
        super().__init__(config)
        config.complete_llm_block()
        self.host = ToyHost(config)
        self.llm_block = None if config.llm_block is None else LLMBlock(config.llm_block)
        self.scorer = nn.Linear(2 * config.hidden_size, 1)
        self.post_init()

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        return {side: torch.zeros(1, 5, self.config.num_channels, dtype=self.dtype) for side in SIDES}

    def encode(self, items: torch.Tensor, side: str) -> torch.Tensor:
        hidden_states = self.host.embeddings[side](items.to(self.dtype))
        return self._run_layers(self.host.layers, hidden_states).mean(1)

    def score(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Return the scores `(batch, candidates)` of `left (batch, width)` and `right (… , candidates, width)`."""
        left, right = left.to(self.dtype)[:, None], right.to(self.dtype)
        return self.scorer(torch.cat([left * right, (left - right) ** 2], -1)).squeeze(-1)

    def forward(
        self, left=None, right=None, negatives=None, left_embeds=None, right_embeds=None, **kwargs
    ) -> ToyRetrievalOutput:
        """Give `negatives (batch, negatives, tokens, channels)` for a loss; encodings of items skip the encoder."""
        left_embeds = self.encode(left, "left") if left is not None else left_embeds
        right_embeds = self.encode(right, "right") if right is not None else right_embeds
        scores = loss = None
        if negatives is not None:
            others = self.encode(negatives.flatten(0, 1), "right").unflatten(0, negatives.shape[:2])
            scores = self.score(left_embeds, torch.cat([right_embeds[:, None], others], 1))
            loss = F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long, device=scores.device))
        elif left_embeds is not None and right_embeds is not None:
            scores = self.score(left_embeds, right_embeds)
        return ToyRetrievalOutput(loss, scores, left_embeds, right_embeds)


@dataclass
class ToyRetrievalArguments(DataArguments):
    evaluation_keys: ClassVar[tuple[str, ...]] = ("pairs_per_chunk",)

    num_negatives: int = 3
    pairs_per_chunk: int = 20

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least_one("num_negatives", "pairs_per_chunk")
        if self.streaming:
            raise ValueError("streaming is set, but negatives and galleries need random access. Remove it.")


class PairTransform:
    """Turn pairs into both items, and draw negatives from all `rows` of the data set if given."""

    def __init__(self, rows: datasets.Dataset | None, num_negatives: int, seed: int):
        self.rows = rows
        self.num_negatives = num_negatives
        self.seed = seed
        self.left_ids = None if rows is None else np.array(rows["left_id"])

    def __call__(self, rows: Sequence[Row], keys: Sequence[tuple[int, ...]]) -> list[Example]:
        examples = [{side: torch.tensor(row[side]) for side in SIDES} for row in rows]
        if self.rows is not None:
            for example, row, key in zip(examples, rows, keys):
                others = np.flatnonzero(self.left_ids != row["left_id"])
                chosen = np.random.default_rng((self.seed, *key)).choice(others, self.num_negatives)
                example["negatives"] = torch.tensor(self.rows[chosen]["right"])
        return examples


class ToyRetrieval(Task):
    """Rows are pairs of `left` and `right` items; an item has a number in all of its rows, `left_id` or `right_id`."""

    name = "toy-retrieval"
    arguments = ToyRetrievalArguments
    models = {"toy_retrieval": ToyRetrievalModel}
    main_metric = Metric("recall_at_1", "recall@1", is_share=True)

    @classmethod
    def read(cls, args: ToyRetrievalArguments, split: str, with_targets: bool = True) -> HFDataset:
        return load_rows(args, split)

    @classmethod
    def config_fields(cls, args: ToyRetrievalArguments, rows: HFDataset) -> dict[str, Any]:
        return {"num_channels": len(rows[0]["left"][0])}

    @classmethod
    def build_processor(cls, args: ToyRetrievalArguments, host: Mapping[str, Any], config: Any) -> None:
        return None

    @classmethod
    def load_processor(cls, name_or_path: str) -> None:
        return None

    def example_transform(self, rows: HFDataset, split: str, training: bool, seed: int) -> PairTransform:
        return PairTransform(rows if training else None, self.args.num_negatives, seed)

    def dataset(self, rows: HFDataset, split: str, training: bool = False, seed: int = 0) -> Any:
        if not training:
            self.candidates = rows  # `predict` is not told what it is to choose from
        return super().dataset(rows, split, training, seed)

    def gallery(self, rows: HFDataset, side: str) -> TransformedDataset:
        """Return the items of a side, each once, by number."""
        _, first = np.unique(rows[f"{side}_id"], return_index=True)
        return TransformedDataset(rows.select(first), PairTransform(None, 0, 0), numbered=True)

    def encode(self, model: Any, side: str, batch: Batch) -> list[Record]:
        embeds = model(**{side: batch[side]})[f"{side}_embeds"]
        return [
            {"row": row, "embeds": embed} for row, embed in zip(batch["row"].tolist(), embeds.float().cpu().numpy())
        ]

    def score(self, model: Any, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Return the scores of all pairs, of a bounded number at a time."""
        size = max(1, self.args.pairs_per_chunk // len(left))
        chunks = [model(left_embeds=left, right_embeds=chunk)["scores"].float() for chunk in right.split(size)]
        return torch.cat(chunks, 1)

    def evaluate(self, model: Any, dataset: Any, loop: EvaluationLoop) -> dict[str, float]:
        rows = dataset.rows
        left, right = (
            torch.from_numpy(np.stack([record["embeds"] for record in loop(partial(self.encode, model, side), items)]))
            for side, items in ((side, self.gallery(rows, side)) for side in SIDES)
        )

        def score(batch: Batch) -> list[Record]:
            device = batch["row"].device
            scores = self.score(model, left.to(device)[batch["row"]], right.to(device))
            return [{"row": row, "scores": of_row} for row, of_row in zip(batch["row"].tolist(), scores.tolist())]

        return self.metrics(loop(score, [{"row": number} for number in range(len(left))]), rows)

    def metrics(self, records: list[Record], rows: HFDataset) -> dict[str, float]:
        """`records` hold the `scores` of an item on the left and all on the right."""
        scores = torch.tensor([record["scores"] for record in records])
        left, right = (torch.from_numpy(np.unique(rows[f"{side}_id"], return_inverse=True)[1]) for side in SIDES)
        is_pair = torch.zeros(scores.shape, dtype=torch.bool).index_put((left, right), torch.tensor(True))
        results = {"loss": -scores.log_softmax(1)[left, right].mean().item()}
        for name, (table, matches) in {"left": (scores, is_pair), "right": (scores.T, is_pair.T)}.items():
            for k in (1, 5):
                best = table.topk(min(k, table.shape[1])).indices
                results[f"{name}_recall_at_{k}"] = matches.gather(1, best).any(1).float().mean().item()
        for k in (1, 5):
            results[f"recall_at_{k}"] = (results[f"left_recall_at_{k}"] + results[f"right_recall_at_{k}"]) / 2
        return results

    def predict(self, model: Any, batch: Batch) -> list[Record]:
        """Return for each row the `match` of its left item: the number of the best one of the split on the right."""
        gallery = self.gallery(self.candidates, "right")
        items = torch.stack([gallery[index]["right"] for index in range(len(gallery))]).to(batch["left"].device)
        right = torch.cat([model(right=chunk)["right_embeds"] for chunk in items.split(len(batch["left"]))])
        scores, best = self.score(model, model(left=batch["left"])["left_embeds"], right).max(1)
        found = zip(batch["row"].tolist(), best.tolist(), scores.tolist())
        return [{"row": row, "match": gallery.rows[index]["right_id"], "score": score} for row, index, score in found]


def write_data(folder: Path, sizes: Mapping[str, int], num_channels: int = 4) -> str:
    """Write pairs as parquet: each item on the left has two on the right, which are noisy images of it."""
    folder.mkdir(parents=True)
    image = np.random.default_rng(7).normal(size=(num_channels, num_channels))
    for seed, (split, count) in enumerate(sizes.items()):
        rng = np.random.default_rng(seed)
        ids = rng.permutation(count)  # in no order
        left = rng.normal(size=((count + 1) // 2, 5, num_channels))[ids // 2]
        right = left @ image + 0.1 * rng.normal(size=left.shape)
        columns = {"left": left.tolist(), "right": right.tolist(), "left_id": ids // 2, "right_id": ids}
        datasets.Dataset.from_dict(columns).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def add() -> None:
    """Register the task with the package and the Auto classes."""
    AutoConfig.register("toy_retrieval", ToyRetrievalConfig, exist_ok=True)
    AutoModel.register(ToyRetrievalConfig, ToyRetrievalModel, exist_ok=True)
    TASK_MODELS.update(ToyRetrieval.models)
    TASKS[ToyRetrieval.name] = ToyRetrieval
