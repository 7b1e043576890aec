# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The task of situated questions: training, evaluation, prediction, and its keys."""

import json

import numpy as np
import pytest
import torch
from tiny_runs import write_llama
from tiny_scenes import TINY_SQA3D, write_scenes
from transformers import AutoModel, AutoProcessor, TrainerState

from hf_frozen_llm import SQA3DWithLLMBlockConfig
from hf_frozen_llm.cli import main
from hf_frozen_llm.tasks import TASKS
from hf_frozen_llm.tasks.situated_question_answering import BatchNormMomentum


TASK = TASKS["situated-question-answering"]
RECIPE = """\
task: situated-question-answering
model_type: sqa3d_with_llm_block
learning_rate: 1e-3
max_steps: 2
save_strategy: "no"
eval_strategy: "no"
train_split: train
eval_split: val
"""


@pytest.fixture
def data(tmp_path):
    return write_scenes(tmp_path / "data", {"train": 12, "val": 6})


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    return str(file)


def make_task(data, split="train", **keys):
    args = TASK.arguments(dataset_name=data, num_points=40, **keys)
    rows = TASK.read(args, split)
    config = SQA3DWithLLMBlockConfig(**TASK.config_fields(args, rows))
    return TASK(args, TASK.build_processor(args, {}, config), config), rows


def test_train_evaluate_and_predict(data, recipe, tmp_path, capsys):
    run = str(tmp_path / "run")
    llm = write_llama(tmp_path / "llm")
    block = ["--llm_block.llm_name_or_path", llm, "--llm_block.layer_index", "-1"]
    main(["train", recipe, *TINY_SQA3D, *block, "--dataset_name", data, "--output_dir", run])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    metrics = results["metrics"]
    assert {"eval_em@1", "eval_em@10", "eval_refined", "eval_acc@0.5m", "eval_acc@30deg", "eval_loss"} <= set(metrics)
    assert results["config"]["object_tokens"] == "predicted"
    main(["evaluate", run, "--hide_situation", "true", "--output_file", str(tmp_path / "hidden.json")])
    evaluated = json.loads((tmp_path / "hidden.json").read_text())
    assert evaluated["metrics"]["eval_em@1"] <= 1 and "hide_situation" in json.dumps(evaluated)
    types = {row["type"]: row["questions"] for row in evaluated["first_word"]}
    assert types == {"what": 1, "is": 1, "how": 1, "can": 1, "which": 1, "others": 1}
    predicted = str(tmp_path / "answers.jsonl")
    main(["predict", run, "--dataset_name", data, "--split", "val", "--output", predicted])
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and lines[1]["question"] == "Is the chair behind me?" and len(lines[0]["pose"]) == 7
    assert {answer["label"] for answer in lines[0]["predictions"]} == {"bed", "no", "one", "right", "yes"}
    scene = tmp_path / "data" / "scannet" / "scannet_data" / "scene0000_00_aligned_vert.npy"
    capsys.readouterr()
    main(["predict", run, str(scene), "--situation", "I face the bed.", "--question", "What is on my left?"])
    assert "bed" in capsys.readouterr().out
    model, processor = AutoModel.from_pretrained(run), AutoProcessor.from_pretrained(run)
    with torch.no_grad():
        outputs = model(**processor(np.load(scene), "I face the bed.", "What is on my left?"))
    assert len(processor.post_process_answers(outputs.logits)[0]) == 5


def test_predict_counts_bad_scenes_and_draws_the_others(data, recipe, tmp_path, capsys):
    run, pictures = str(tmp_path / "run"), tmp_path / "pictures"
    flags = ["--host.object_tokens", "annotated", "--llm_block", "null"]
    main(["train", recipe, *TINY_SQA3D, *flags, "--dataset_name", data, "--output_dir", run])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["config"]["object_tokens"] == "annotated"
    scannet = tmp_path / "data" / "scannet" / "scannet_data"
    file = scannet / "scene0012_00_aligned_vert.npy"
    points = np.load(file)
    points[0, 0] = np.nan
    np.save(file, points)
    flags = ["--dataset_name", data, "--split", "val", "--plot_folder", str(pictures)]
    main(["predict", run, *flags, "--output", str(tmp_path / "answers.jsonl")])
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 2
    printed = capsys.readouterr().err
    assert "4 of 6 inputs could not be predicted" in printed and "point 0 is [nan" in printed
    assert sorted(path.name for path in pictures.iterdir()) == ["4.png", "5.png"]
    assert (pictures / "4.png").read_bytes()[:4] == b"\x89PNG"


