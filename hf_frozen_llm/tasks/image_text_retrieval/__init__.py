# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Image-text retrieval: find the captions of an image among all captions, and the image of a caption among all."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, get_args

import datasets
import numpy as np
import torch
from torch.utils.data import Subset
from transformers import TrainingArguments
from transformers.utils import logging

from hf_frozen_llm.auto import OTHER_MODELS
from hf_frozen_llm.data.datasets import Example, HFDataset, TransformedDataset, find_local
from hf_frozen_llm.data.image_texts import (
    Columns,
    ImageTextArguments,
    load_image_table,
    read_text,
    read_texts,
    refuse_empty,
)
from hf_frozen_llm.data.images import IMAGE_SUFFIXES
from hf_frozen_llm.metrics import Metric
from hf_frozen_llm.metrics.retrieval_recall import RetrievalRecall
from hf_frozen_llm.modeling.processing_meter_with_llm_block import MeterProcessor
from hf_frozen_llm.tasks.image_text_retrieval.candidates import Candidates
from hf_frozen_llm.tasks.image_text_retrieval.galleries import (
    Score,
    count_better_images,
    find_matches,
    list_captions,
    order_texts,
    rank_captions,
    rank_texts,
    score_pairs,
)
from hf_frozen_llm.tasks.image_text_retrieval.pairs import GalleryTransform, PairTransform, RetrievalLoss, merge_images
from hf_frozen_llm.tasks.image_text_retrieval.readers import is_karpathy, read_karpathy
from hf_frozen_llm.tasks.image_text_retrieval.search import (
    Backend,
    PackedTexts,
    embed_images,
    embed_texts,
    find_embedding_model,
    find_nearest,
)
from hf_frozen_llm.tasks.task import Batch, EvaluationLoop, Record, Task
from hf_frozen_llm.tasks.vision_and_language import (
    ImageTextTransform,
    build_meter_processor,
    load_meter_processor,
    pad_texts,
)


logger = logging.get_logger(__name__)

TEXTS_AT_A_TIME = 1024


@dataclass
class RetrievalArguments(ImageTextArguments):
    """
    The source of images with captions, besides [`ImageTextArguments`]. `dataset_name` may also be the JSON file of
    Flickr30k or COCO with Karpathy's splits (`train`, `val`, `test`, `restval`).

    Args:
        caption_column (`str`, *optional*, defaults to `"caption"`):
            Column of the captions, one in each row; rows of the same image are merged.
        captions_column (`str`, *optional*, defaults to `"captions"`):
            Column of lists of captions, which comes first. In a table of texts `a cat|a pet` or a list as JSON.
        num_false_texts (`int`, *optional*, defaults to 15):
            Train each caption against so many captions of other images, drawn at random.
        hard_negatives (`bool`, *optional*, defaults to `False`):
            Whether the matching loss takes the false text with the best score instead of a random one.
        pairs_per_batch (`int`, *optional*, defaults to 256):
            Score so many pairs of an image and a text at a time in evaluation: memory grows with it.
        gallery_size (`int`, *optional*):
            Evaluate in galleries of so many images, in the order of the rows, and average; 1000 is COCO's 1k protocol.
        candidates (`int`, *optional*):
            Let the whole model compare only so many candidates of a query, found by the embeddings of a model with
            `contrastive_loss_weight`, instead of all pairs. `predict` shows no others; in an evaluation, they follow
            in the order of their similarity.
        candidate_search (`str`, *optional*, defaults to `"torch"`):
            What finds the candidates: `"torch"`, or `"faiss"`, an extra (`pip install 'hf_frozen_llm[retrieval]'`).
        texts (`str` or `list[str]`, *optional*):
            The texts that `predict` compares with image files, or a `.txt` file with a text on each line: with one
            text, the files are ordered by it.
    """

    evaluation_keys: ClassVar[tuple[str, ...]] = (
        *ImageTextArguments.evaluation_keys,
        *("caption_column", "captions_column", "pairs_per_batch", "gallery_size", "texts"),
        *("candidates", "candidate_search"),
    )

    caption_column: str = "caption"
    captions_column: str = "captions"
    num_false_texts: int = 15
    hard_negatives: bool = False
    pairs_per_batch: int = 256
    gallery_size: int | None = None
    candidates: int | None = None
    candidate_search: Backend = "torch"
    texts: str | list[str] | None = None

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least_one("num_false_texts", "pairs_per_batch", "gallery_size", "candidates")
        if self.candidate_search not in get_args(Backend):
            raise ValueError(
                f"candidate_search is {self.candidate_search!r}; it must be one of {', '.join(get_args(Backend))}."
            )
        if isinstance(self.texts, str) and self.texts.endswith(".txt") and Path(self.texts).is_file():
            self.texts = [line for line in Path(self.texts).read_text(encoding="utf-8").splitlines() if line.strip()]
        if isinstance(self.texts, str):
            self.texts = [self.texts]
        if self.texts is not None and not all(text.strip() for text in (self.texts or [""])):
            raise ValueError(f"texts is {self.texts}; give at least one text, and none that is empty.")

    def check_training(self) -> None:
        if self.texts is not None:
            raise ValueError(f"texts is {self.texts}, but only `predict` uses them. Remove it.")

    def evaluation_changes(self) -> dict[str, Any]:
        changes = {name: getattr(self, name) for name in ("gallery_size", "candidates")}
        return {name: value for name, value in changes.items() if value is not None}


