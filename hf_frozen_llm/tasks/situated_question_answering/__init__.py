# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Situated question answering: questions about 3D scenes, asked from where an agent stands."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import datasets
import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback
from transformers.utils import logging

from hf_frozen_llm.auto import TASK_MODELS
from hf_frozen_llm.data.arguments import DataArguments
from hf_frozen_llm.data.datasets import Example, GroupedSampler, HFDataset, Row, find_local
from hf_frozen_llm.data.image_texts import refuse_empty
from hf_frozen_llm.metrics import LocalizationAccuracy, Metric, SituatedAnswerAccuracy
from hf_frozen_llm.modeling.answers import score_answers
from hf_frozen_llm.modeling.modeling_sqa3d_with_llm_block import answer_losses
from hf_frozen_llm.modeling.processing_sqa3d_with_llm_block import (
    COLOR_RANGE,
    MEAN_COLOR,
    UNKNOWN_WORD,
    SQA3DProcessor,
    split_words,
)
from hf_frozen_llm.tasks.situated_question_answering.examples import SceneQuestionTransform
from hf_frozen_llm.tasks.situated_question_answering.figures import plot_answer
from hf_frozen_llm.tasks.situated_question_answering.readers import (
    count_answers,
    list_answers,
    read_every_split,
    read_questions,
    read_word_vectors,
)
from hf_frozen_llm.tasks.situated_question_answering.scenes import find_scenes, read_alignments, to_matrix
from hf_frozen_llm.tasks.task import Batch, Record, Task


logger = logging.get_logger(__name__)

NUM_ANSWERS = 10  # of a record
NUM_PICTURES = 16
OF_SCENE = ("points", "object_", "vote_")  # the beginnings of names of tensors that belong to a scene
FEATURES = {name: datasets.Value("string") for name in ("scene_id", "situation", "question")}


