# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Visual question answering: questions about images, whose answers are classes."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
from torch.nn import functional as F
from transformers.utils import logging

from hf_frozen_llm.auto import TASK_MODELS
from hf_frozen_llm.data.datasets import Example, HFDataset, Row, find_local
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
from hf_frozen_llm.metrics.answers import MIN_ANSWERS, list_answers, normalize_answer, score_answer, soft_scores
from hf_frozen_llm.metrics.vqa_accuracy import tabulate
from hf_frozen_llm.modeling.processing_meter_with_llm_block import MeterProcessor
from hf_frozen_llm.tasks.task import Batch, Record, Task
from hf_frozen_llm.tasks.vision_and_language import (
    ImageTextTransform,
    build_meter_processor,
    load_meter_processor,
    pad_texts,
)
from hf_frozen_llm.tasks.visual_question_answering.readers import (
    SHAPES_IMAGES,
    VQA_QUESTIONS,
    has_files,
    read_shapes,
    read_vqa,
)


logger = logging.get_logger(__name__)

TYPES = ("question_type", "answer_type")


@dataclass
class QuestionArguments(ImageTextArguments):
    """
    The source of questions about images, besides [`ImageTextArguments`]. `dataset_name` may also be a folder of VQAv2
    (splits `train2014`, `val2014`, `test2015`, `test-dev2015`) or of SHAPES (`train.small`, `val`, `test`).

    Args:
        question_column (`str`, *optional*, defaults to `"question"`):
            Column of the questions.
        answer_column (`str`, *optional*, defaults to `"answer"`):
            Column of the answers, one for each question; it decides which answers are listed.
        answers_column (`str`, *optional*, defaults to `"answers"`):
            Column of lists: the answers of several annotators. In a table of texts `cat|dog` or `["cat", "dog"]`.
        min_answer_count (`int`, *optional*, defaults to 1):
            The model can give the answers that so many questions have; METER's rule for VQAv2 is 9.
        question_only (`bool`, *optional*, defaults to `False`):
            Whether all images are replaced by a grey one: a baseline that shows what the questions alone tell.
        question (`str`, *optional*):
            The question that `predict` asks about image files.
    """

    evaluation_keys: ClassVar[tuple[str, ...]] = (
        *ImageTextArguments.evaluation_keys,
        *("question_column", "answer_column", "answers_column", "question_only", "question"),
    )

    question_column: str = "question"
    answer_column: str = "answer"
    answers_column: str = "answers"
    min_answer_count: int = 1
    question_only: bool = False
    question: str | None = None

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least_one("min_answer_count")

    def check_training(self) -> None:
        if self.question is not None:
            raise ValueError(f"question is {self.question!r}, but only `predict` asks it. Remove it.")


def find_targets(answers: Sequence[str], answer_ids: Mapping[str, int]) -> dict[int, float]:
    """
    Return the ids of the listed answers of a question, with their scores: METER's for several annotators (at least
    four), and 1 for each of fewer answers.
    """
    if len(answers) >= MIN_ANSWERS:
        return soft_scores(answers, answer_ids)
    listed = (answer if answer in answer_ids else normalize_answer(answer) for answer in answers)
    return {answer_ids[answer]: 1.0 for answer in listed if answer in answer_ids}


def score_prediction(prediction: str, answers: Sequence[str]) -> float:
    """Return VQA accuracy for at least four annotators, and otherwise whether the answer is one of theirs."""
    if len(answers) >= MIN_ANSWERS:
        return score_answer(prediction, answers)
    return float(prediction in answers or prediction in map(normalize_answer, answers))


class QuestionTransform(ImageTextTransform):
    """
    Turn rows into examples; see [`ImageTextTransform`] for the other arguments.

    Args:
        answer_ids (`dict[str, int]`):
            The id of each listed answer.
    """

    def __init__(self, args: QuestionArguments, processor: MeterProcessor, location: str, answer_ids: dict[str, int]):
        super().__init__(args, processor, location)
        self.answer_ids, self.question_only = answer_ids, args.question_only

    def __call__(self, rows: Sequence[Row], keys: Sequence[tuple[int, ...]]) -> list[Example]:
        numbers = [key[-1] for key in keys]
        for row, number in zip(rows, numbers):
            if not row["question"]:
                raise ValueError(f"{self.location}, row {number}: the question is empty.")
        if self.question_only:
            side = self.processor.image_processor.size["shortest_edge"]
            images = torch.zeros(len(rows), 3, side, side)
        else:
            images = self.encode_images(rows, numbers)
        texts = self.encode_texts([row["question"] for row in rows])
        examples: list[Example] = [{"pixel_values": image, "text": text} for image, text in zip(images, texts)]
        for row, example in zip(rows, examples):
            if "answers" in row:
                example["labels"] = torch.zeros(len(self.answer_ids))
                for label, score in find_targets(row["answers"], self.answer_ids).items():
                    example["labels"][label] = score
        return examples