def test_question_only(data, recipe, tmp_path):
    flags = ["--host.use_points", "false", "--host.predict_situation", "false", "--hide_situation", "true"]
    run = tmp_path / "run"
    main(
        ["train", recipe, *TINY_SQA3D, *flags, "--llm_block", "null", "--dataset_name", data, "--output_dir", str(run)]
    )
    metrics = json.loads((run / "results.json").read_text())["metrics"]
    assert 0 <= metrics["eval_em@1"] <= 1 and "eval_acc@0.5m" not in metrics


def test_examples(data, tmp_path):
    task, rows = make_task(data)
    dataset = task.dataset(rows, "train")
    batch = task.collate([dataset[0], dataset[1]])
    assert batch["points"].shape == (2, 40, 7) and batch["situation_labels"].shape == (2, 7)
    assert batch["row"].tolist() == [0, 1] and batch["labels"].argmax(1).tolist() == [
        task.config.label2id[answer] for answer in ("bed", "no")
    ]
    assert batch["labels"].sum(1).tolist() == pytest.approx([0.6, 1.0])  # "bed" occurs twice, "no" four times
    assert torch.equal(dataset[0]["points"], batch["points"][0])
    hidden, _ = make_task(data, hide_situation=True)
    assert set(hidden.dataset(rows, "train")[0]["situation"]) == {0} and any(dataset[0]["situation"])
    training = task.dataset(rows, "train", training=True)
    first = training[0]["points"]
    assert torch.equal(training[0]["points"], first)
    training.set_epoch(1)
    assert not torch.equal(training[0]["points"], first)
    fixed, _ = make_task(data, augment=False)
    still = fixed.dataset(rows, "train", training=True)[0]
    assert torch.equal(still["object_centers"], dataset[0]["object_centers"])


def test_questions_of_a_scene_share_its_points(data):
    task, rows = make_task(data, questions_per_scene=2)
    dataset = task.dataset(rows, "train", training=True)
    order = list(task.sampler(dataset, 4, seed=0))
    assert sorted(order) == list(range(12)) and order != list(range(12))
    scenes = [rows["scene_id"][row] for row in order]
    assert scenes[::2] == scenes[1::2] and list(task.sampler(dataset, 4, seed=0)) == order
    indices = [order[0], order[2], order[1], order[3]]
    examples = dataset.__getitems__(indices)
    batch = task.collate(examples)
    expected = [0, 0, 0, 0] if scenes[0] == scenes[2] else [0, 1, 0, 1]
    assert batch["scene_index"].tolist() == expected and len(batch["labels"]) == len(batch["situation_labels"]) == 4
    assert len(batch["points"]) == len(batch["object_mask"]) == len(batch["vote_labels"]) == max(expected) + 1
    alone = dataset.__getitems__(indices[:1])  # drawn by the first question of a scene
    assert torch.equal(alone[0]["points"], batch["points"][0])
    torch.testing.assert_close(alone[0]["situation_labels"], batch["situation_labels"][0])
    dataset.set_epoch(1)
    assert list(task.sampler(dataset, 4, seed=0)) != order
    assert "scene_index" not in task.collate(task.dataset(rows, "train").__getitems__([0, 1]))
    single, _ = make_task(data)
    assert single.sampler(dataset, 4, seed=0) is None


def test_all_texts_of_a_scene_are_mirrored_or_none(data):
    task, rows = make_task(data, questions_per_scene=4)
    transform = task.example_transform(rows, "train", True, seed=0)
    asked = [{**rows[0], "situation": text} for text in ("It is on my left.", "It is on my right.")]
    unmirrored = {**rows[0], "situation": "It is at my 3 o'clock."}
    sides = set()
    for epoch in range(16):
        keys = [(epoch, row) for row in range(3)]
        said = [example["situation"] for example in transform(asked, keys)]
        assert said[0] != said[1]
        sides.add(tuple(said[0]))
        still = transform([*asked, unmirrored], keys)[0]["situation"]
        assert still == task.processor.find_words(asked[0]["situation"])
    assert len(sides) == 2