class ImageTextRetrieval(Task):
    """Rows have an encoded `image`, each only once, and its `captions`."""

    name = "image-text-retrieval"
    arguments = RetrievalArguments
    models = {"meter_with_llm_block": OTHER_MODELS["MeterWithLLMBlockForImageTextRetrieval"]}
    main_metric = Metric("recall@1", "recall@1", is_share=True)
    suffixes = IMAGE_SUFFIXES

    @classmethod
    def read(cls, args: RetrievalArguments, split: str, with_targets: bool = True) -> datasets.Dataset:
        location, root = f"{args.dataset_name} [{split}]", find_local(args)
        if root is not None and is_karpathy(root):
            images, columns = read_karpathy(args, root, split)
        else:
            renamed = {args.captions_column: "captions", args.caption_column: "caption"}
            images, columns = load_image_table(args, split, list(renamed))
            columns = {renamed[name]: values for name, values in columns.items()}
        if not with_targets:
            return images
        images, captions, merged = merge_images(images, cls.read_captions(args, location, columns))
        if merged and "captions" in columns:
            logger.warning(f"{location}: {merged:,} rows have an image of an earlier row; their captions are merged.")
        shared = [text for text, count in Counter(t for texts in captions for t in texts).items() if count > 1]
        if shared:
            logger.warning(
                f"{location}: {len(shared):,} captions belong to several images, the first is {shared[0]!r}; each "
                "copy counts for its own image alone."
            )
        return images.add_column("captions", captions)

    @classmethod
    def read_captions(cls, args: RetrievalArguments, location: str, columns: Columns) -> list[list[str]]:
        """Return the captions of each row."""
        if "captions" not in columns:
            if "caption" not in columns:
                raise ValueError(
                    f"{location} has neither a column {args.captions_column!r} nor {args.caption_column!r}. Set "
                    "captions_column or caption_column."
                )
            texts = [read_text(value) for value in columns["caption"]]
            refuse_empty(location, "caption", texts)
            return [[text] for text in texts]
        captions = []
        for number, value in enumerate(columns["captions"]):
            try:
                captions.append(read_texts(value))
            except ValueError as error:
                raise ValueError(f"{location}, row {number}: the captions are no list: {error}.") from error
            if not captions[-1] or not all(captions[-1]):
                raise ValueError(f"{location}, row {number}: the image has no caption, or an empty one. Remove it.")
        return captions

    @classmethod
    def read_files(cls, args: RetrievalArguments, files: Sequence[str]) -> datasets.Dataset:
        features = datasets.Features({"image": datasets.Image(decode=False)})
        return datasets.Dataset.from_dict({"image": list(files)}, features)

    @classmethod
    def build_processor(cls, args: RetrievalArguments, host: Mapping[str, Any], config: Any) -> MeterProcessor:
        def read_captions() -> list[str]:
            return [text for texts in cls.read(args, args.train_split)["captions"] for text in texts]

        return build_meter_processor(args, host, config, read_captions)

    @classmethod
    def load_processor(cls, name_or_path: str) -> MeterProcessor:
        return load_meter_processor(name_or_path)

    def check_evaluation(self, rows: HFDataset, metric_for_best_model: str | None = None) -> None:
        size = self.args.gallery_size
        if size is not None and len(rows) % size:
            raise ValueError(
                f"gallery_size is {size}, which does not divide the {len(rows):,} images of the split. Change it, or "
                "set max_eval_samples."
            )
        if self.args.candidates is not None and self.config.contrastive_loss_weight == 0:
            raise ValueError(
                f"candidates is {self.args.candidates}, but the model has no embeddings by which they are found: "
                "contrastive_loss_weight is 0. Remove candidates, or train with --host.contrastive_loss_weight 1."
            )

    def example_transform(self, rows: HFDataset, split: str, training: bool, seed: int) -> ImageTextTransform:
        location = f"{self.args.dataset_name} [{split}]"
        if not training:
            return GalleryTransform(self.args, self.processor, location)
        return PairTransform(self.args, self.processor, location, rows, seed)

    def dataset(self, rows: HFDataset, split: str, training: bool = False, seed: int = 0) -> Any:
        """Return the data set: in training an example for each caption, otherwise one for each image."""
        transform = self.example_transform(rows, split, training, seed)
        if not isinstance(transform, PairTransform):
            return TransformedDataset(rows, transform, numbered=True)
        pairs = datasets.Dataset.from_dict({"image": transform.owners, "caption": np.arange(len(transform.owners))})
        return TransformedDataset(pairs, transform, numbered=False)

    def collate(self, examples: list[Example]) -> Batch:
        """Return a batch. In training, `texts` of an image stand in a row, and `labels` mark its own as a match."""
        batch = super().collate([{name: part for name, part in e.items() if name != "texts"} for e in examples])
        if "texts" in examples[0]:
            batch |= pad_texts([text for example in examples for text in example["texts"]], self.processor)
            batch["labels"] = torch.full((len(examples), 1 + self.args.num_false_texts), -100)
            batch["labels"][:, 0] = 1
        return batch

    def augment(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """In half of the groups, let the matching loss compare the image with its first false text."""
        false = torch.from_numpy(rng.permutation(len(batch["labels"])) >= len(batch["labels"]) // 2)
        labels = batch["labels"].clone()
        false = false.to(labels.device)
        labels[:, 0] = labels[:, 0].masked_fill(false, -100)
        labels[:, 1] = labels[:, 1].masked_fill(false, 0)
        return {**batch, "labels": labels}

    def loss(self, args: TrainingArguments) -> RetrievalLoss:
        if args.label_smoothing_factor != 0:
            raise ValueError(
                f"label_smoothing_factor is {args.label_smoothing_factor}, but the losses of {self.name} are not "
                "smoothed. Remove it."
            )
        return RetrievalLoss(self.args.hard_negatives, self.config.contrastive_loss_weight)

    def evaluate(self, model: Any, dataset: Any, loop: EvaluationLoop) -> dict[str, Any]:
        """Return the metrics, in galleries of `gallery_size` images the mean of theirs."""
        size = self.args.gallery_size or len(dataset.rows)
        starts = range(0, len(dataset.rows), size)
        folds = [dataset.rows.select(range(start, min(start + size, len(dataset.rows)))) for start in starts]
        results = [
            self.evaluate_gallery(model, TransformedDataset(rows, dataset.transform, numbered=True), loop)
            for rows in folds
        ]
        return {name: float(np.mean([result[name] for result in results])) for name in results[0]}

    def evaluate_gallery(self, model: Any, gallery: TransformedDataset, loop: EvaluationLoop) -> dict[str, float]:
        """Rank all captions for each image, and all images for each caption; no table of all scores is kept."""
        captions, owners = list_captions(gallery.rows)
        texts = self.encode_all(gallery.transform, captions)
        score = self.scorer(model, texts)
        if self.args.candidates is not None:
            images = np.stack([found["embedding"] for found in loop(partial(embed_images, model), gallery)])
            embeddings = embed_texts(model, self.processor, texts, self.args.pairs_per_batch)
            both = Candidates(self.nearest(model, images, embeddings), self.nearest(model, embeddings, images), owners)
            records = loop(lambda batch: both.compare(batch, score), gallery)
            ranks = both.rank(records, images, embeddings, find_embedding_model(model).device)
            return self.summarize(ranks, records)
        own = loop(lambda batch: find_matches(batch, owners, score), gallery)
        matches = np.concatenate([record["scores"] for record in own])
        return self.metrics(loop(lambda batch: rank_captions(batch, owners, matches, score), gallery), gallery.rows)

    def metrics(self, records: list[Record], rows: HFDataset) -> dict[str, Any]:
        """
        Return recall at 1, 5 and 10 and the median rank: `text_…` of captions for an image, `image_…` of images for a
        caption, and `recall@1`, the mean of both.
        """
        ranks = {
            "image": 1 + count_better_images(records, sum(map(len, rows["captions"]))),
            "text": np.array([record["text_rank"] for record in records]),
        }
        return self.summarize(ranks, records)

    def summarize(self, ranks: dict[str, np.ndarray], records: list[Record]) -> dict[str, Any]:
        """Return the metrics of ranks; with candidates also the share of the matches that are among them."""
        results = {"loss": float(np.mean([record["loss"] for record in records]))}
        depths = sorted({1, 5, 10, self.args.candidates or 1})
        for direction, of_direction in ranks.items():
            found = RetrievalRecall(keep_in_memory=True).compute(predictions=of_direction, k=depths)
            results |= {f"{direction}_{name}": value for name, value in found.items()}
        results["recall@1"] = (results["image_recall@1"] + results["text_recall@1"]) / 2
        return results

    def encode_all(self, transform: Any, texts: Sequence[str]) -> PackedTexts:
        """Return the tokens of many texts."""
        parts = (texts[start : start + TEXTS_AT_A_TIME] for start in range(0, len(texts), TEXTS_AT_A_TIME))
        return PackedTexts(ids for part in parts for ids in transform.encode_texts(part))

    def scorer(self, model: Any, texts: Sequence[torch.Tensor]) -> Score:
        """Return the function that scores images and the texts of these numbers by the whole model."""

        def score(batch: Batch, numbers: Sequence[int]) -> np.ndarray:
            chosen = [texts[number] for number in numbers]
            return score_pairs(model, self.processor, batch, chosen, self.args.pairs_per_batch)

        return score

    def nearest(self, model: Any, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        """Return the numbers of the candidates of each query."""
        device = find_embedding_model(model).device
        return find_nearest(queries, gallery, self.args.candidates, self.args.candidate_search, device)

    def predict(self, model: Any, batch: Batch) -> list[Record]:
        """Return for each image the order of the `texts`, the best one first, with their scores between 0 and 1."""
        texts = self.encode_all(self.query_transform(), self.args.texts)
        scores = score_pairs(model, self.processor, batch, texts, self.args.pairs_per_batch)
        return [order_texts(row, np.arange(len(texts)), part) for row, part in zip(batch["row"].tolist(), scores)]

    def query_transform(self) -> GalleryTransform:
        if self.args.texts is None:
            raise ValueError("texts is not set; say what to look for, as in `--texts 'a cat on a sofa'`.")
        return GalleryTransform(self.args, self.processor, "texts")

    def predict_rows(self, model: Any, dataset: Any, loop: EvaluationLoop) -> list[Record]:
        """
        Compare all images with all texts; with `candidates`, only the images that are most similar to a single text,
        or each image with those of several texts that are most similar to it.
        """
        if self.args.candidates is None:
            return super().predict_rows(model, dataset, loop)
        texts = self.encode_all(self.query_transform(), self.args.texts)
        queries = embed_texts(model, self.processor, texts, self.args.pairs_per_batch)
        if len(texts) > 1:
            score = self.scorer(model, texts)

            def compare(batch: Batch) -> list[Record]:
                images = np.stack([record["embedding"] for record in embed_images(model, batch)])
                return rank_texts(batch, self.nearest(model, images, queries), score)

            return loop(compare, dataset)
        records = loop(partial(embed_images, model), dataset)
        failures = [record for record in records if "error" in record]
        images = [record for record in records if "error" not in record]
        if not images:
            return failures
        (nearest,) = self.nearest(model, queries, np.stack([record["embedding"] for record in images]))
        candidates = Subset(dataset, sorted(images[number]["row"] for number in nearest))
        return [*loop(lambda batch: self.predict(model, batch), candidates), *failures]

    def describe(self, record: Record) -> dict[str, Any]:
        texts = [self.args.texts[number] for number in record["texts"]]
        return {"predictions": [{"label": text, "score": score} for text, score in zip(texts, record["scores"])]}

    def arrange(self, predictions: list[Record]) -> list[Record]:
        if len(self.args.texts or ()) != 1:
            return predictions
        return sorted(predictions, key=lambda found: -found["predictions"][0]["score"])