@dataclass
class SceneQuestionArguments(DataArguments):
    """
    The source of questions about scenes, and their conversion to tensors, besides [`DataArguments`]. `dataset_name` is
    a folder of SQA3D's published files (splits `train`, `val`, `test`), of those of its converter, or of ScanQA's.

    Args:
        scene_folder (`str`, *optional*):
            Folder that has `scannet_data`, as ScanQA's scripts make it, or `scan_data/pcd_with_global_alignment`, as
            LEO distributes it. By default `scannet` in `dataset_name`.
        num_points (`int`, *optional*, defaults to 40000):
            Number of points of a scene that the model gets.
        use_color (`bool`, *optional*, defaults to `True`):
            Whether the model gets the colours of points.
        use_normals (`bool`, *optional*, defaults to `False`):
            Whether the model gets the normals of points.
        use_height (`bool`, *optional*, defaults to `True`):
            Whether the model gets the heights of points.
        repeat_color_normalization (`bool`, *optional*, defaults to `False`):
            Whether colours are normalised again each time a loader process reads a scene: an error in the published
            code, on whose nearly constant colours the published models were trained.
        word_vectors (`str`, *optional*):
            Text file of GloVe's vectors, which stay as they are. By default, the model learns vectors of the words
            that occur at least twice in the training split.
        max_length (`int`, *optional*, defaults to 100):
            Number of words after which a text is cut off.
        min_answer_count (`int`, *optional*, defaults to 1):
            The model can give the answers that occur so often.
        problem_type (`"multi_label_classification"` or `"single_label_classification"`, *optional*):
            The loss of the answers: the binary cross entropy of each, as published, or the cross entropy of all,
            which learns faster where a question has one answer.
        augment (`bool`, *optional*, defaults to `True`):
            Whether training scenes are mirrored, rotated by up to 5 degrees about each axis, and moved by up to 0.5 m.
        flips (`"with_text"`, `"none"` or `"published"`, *optional*, defaults to `"with_text"`):
            How scenes are mirrored: with left and right exchanged in the texts (those with words such as "o'clock" are
            not mirrored), not at all, or, as published, without a change of the texts, which are then wrong.
        questions_per_scene (`int`, *optional*, defaults to 1):
            Number of questions about a scene that follow each other in training. Those of a batch share the scene's
            points and augmentation, and the detector runs once for all of them.
        hide_situation (`bool`, *optional*, defaults to `False`):
            Whether each word of the situation is replaced by the unknown one: a baseline without the situation.
        batch_norm_momentum (`float`, *optional*):
            Weight of a new batch in the statistics of batch norms in the first epochs; 0.1 by default. The published
            code has 0.5.
        batch_norm_decay (`float`, *optional*, defaults to 0.5):
            Factor of `batch_norm_momentum` after each `batch_norm_decay_epochs`; it stays at least 0.001.
        batch_norm_decay_epochs (`int`, *optional*, defaults to 20):
            Number of epochs after which `batch_norm_momentum` is lowered.
        situation (`str`, *optional*):
            The situation in which `predict` asks about `.npy` files of points.
        question (`str`, *optional*):
            The question that `predict` asks about them.
        plot_folder (`str`, *optional*):
            New or existing folder in which `predict` and `evaluate` draw the answers to the first 16 questions, as
            `<row>.png`: the scene, the agent, the boxes of the visual tokens that are weighed most, and the scores.
    """

    evaluation_keys: ClassVar[tuple[str, ...]] = (
        "scene_folder",
        "hide_situation",
        "repeat_color_normalization",
        "situation",
        "question",
        "plot_folder",
    )

    scene_folder: str | None = None
    num_points: int = 40000
    use_color: bool = True
    use_normals: bool = False
    use_height: bool = True
    repeat_color_normalization: bool = False
    word_vectors: str | None = None
    max_length: int = 100
    min_answer_count: int = 1
    problem_type: Literal["multi_label_classification", "single_label_classification"] | None = None
    augment: bool = True
    flips: Literal["with_text", "none", "published"] = "with_text"
    questions_per_scene: int = 1
    hide_situation: bool = False
    batch_norm_momentum: float | None = None
    batch_norm_decay: float = 0.5
    batch_norm_decay_epochs: int = 20
    situation: str | None = None
    question: str | None = None
    plot_folder: str | None = None

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least_one(
            *("num_points", "max_length", "min_answer_count", "questions_per_scene", "batch_norm_decay_epochs")
        )
        if self.streaming:
            raise ValueError("streaming is set, but all questions are read before training. Remove it.")
        if self.batch_norm_momentum is not None and not 0 < self.batch_norm_momentum <= 1:
            raise ValueError(f"batch_norm_momentum is {self.batch_norm_momentum}; it must lie in (0, 1].")
        if not 0 < self.batch_norm_decay <= 1:
            raise ValueError(f"batch_norm_decay is {self.batch_norm_decay}; it must lie in (0, 1].")

    def check_training(self) -> None:
        for name, users in (("situation", "`predict`"), ("question", "`predict`"), ("plot_folder", "an evaluation")):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but only {users} uses it. Remove it.")

    def evaluation_changes(self) -> dict[str, Any]:
        return {name: True for name in ("hide_situation", "repeat_color_normalization") if getattr(self, name)}

    def root(self) -> Path:
        root = find_local(self)
        if root is None or not root.is_dir():
            raise FileNotFoundError(
                f"dataset_name is {self.dataset_name!r}, which is no folder. SQA3D's files are at "
                "https://zenodo.org/records/7792397, ScanQA's at https://github.com/ATR-DBI/ScanQA."
            )
        return root

    def find_scene_folder(self) -> Path:
        return self.root() / "scannet" if self.scene_folder is None else Path(self.scene_folder).expanduser()


class BatchNormMomentum(TrainerCallback):
    """Lower the momentum of batch norms in steps, as the published code does."""

    def __init__(self, args: SceneQuestionArguments):
        self.args = args

    def find_momentum(self, epoch: float) -> float:
        args = self.args
        steps = int(epoch + 1e-6) // args.batch_norm_decay_epochs
        return max((args.batch_norm_momentum or 0.1) * args.batch_norm_decay**steps, 0.001)

    def on_epoch_begin(self, args, state, control, model=None, **kwargs):
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.momentum = self.find_momentum(state.epoch or 0)