def test_one_answer(data, recipe, tmp_path):
    run = str(tmp_path / "run")
    flags = ["--llm_block", "null", "--problem_type", "single_label_classification", "--questions_per_scene", "4"]
    main(["train", recipe, *TINY_SQA3D, *flags, "--dataset_name", data, "--output_dir", run])
    main(["predict", run, "--dataset_name", data, "--split", "val", "--output", str(tmp_path / "answers.jsonl")])
    for line in (tmp_path / "answers.jsonl").read_text().splitlines():
        scores = [answer["score"] for answer in json.loads(line)["predictions"]]
        assert len(scores) == 5 and sum(scores) == pytest.approx(1)
    main(["evaluate", run, "--output_file", str(tmp_path / "results.json")])
    metrics = json.loads((tmp_path / "results.json").read_text())["metrics"]
    trained = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]
    assert metrics["eval_loss"] == pytest.approx(trained["eval_loss"])


def test_unknown_answers_are_counted(data, caplog):
    task, _ = make_task(data, min_answer_count=3)
    assert set(task.config.label2id) == {"no"}
    rows = TASK.read(task.args, "val")
    task.dataset(rows, "val")
    assert "4 of 6 questions have no answer that the model can give; they are counted as wrong" in caplog.text
    assert task.label_counts(rows) == {"no": 2}
    with pytest.raises(ValueError, match="no question has an answer that the model can give: no, "):
        task.dataset(rows.select([0]), "val")
    with pytest.raises(ValueError, match="occurs 100 times"):
        make_task(data, min_answer_count=100)


def test_word_vectors(data, tmp_path):
    (tmp_path / "glove.txt").write_text("unk 1 2\nbed 3 4\nWhat 5 6\n")
    task, rows = make_task(data, word_vectors=str(tmp_path / "glove.txt"))
    assert task.config.vocab_size is None and task.config.word_embedding_size == 2
    dataset = task.dataset(rows, "train")
    batch = task.collate([dataset[0]])
    assert batch["question_embeds"][0, 0].tolist() == [5, 6] and batch["question_embeds"][0, 1].tolist() == [1, 2]


def test_momentum_of_batch_norms():
    args = TASK.arguments(
        dataset_name="data", batch_norm_momentum=0.5, batch_norm_decay=0.5, batch_norm_decay_epochs=20
    )
    callback = BatchNormMomentum(args)
    found = [callback.find_momentum(epoch) for epoch in (0, 19.99, 20, 40, 400)]
    assert found == [0.5, 0.5, 0.25, 0.125, 0.001]
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.BatchNorm2d(2))
    callback.on_epoch_begin(None, TrainerState(epoch=20.0), None, model=model)
    assert [module.momentum for module in model] == [0.25, 0.25]
    assert isinstance(TASK(args, None, None).callbacks()[0], BatchNormMomentum)
    assert TASK(TASK.arguments(dataset_name="data"), None, None).callbacks() == []


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_points": 0}, "num_points is 0"),
        ({"streaming": True}, "streaming is set, but all questions"),
        ({"batch_norm_momentum": 2.0}, "batch_norm_momentum is 2.0"),
        ({"batch_norm_decay": 0.0}, "batch_norm_decay is 0.0"),
    ],
)
def test_bad_keys(keys, message):
    with pytest.raises(ValueError, match=message):
        TASK.arguments(dataset_name="data", **keys)


def test_keys_of_predict_alone():
    with pytest.raises(ValueError, match="plot_folder is 'here', but only an evaluation uses it"):
        TASK.arguments(dataset_name="data", plot_folder="here").check_training()
    args = TASK.arguments(dataset_name="data", question="What?")
    with pytest.raises(ValueError, match="question is 'What\\?', but only `predict` uses it"):
        args.check_training()
    with pytest.raises(ValueError, match="question is not set"):
        TASK.read_files(TASK.arguments(dataset_name="data"), ["scene.npy"])