class VisualQuestionAnswering(Task):
    """
    Rows have an encoded `image`, a `question`, the annotators' `answers`, and the one `answer` by which answers are
    listed; besides, if known, `question_type`, `answer_type` and `question_id`.
    """

    name = "visual-question-answering"
    arguments = QuestionArguments
    models = {"meter_with_llm_block": TASK_MODELS["meter_with_llm_block"]}
    main_metric = Metric("accuracy", "accuracy", is_share=True)
    suffixes = IMAGE_SUFFIXES

    @classmethod
    def read(cls, args: QuestionArguments, split: str, with_targets: bool = True) -> datasets.Dataset:
        location, root = f"{args.dataset_name} [{split}]", find_local(args)
        if root is not None and has_files(root, split, VQA_QUESTIONS):
            images, columns = read_vqa(args, root, split, with_targets)
        elif root is not None and has_files(root, split, SHAPES_IMAGES):
            images, columns = read_shapes(root, split)
        else:
            renamed = {args.question_column: "question", args.answer_column: "answer", args.answers_column: "answers"}
            names = {**{name: name for name in (*TYPES, "question_id")}, **renamed}
            images, columns = load_image_table(args, split, list(names))
            columns = {names[name]: values for name, values in columns.items()}
        if "question" not in columns:
            raise ValueError(
                f"{location} has no column {args.question_column!r}. Set question_column to the questions."
            )
        rows = {name: columns[name] for name in (*TYPES, "question_id") if name in columns}
        rows["question"] = [read_text(question) for question in columns["question"]]
        if with_targets:
            refuse_empty(location, "question", rows["question"])
            rows |= cls.read_answers(args, location, columns)
        for name, values in rows.items():
            images = images.add_column(name, values)
        return images

    @classmethod
    def read_answers(cls, args: QuestionArguments, location: str, columns: Columns) -> Columns:
        """Return `answers`, those of all annotators, and `answer`, by default the most frequent one."""
        if not {"answer", "answers"} & set(columns):
            raise ValueError(
                f"{location} has neither a column {args.answer_column!r} nor {args.answers_column!r}. Set "
                "answer_column or answers_column."
            )
        if "answers" not in columns:
            answer = [read_text(value) for value in columns["answer"]]
            refuse_empty(location, "answer", answer)
            return {"answer": answer, "answers": [[text] for text in answer]}
        answers = []
        for number, value in enumerate(columns["answers"]):
            try:
                answers.append(read_texts(value))
            except ValueError as error:
                raise ValueError(f"{location}, row {number}: the answers are no list: {error}.") from error
            if not answers[-1]:
                raise ValueError(f"{location}, row {number}: the question has no answer. Remove these rows.")
        if "answer" in columns:
            return {"answer": [read_text(value) for value in columns["answer"]], "answers": answers}
        return {"answer": [Counter(texts).most_common(1)[0][0] for texts in answers], "answers": answers}

    @classmethod
    def read_files(cls, args: QuestionArguments, files: Sequence[str]) -> datasets.Dataset:
        if not (args.question or "").strip():
            raise ValueError("question is not set; say what to ask, as in `--question 'What is this?'`.")
        features = datasets.Features({"image": datasets.Image(decode=False), "question": datasets.Value("string")})
        return datasets.Dataset.from_dict({"image": list(files), "question": [args.question] * len(files)}, features)

    @classmethod
    def check_submission(cls, rows: HFDataset, path: str | Path) -> None:
        if "question_id" not in rows.column_names:
            raise ValueError(
                "A submission names each question by its question_id, but there is no column question_id. Give a "
                "split with one, such as those of VQAv2."
            )
        ids = rows["question_id"][:]
        if bad := [row for row, value in enumerate(ids) if not str(value).isdecimal()]:
            raise ValueError(
                f"row {bad[0]}: question_id is {ids[bad[0]]!r} ({len(bad):,} of {len(ids):,} are no whole numbers). "
                "A submission needs the numbers of the server."
            )
        repeated = [(value, count) for value, count in Counter(map(int, ids)).items() if count > 1]
        if repeated:
            raise ValueError(
                f"question_id {repeated[0][0]} belongs to {repeated[0][1]} questions ({len(repeated):,} ids occur "
                "more than once). A submission answers each question once."
            )

    @classmethod
    def config_fields(cls, args: QuestionArguments, rows: HFDataset) -> dict[str, Any]:
        if any(len(answers) >= MIN_ANSWERS for answers in rows["answers"]):
            names = list_answers(rows["answer"], args.min_answer_count)
        else:
            counts = Counter(rows["answer"])
            names = [answer for answer, count in counts.items() if count >= args.min_answer_count]
        if not names:
            raise ValueError(
                f"No answer of {args.dataset_name} occurs {args.min_answer_count} times. Lower min_answer_count."
            )
        return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}

    @classmethod
    def build_processor(cls, args: QuestionArguments, host: Mapping[str, Any], config: Any) -> MeterProcessor:
        answers = [config.id2label[index] for index in range(config.num_labels)]
        return build_meter_processor(args, host, config, lambda: cls.read(args, args.train_split)["question"], answers)

    @classmethod
    def load_processor(cls, name_or_path: str) -> MeterProcessor:
        return load_meter_processor(name_or_path)

    def label_counts(self, rows: HFDataset) -> dict[str, int]:
        """Return how many questions have each listed answer; the others are no error, see [`Task.dataset`]."""
        ids, names = self.config.label2id, self.config.id2label
        counts = Counter(label for answers in rows["answers"] for label in find_targets(answers, ids))
        return {name: counts[label] for label, name in names.items()}

    def example_transform(self, rows: HFDataset, split: str, training: bool, seed: int) -> QuestionTransform:
        return QuestionTransform(
            self.args, self.processor, f"{self.args.dataset_name} [{split}]", dict(self.config.label2id)
        )

    def dataset(self, rows: HFDataset, split: str, training: bool = False, seed: int = 0) -> Any:
        """Return the data set; questions of which no answer is listed are left out of training, as in METER."""
        if not training:
            self.rows = rows  # `describe` is not told what was asked
        if "answers" in rows.column_names:
            ids = self.config.label2id
            kept = [row for row, answers in enumerate(rows["answers"]) if find_targets(answers, ids)]
            if unknown := len(rows) - len(kept):
                consequence = "are left out of training" if training else "are counted as wrong"
                logger.warning(
                    f"{self.args.dataset_name} [{split}]: {unknown:,} of {len(rows):,} questions have no answer that "
                    f"the model can give; they {consequence}."
                )
            if not kept:
                raise ValueError(
                    f"{self.args.dataset_name} [{split}]: no question has an answer that the model can give: "
                    f"{', '.join(list(ids)[:5])}, … Is it the data that the model was trained for?"
                )
            rows = rows.select(kept) if training and unknown else rows
        return super().dataset(rows, split, training, seed)

    def collate(self, examples: list[Example]) -> Batch:
        batch = pad_texts([example["text"] for example in examples], self.processor)
        return {
            **batch,
            **super().collate([{name: part for name, part in e.items() if name != "text"} for e in examples]),
        }

    def predict(self, model: Any, batch: Batch) -> list[Record]:
        """
        Return for each question the five best `answers` with their `scores`, each between 0 and 1, and, if its answers
        are known, the `loss`.
        """
        batch = dict(batch)
        numbers, labels = batch.pop("row").tolist(), batch.pop("labels", None)
        logits = model(**batch)["logits"].float()
        best = logits.topk(min(5, logits.shape[-1]))
        columns = {"row": numbers, "answers": best.indices.tolist(), "scores": best.values.sigmoid().tolist()}
        if labels is not None:
            losses = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").sum(1)
            columns["loss"] = losses.tolist()
        return [dict(zip(columns, values)) for values in zip(*columns.values())]

    def metrics(self, records: list[Record], rows: HFDataset) -> dict[str, Any]:
        """Return the `accuracy`, see [`score_prediction`], and its tables by type, if the rows have types."""
        names, answers = self.config.id2label, rows["answers"][:]
        scores = [score_prediction(names[record["answers"][0]], answers[record["row"]]) for record in records]
        tables = {}
        for name in TYPES:
            if name in rows.column_names:
                values = rows[name][:]
                tables[f"{name}s"] = tabulate([str(values[record["row"]]) for record in records], scores)
        loss = float(np.mean([record["loss"] for record in records]))
        return {"loss": loss, "accuracy": float(np.mean(scores)), **tables}

    def describe(self, record: Record) -> dict[str, Any]:
        """Return the `question`, with its `question_id` if known, and the five best answers as `predictions`."""
        row, names = self.rows[record["row"]], self.config.id2label
        known = {name: row[name] for name in ("question_id", "question") if name in row}
        pairs = zip(record["answers"], record["scores"])
        return {**known, "predictions": [{"label": names[label], "score": score} for label, score in pairs]}

    def write_submission(self, path: str | Path, rows: HFDataset, records: Sequence[Record]) -> None:
        """Write the `question_id` and the best `answer` of each question."""
        answers = [{"question_id": int(r["question_id"]), "answer": r["predictions"][0]["label"]} for r in records]
        Path(path).write_text(json.dumps(answers, ensure_ascii=False), encoding="utf-8")

    def draw(self, axis: Any, batch: Batch, index: int) -> None:
        processor = self.processor.image_processor
        mean, std = (np.asarray(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
        pixels = batch["pixel_values"][index].float().cpu().numpy() * std + mean
        axis.imshow(pixels.transpose(1, 2, 0).clip(0, 1))
        axis.set_xlabel(self.processor.tokenizer.decode(batch["input_ids"][index], skip_special_tokens=True))