class SituatedQuestionAnswering(Task):
    """
    Rows have a `scene_id`, a `situation`, a `question`, its `question_id`, its `answers`, and the agent's `pose`
    (position from the middle of the scene, quaternion x, y, z, w) if it is known.
    """

    name = "situated-question-answering"
    arguments = SceneQuestionArguments
    models = {"sqa3d_with_llm_block": TASK_MODELS["sqa3d_with_llm_block"]}
    main_metric = Metric("em@1", "EM@1", is_share=True)
    suffixes = (".npy",)

    @classmethod
    def read(cls, args: SceneQuestionArguments, split: str, with_targets: bool = True) -> datasets.Dataset:
        location = f"{args.dataset_name} [{split}]"
        rows = read_questions(args.root(), split, with_targets)
        refuse_empty(location, "question", [row["question"].strip() for row in rows])
        folder = args.find_scene_folder()
        there = find_scenes(folder)
        kept = [row for row in rows if row["scene_id"] in there]
        if not kept:
            first = rows[0]["scene_id"] if rows else "none"
            raise ValueError(
                f"{location}: none of the {len(rows):,} questions is about one of the {len(there):,} scenes in "
                f"{folder}; the first is about {first}. Set scene_folder to the folder of these scenes."
            )
        if skipped := len(rows) - len(kept):
            lacking = sorted({row["scene_id"] for row in rows} - there)
            logger.warning(
                f"{location}: {skipped:,} of {len(rows):,} questions are left out: their {len(lacking):,} scenes, "
                f"such as {lacking[0]}, are not in {folder}."
            )
        scenes = sorted({row["scene_id"] for row in kept})
        aligned = read_alignments(folder, scenes)
        if unaligned := [scene for scene in scenes if scene not in aligned]:
            logger.warning(
                f"{location}: {len(unaligned):,} of {len(scenes):,} scenes, such as {unaligned[0]}, have no "
                f"axisAlignment in {folder}; poses in them are not turned."
            )
        names = [name for name in ("answers", "pose") if all(name in row for row in kept)]
        features = {**FEATURES, "question_id": datasets.Value("string")}
        known = {"answers": datasets.List(datasets.Value("string")), "pose": datasets.List(datasets.Value("float64"))}
        features |= {name: known[name] for name in names}
        columns = {name: [row[name] for row in kept] for name in features if name != "question_id"}
        columns["question_id"] = [str(row["question_id"]) for row in kept]
        return datasets.Dataset.from_dict(columns, datasets.Features(features))

    @classmethod
    def read_files(cls, args: SceneQuestionArguments, files: Sequence[str]) -> datasets.Dataset:
        if not (args.question or "").strip():
            raise ValueError("question is not set; say what to ask, as in `--question 'What is behind me?'`.")
        columns = {"scene_id": list(files)}
        columns |= {name: [getattr(args, name) or ""] * len(files) for name in ("situation", "question")}
        return datasets.Dataset.from_dict(columns, datasets.Features(FEATURES))

    @classmethod
    def check_plot(cls, rows: HFDataset) -> None:
        raise ValueError(f"{cls.name} draws a picture of each question: set --plot_folder instead of --plot.")

    @classmethod
    def config_fields(cls, args: SceneQuestionArguments, rows: HFDataset) -> dict[str, Any]:
        answers, _ = cls.find_answers(args)
        words, vectors = cls.find_words(args)
        fields: dict[str, Any] = {
            "id2label": dict(enumerate(answers)),
            "label2id": {answer: number for number, answer in enumerate(answers)},
            "num_point_features": 3 * args.use_color + 3 * args.use_normals + args.use_height,
            "problem_type": args.problem_type,
        }
        if vectors is None:
            return {**fields, "vocab_size": len(words)}
        return {**fields, "word_embedding_size": vectors.shape[1]}

    @classmethod
    def find_answers(cls, args: SceneQuestionArguments) -> tuple[list[str], list[float]]:
        """Return the answers that the model can give, and the target of each."""
        rows = read_questions(args.root(), args.train_split)
        answers, scores = list_answers(count_answers(args.root(), rows), args.min_answer_count)
        if not answers:
            raise ValueError(
                f"No answer of {args.dataset_name} occurs {args.min_answer_count} times. Lower min_answer_count."
            )
        return answers, scores

    @classmethod
    def find_words(cls, args: SceneQuestionArguments) -> tuple[list[str], np.ndarray | None]:
        """Return the words that the model knows, and their published vectors if they are given."""
        if args.word_vectors is not None:
            texts = [row[name] for row in read_every_split(args.root()) for name in ("situation", "question")]
            wanted = {word for text in texts for word in split_words(text)}
            return read_word_vectors(Path(args.word_vectors).expanduser(), wanted)
        rows = read_questions(args.root(), args.train_split)
        counts = Counter(
            word for row in rows for text in (row["situation"], row["question"]) for word in split_words(text)
        )
        return [UNKNOWN_WORD, *sorted(w for w, count in counts.items() if count > 1 and w != UNKNOWN_WORD)], None

    @classmethod
    def build_processor(cls, args: SceneQuestionArguments, host: Mapping[str, Any], config: Any) -> SQA3DProcessor:
        answers, scores = cls.find_answers(args)
        words, vectors = cls.find_words(args)
        names = ("num_points", "use_color", "use_normals", "use_height", "max_length", "problem_type")
        return SQA3DProcessor(
            words=words,
            word_vectors=vectors,
            answers=answers,
            answer_scores=scores,
            **{name: getattr(args, name) for name in names},
        )

    @classmethod
    def load_processor(cls, name_or_path: str) -> SQA3DProcessor:
        return SQA3DProcessor.from_pretrained(name_or_path)

    def label_counts(self, rows: HFDataset) -> dict[str, int]:
        """Return how many questions have each answer; those with other answers are no error."""
        counts = Counter(answer for answers in rows["answers"] for answer in answers)
        return {answer: counts[answer] for answer in self.config.label2id}

    def example_transform(self, rows: HFDataset, split: str, training: bool, seed: int) -> SceneQuestionTransform:
        is_file = "question_id" not in (rows.column_names or ())
        folder = None if is_file else self.args.find_scene_folder()
        return SceneQuestionTransform(self.args, self.processor, self.config, folder, training, seed)

    def dataset(self, rows: HFDataset, split: str, training: bool = False, seed: int = 0) -> Any:
        if not training:
            self.rows = rows  # `describe` is not told what was asked
        if "answers" in rows.column_names:
            known = set(self.config.label2id)
            unknown = sum(known.isdisjoint(answers) for answers in rows["answers"])
            if unknown == len(rows):
                raise ValueError(
                    f"{self.args.dataset_name} [{split}]: no question has an answer that the model can give: "
                    f"{', '.join(list(known)[:5])}, … Is it the data that the model was trained for?"
                )
            if unknown:
                logger.warning(
                    f"{self.args.dataset_name} [{split}]: {unknown:,} of {len(rows):,} questions have no answer that "
                    f"the model can give; {'none is right' if training else 'they are counted as wrong'}."
                )
        return super().dataset(rows, split, training, seed)

    def sampler(self, dataset: Any, batch_size: int, seed: int) -> GroupedSampler | None:
        size = self.args.questions_per_scene
        return None if size == 1 else GroupedSampler(dataset, dataset.rows["scene_id"], size, seed)

    def collate(self, examples: list[Example]) -> Batch:
        texts, batch = ("situation", "question"), {}
        left_out = {*texts}
        if "scene" in examples[0]:
            # Of a scene once, what all its questions share.
            of_scenes = {example["scene"]: example for example in examples}
            numbers = {scene: number for number, scene in enumerate(of_scenes)}
            batch["scene_index"] = torch.tensor([numbers[example["scene"]] for example in examples])
            shared = [{k: v for k, v in e.items() if k.startswith(OF_SCENE)} for e in of_scenes.values()]
            batch |= super().collate(shared)
            left_out |= {"scene", *shared[0]}
        batch |= super().collate([{k: v for k, v in example.items() if k not in left_out} for example in examples])
        if "object_mask" in batch:
            # All rows of padding of a scene are equal: one of them has the same losses as all.
            count = int(batch["object_mask"].sum(dim=1).max()) + 1
            batch |= {name: tensor[:, :count] for name, tensor in batch.items() if name.startswith("object_")}
        for name in texts:
            batch |= self.processor.collate_words(name, [example[name] for example in examples])
        return batch

    def callbacks(self) -> list[TrainerCallback]:
        return [] if self.args.batch_norm_momentum is None else [BatchNormMomentum(self.args)]

    def predict(self, model: Any, batch: Batch) -> list[Record]:
        """
        Return for each question the ten best `answers` with their `scores`, each between 0 and 1; the `situation`, the
        agent's pose, if the model finds it; and, if they are known, its true `pose` and the `loss` of the answers.
        """
        batch = dict(batch)
        numbers, labels = batch.pop("row").tolist(), batch.pop("labels", None)
        poses = batch.get("situation_labels")
        outputs = model(**batch)
        logits = outputs["logits"].float()
        best = score_answers(logits, self.config.problem_type).topk(min(NUM_ANSWERS, logits.shape[-1]))
        columns = {"row": numbers, "answers": best.indices.tolist(), "scores": best.values.tolist()}
        if outputs.get("situation") is not None:
            columns["situation"] = outputs["situation"].float().tolist()
        if poses is not None:
            columns["pose"] = poses.tolist()
        if labels is not None:
            columns["loss"] = answer_losses(logits, labels, self.config.problem_type).tolist()
        records = [dict(zip(columns, values)) for values in zip(*columns.values())]
        if self.args.plot_folder is not None and "points" in batch:
            for index, record in enumerate(records):
                if record["row"] < NUM_PICTURES:
                    self.draw_answer(batch, outputs, index, record)
        return records

    def draw_answer(self, batch: Batch, outputs: Any, index: int, record: Record) -> None:
        """Draw the answer to a question into `plot_folder`."""
        folder = Path(self.args.plot_folder or "").expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        points = batch["points"][index].float().cpu().numpy()
        names = ("object_weights", "object_mask", "box_centers", "box_sizes", "class_logits", "situation")
        found = {name: outputs[name][index].float().cpu().numpy() for name in names if outputs.get(name) is not None}
        row: Row = self.rows[record["row"]]
        plot_answer(
            folder / f"{record['row']}.png",
            points[:, :3],
            self.colors(points),
            found,
            {name: row[name] for name in ("situation", "question")},
            self.describe(record)["predictions"],
            row.get("answers") or [],
            np.array(record["pose"]) if "pose" in record else None,
        )

    def colors(self, points: np.ndarray) -> np.ndarray:
        """Return the colours of points that are inputs of the model, from 0 to 1; grey if it gets none."""
        if not self.processor.use_color:
            return np.full((len(points), 3), 0.5)
        return (points[:, 3:6] * COLOR_RANGE / 255 + np.array(MEAN_COLOR) / 255).clip(0, 1)

    def metrics(self, records: list[Record], rows: HFDataset) -> dict[str, Any]:
        """
        Return [`SituatedAnswerAccuracy`] with its tables by type, and [`LocalizationAccuracy`] if the model finds the
        agent and its pose is known.
        """
        names, asked, answers = self.config.id2label, rows["question"][:], rows["answers"][:]
        scores = SituatedAnswerAccuracy(keep_in_memory=True).compute(
            predictions=[[names[number] for number in record["answers"]] for record in records],
            references=[{"question": asked[r["row"]], "answers": answers[r["row"]]} for r in records],
        )
        located = [record for record in records if "situation" in record and "pose" in record]
        places = {}
        if located:
            places = LocalizationAccuracy(keep_in_memory=True).compute(
                predictions=[[record["situation"]] for record in located],
                references=[record["pose"] for record in located],
            )
        return {"loss": float(np.mean([record["loss"] for record in records])), **scores, **places}

    def describe(self, record: Record) -> dict[str, Any]:
        """Return what was asked where, the best answers as `predictions`, and the agent's pose if it is predicted."""
        row: Row = self.rows[record["row"]]
        known: dict[str, Any] = {
            name: row[name] for name in ("question_id", "scene_id", "situation", "question") if name in row
        }
        pairs = zip(record["answers"], record["scores"])
        predictions = [{"label": self.config.id2label[label], "score": score} for label, score in pairs]
        pose = {"pose": record["situation"]} if "situation" in record else {}
        return {**known, "predictions": predictions, **pose}

    def draw(self, axis: Any, batch: Batch, index: int) -> None:
        """Draw a scene from above, its agent as an arrow, with the words of the question."""
        if "points" in batch:
            points = batch["points"][index].float().cpu().numpy()
            colors = self.colors(points) if self.processor.use_color else points[:, 2]
            axis.scatter(points[:, 0], points[:, 1], s=1, c=colors)
            axis.set_aspect("equal")
            if "situation_labels" in batch:
                x, y, _, *quaternion = batch["situation_labels"][index].cpu().double().tolist()
                facing = -to_matrix(np.array(quaternion))[:, 0]
                axis.arrow(x, y, 0.5 * facing[0], 0.5 * facing[1], width=0.05, color="red")
        if "question_ids" in batch:
            words = batch["question_ids"][index][batch["question_mask"][index].bool()].tolist()
            axis.set_xlabel(" ".join(self.processor.words[word] for word in words))
