# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Questions about images: readers, listed answers, metrics, and runs from training to prediction."""

import json
import re

import datasets
import pytest
import torch
from meter_cases import METER_QUESTIONS, METER_RETRIEVAL
from paths import shared_dir
from PIL import Image
from tiny_runs import TINY_METER, write_color_images, write_llama, write_table, write_vqa
from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor

from hf_frozen_llm import MeterWithLLMBlockConfig
from hf_frozen_llm.cli import main
from hf_frozen_llm.commands.predict import predict
from hf_frozen_llm.metrics import VQAAccuracy
from hf_frozen_llm.tasks import TASKS, find_task
from hf_frozen_llm.tasks.visual_question_answering import find_targets, score_prediction


TASK = TASKS["visual-question-answering"]
RECIPE = """\
task: visual-question-answering
model_type: meter_with_llm_block
learning_rate: 1e-3
max_steps: 2
save_strategy: "no"
eval_strategy: "no"
"""


def make_rows(images):
    return [{"image": file, "question": f"What color {n}?", "answer": color} for n, (file, color) in enumerate(images)]


@pytest.fixture
def table(tmp_path):
    """A table of CSV beside its images, of four colors."""
    images = write_color_images(tmp_path, copies=2)
    for split in ("train", "test"):
        write_table(tmp_path / f"{split}.csv", make_rows(images))
    return tmp_path


def read(dataset, split="train", with_targets=True, **keys):
    return TASK.read(TASK.arguments(dataset_name=str(dataset), **keys), split, with_targets)


def make_task(rows, **keys):
    args = TASK.arguments(dataset_name="data", **keys)
    sizes = {name: value for name, value in METER_QUESTIONS.fields.items() if name != "num_labels"}
    config = MeterWithLLMBlockConfig(**sizes, **TASK.config_fields(args, rows))
    return TASK(args, METER_QUESTIONS.processor(), config)


def test_task_of_the_class():
    assert find_task("meter_with_llm_block") is TASK
    assert find_task("meter_with_llm_block", "MeterWithLLMBlockForVisualQuestionAnswering") is TASK
    other = find_task("meter_with_llm_block", "MeterWithLLMBlockForImageTextRetrieval")
    assert other is TASKS["image-text-retrieval"]


# Readers: one schema


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_own_tables(suffix, tmp_path):
    images = write_color_images(tmp_path / "images")
    rows = [{"photo": file, "ask": f"What is {n}?", "reply": color} for n, (file, color) in enumerate(images)]
    file = write_table(tmp_path / f"questions{suffix}", rows)
    keys = {"image_column": "photo", "question_column": "ask", "answer_column": "reply"}
    found = read(file, image_folder=str(tmp_path / "images"), **keys)
    assert found[1]["image"]["path"] == str(tmp_path / "images" / images[1][0])
    assert found["question"][1] == "What is 1?" and found["answers"][1] == [images[1][1]]
    assert len(read(file, "train[:50%]", image_folder=str(tmp_path / "images"), **keys)) == 2
    unasked = read(file, with_targets=False, image_folder=str(tmp_path / "images"), **keys)
    assert set(unasked.column_names) == {"image", "question"}


@pytest.mark.parametrize(
    "answers",
    [
        ["red", "red", "2"],
        "red|red|2",
        '["red", "red", 2]',
        [{"answer": "red", "answer_id": 1}, {"answer": "red", "answer_id": 2}, {"answer": "2", "answer_id": 3}],
    ],
    ids=["list", "bars", "json", "dictionaries"],
)
@pytest.mark.parametrize("kind", ["table", "parquet"])
def test_answers_of_annotators(answers, kind, tmp_path):
    ((file, _), *_) = write_color_images(tmp_path)
    row = {"image": file, "question": "?", "answers": answers, "answer_type": "other"}
    if kind == "table":
        write_table(tmp_path / "train.jsonl", [row])
    else:
        features = {"image": datasets.Image()}
        rows = datasets.Dataset.from_list([{**row, "image": str(tmp_path / file)}])
        rows.cast(datasets.Features({**rows.features, **features})).to_parquet(tmp_path / "train.parquet")
    (found,) = read(tmp_path if kind == "table" else tmp_path / "train.parquet")
    assert found["answers"] == ["red", "red", "2"] and found["answer"] == "red" and found["answer_type"] == "other"


def test_vqa_files(tmp_path):
    folder = write_vqa(tmp_path, {"train2014": 8, "val2014": 4, "test-dev2015": 2})
    rows = read(folder, "train2014+val2014")
    assert len(rows) == 12 and rows[1]["image"]["path"].endswith("train2014/COCO_train2014_000000000001.jpg")
    assert rows[1]["answer"] == "green" and rows[1]["answers"][6:] == ["green", "Red.", "dark", "dark"]
    assert rows[1]["question_type"] == "what color" and rows[11]["question_id"] == 30
    (tmp_path / "v2_mscoco_test-dev2015_annotations.json").unlink()
    unasked = read(folder, "test-dev2015", with_targets=False)
    assert unasked[1]["image"]["path"].endswith("test2015/COCO_test2015_000000000001.jpg")
    with pytest.raises(FileNotFoundError, match="has no v2_mscoco_test-dev2015_annotations"):
        read(folder, "test-dev2015")
    file = tmp_path / "v2_mscoco_val2014_annotations.json"
    file.write_text(json.dumps({"annotations": json.loads(file.read_text())["annotations"][:2]}))
    with pytest.raises(ValueError, match=r"2 of 4 questions of v2.* have no annotation, the first is question_id 20"):
        read(folder, "val2014")


def test_shapes():
    rows = read(shared_dir() / "data" / "shapes_vqa", "train.small")
    assert len(rows) == 640 and set(rows["answer"]) == {"yes", "no"} and rows["answer"].count("yes") == 195
    assert rows[0]["question"] == "is a green shape left of a red shape"
    # An image with a red shape has red pixels.
    image = datasets.Image().decode_example(next(row for row in rows if row["answer"] == "yes")["image"])
    colors = {color for _, color in image.convert("RGB").getcolors(900)}
    assert any(r > 100 > max(g, b) for r, g, b in colors) and any(g > 100 > max(r, b) for r, g, b in colors)


# Answers


def test_answers_by_meters_rule(tmp_path):
    rows = read(write_vqa(tmp_path, {"train2014": 9}), "train2014")
    task = make_task(rows)
    assert list(task.config.label2id) == ["red", "green", "blue", "white"]
    assert list(make_task(rows, min_answer_count=3).config.label2id) == ["red"]
    with pytest.raises(ValueError, match="No answer of data occurs 9 times"):
        make_task(rows, min_answer_count=9)
    # Annotators' answers count as they are: "Red." is not listed, and two of ten are worth 0.6.
    assert find_targets(rows[1]["answers"], {**task.config.label2id, "dark": 4}) == {1: 1.0, 4: 0.6}


def test_answers_of_few_annotators_are_kept_as_they_are():
    rows = datasets.Dataset.from_dict({"answers": [["The Alps"], ["Two", "2"]], "answer": ["The Alps", "Two"]})
    task = make_task(rows)
    assert list(task.config.label2id) == ["The Alps", "Two"] and task.config.num_labels == 2
    assert find_targets(["The Alps"], task.config.label2id) == {0: 1.0}
    assert find_targets(["Yes"], {"yes": 0}) == {0: 1.0}
    assert score_prediction("Two", ["2", "Two"]) == 1 and score_prediction("two", ["Three"]) == 0


def test_unknown_answers_are_left_out_of_training_and_counted_as_wrong(tmp_path, caplog):
    rows = read(write_vqa(tmp_path, {"train2014": 9}), "train2014")
    task = make_task(rows, min_answer_count=3)
    kept = task.dataset(rows, "train2014", training=True)
    assert (
        len(kept) == 3 and "6 of 9 questions have no answer that the model can give; they are left out" in caplog.text
    )
    assert len(task.dataset(rows, "train2014")) == 9 and "they are counted as wrong" in caplog.text
    assert task.label_counts(rows) == {"red": 3}
    with pytest.raises(ValueError, match="no question has an answer that the model can give: red"):
        task.dataset(rows.select([1]), "val")


def test_accuracy_is_the_official_one_and_by_type(tmp_path):
    rows = read(write_vqa(tmp_path, {"val2014": 8}), "val2014")
    task = make_task(rows)
    records = [{"row": row, "answers": [row % 3], "scores": [0.5], "loss": 1.0 + row} for row in range(8)]
    metrics = task.metrics(records, rows)
    names = list(task.config.label2id)
    official = VQAAccuracy(keep_in_memory=True).compute(
        predictions=[names[row % 3] for row in range(8)],
        references=[{name: row[name] for name in ("answers", "question_type", "answer_type")} for row in rows],
    )
    assert metrics == {"loss": 4.5, **official}


def test_examples(tmp_path, caplog):
    """Inputs are those of the processor on each question alone; the loss of a record is that of the model."""
    images = write_color_images(tmp_path)
    texts = ["a dot", "a dot a dot"] * 2
    rows = [{"image": file, "question": text, "answer": color} for text, (file, color) in zip(texts, images)]
    write_table(tmp_path / "train.csv", rows)
    rows = read(tmp_path)
    task = make_task(rows, max_length=6)
    batch = task.collate(task.dataset(rows, "train").__getitems__([0, 1, 2]))
    assert "3 of 3 texts have more than max_length=6 tokens" in caplog.text
    assert batch["labels"].tolist() == torch.eye(4)[:3].tolist() and batch["row"].tolist() == [0, 1, 2]
    alone = task.processor(Image.open(tmp_path / images[0][0]), "a dot")
    assert torch.equal(batch["pixel_values"][0], alone["pixel_values"][0])
    assert batch["input_ids"][0][batch["attention_mask"][0].bool()].tolist() == alone["input_ids"][0].tolist()
    model = METER_QUESTIONS.model_class(task.config).eval()
    with torch.no_grad():
        records = task.predict(model, batch)
        batch.pop("row")
        assert sum(record["loss"] for record in records) / 3 == pytest.approx(model(**batch).loss.item(), rel=1e-5)
    assert json.dumps(records) and len(records[0]["answers"]) == 4
    task.dataset(rows, "train")
    found = task.describe(records[1])
    assert found["question"] == "a dot a dot" and {p["label"] for p in found["predictions"]} == set(rows["answer"])


def test_question_only_sees_no_image(tmp_path):
    write_table(tmp_path / "train.csv", make_plain(tmp_path))
    rows = read(tmp_path)
    examples = make_task(rows, question_only=True).dataset(rows, "train").__getitems__([0, 1])
    assert not any(example["pixel_values"].any() for example in examples)


def make_plain(folder):
    return [{"image": file, "question": "a dot", "answer": color} for file, color in write_color_images(folder)]


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": " "}, r"row 1: the question is empty \(1 of 4 are\). Remove these rows"),
        ({"answer": ""}, r"row 1: the answer is empty \(1 of 4 are\)"),
        ({"image": "no.png"}, r"1 of 4 images do not exist, the first is .*no\.png\. Set image_folder"),
        ({"image": ""}, r"row 1: 'image' names no file \(1 of 4 rows\)"),
        ({"answers": "[1, "}, "row 0: the answers are no list"),
        ({"answers": "|"}, None),
    ],
)
def test_bad_rows(change, message, tmp_path):
    rows = make_plain(tmp_path)
    if "answers" in change:
        rows = [{**row, "answers": "a|b"} for row in rows]
        rows[0] |= change
    rows[1] |= change
    write_table(tmp_path / "train.jsonl", rows)
    if message is None:
        assert read(tmp_path)["answers"][1] == ["", ""]
        return
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read(tmp_path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"streaming": True}, "streaming is set, but all texts are read"),
        ({"image_folder": "nowhere"}, "image_folder is 'nowhere', but there is no such folder"),
        ({"max_length": 2}, "max_length is 2"),
        ({"min_answer_count": 0}, "min_answer_count is 0; it must be at least 1"),
        ({"question_column": "ask"}, "has no column 'ask'"),
        ({"answer_column": "reply"}, "has neither a column 'reply' nor 'answers'"),
        ({"image_column": "photo"}, "has no column 'photo'; it has image, question, answer"),
    ],
)
def test_bad_keys(keys, message, table):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read(table, **keys)


def test_bad_tables(table):
    with pytest.raises(ValueError, match=r"Unknown split\. The file is 'train'"):
        read(table / "train.csv", "test")
    (table / "val.jsonl").write_text("{1: 2}\n")
    with pytest.raises(ValueError, match=r"val\.jsonl is not valid JSON.*Write an object on each line"):
        read(table, "val")
    (table / "val.jsonl").write_text("3\n")
    with pytest.raises(ValueError, match="must hold an object on each line"):
        read(table, "val")


# Runs


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("llm"))


def test_from_training_to_prediction(llm, table, tmp_path, capsys):
    recipe, folder = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(RECIPE)
    data = ["--dataset_name", str(table), "--eval_split", "test"]
    block = ["--llm_block.llm_name_or_path", llm, "--llm_block.layer_index", "-1"]
    main(["train", str(recipe), *TINY_METER, *data, *block, "--output_dir", str(folder)])
    results = json.loads((folder / "results.json").read_text())
    assert 0 <= results["metrics"]["eval_accuracy"] <= 1 and results["training_set"]["labels"] == dict.fromkeys(
        ["red", "green", "blue", "white"], 2
    )
    settings = json.loads((folder / "results.json").read_text())["config"]
    assert settings["text_config"]["vocab_size"] == 300
    model = AutoModelForVisualQuestionAnswering.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.answers == list(model.config.id2label.values()) == ["red", "green", "blue", "white"]

    main(["evaluate", str(folder), "--split", "train", "--use_cpu"])
    again = json.loads((folder / "eval_results.json").read_text())
    assert again["dataset"]["split"] == "train" and "eval_accuracy" in again["metrics"]

    (table / "broken.png").write_text("no image")
    files = [str(table / name) for name in ("red0.png", "broken.png")]
    found = predict(str(folder), files, ["--question", "What color?", "--use_cpu"])
    ((record,), failures) = found.records, found.failures
    inputs = processor(Image.open(files[0]), "What color?")
    with torch.no_grad():
        (best,) = processor.post_process_answers(model(**inputs).logits)
    assert [p["label"] for p in record["predictions"]] == [answer["answer"] for answer in best]
    assert record["question"] == "What color?" and record["file"] == files[0]
    assert list(failures) == [files[1]] and "the image cannot be decoded" in failures[files[1]]
    with pytest.raises(ValueError, match="question is not set; say what to ask"):
        predict(str(folder), files, ["--use_cpu"])
    (table / "ask.csv").write_text("image,question\nred0.png,\nblue0.png,What?\n")
    found = predict(str(folder), (), ["--dataset_name", str(table), "--split", "ask", "--use_cpu"])
    assert [record["row"] for record in found.records] == [1] and found.failures == {"row 0": "the question is empty."}


def test_tables_of_types_are_in_the_results(tmp_path):
    recipe, folder = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(RECIPE)
    data = write_vqa(tmp_path / "vqa", {"train2014": 8, "val2014": 4})
    flags = ["--train_split", "train2014", "--eval_split", "val2014", "--output_dir", str(folder)]
    main(["train", str(recipe), *TINY_METER, "--dataset_name", data, *flags])
    main(["evaluate", str(folder), "--use_cpu"])
    for file in ("results.json", "eval_results.json"):
        results = json.loads((folder / file).read_text())
        (row,) = results["question_types"]
        assert row["type"] == "what color" and row["questions"] == 4
        assert row["accuracy"] == results["metrics"]["eval_accuracy"] and results["answer_types"][0]["type"] == "other"


def test_long_questions_are_errors_by_choice(tmp_path):
    write_table(tmp_path / "train.csv", make_plain(tmp_path))
    rows = read(tmp_path)
    task = make_task(rows, truncation=False)
    task.processor.max_length = 4
    with pytest.raises(ValueError, match=r"1 of 1 texts have more than max_length=4 tokens.*Set max_length higher"):
        task.dataset(rows, "train")[0]


def test_long_questions_are_cut_off_with_one_warning(tmp_path, caplog):
    write_table(tmp_path / "train.csv", make_plain(tmp_path))
    rows = read(tmp_path)
    task = make_task(rows)
    task.processor.max_length = 4
    examples = task.dataset(rows, "train")
    assert all(len(examples[number]["text"]) == 4 for number in range(3))
    assert caplog.text.count("tokens; text 0 has") == 1 and "data [train]: 1 of 1 texts" in caplog.text


def test_unreadable_images_name_their_row(tmp_path):
    write_table(tmp_path / "train.csv", make_plain(tmp_path))
    rows = read(tmp_path)
    (tmp_path / "green0.png").write_text("no image")
    with pytest.raises(ValueError, match=r"data \[train\], row 1 \(.*green0\.png\): the image cannot be decoded"):
        make_task(rows).dataset(rows, "train")[1]


def test_a_model_of_another_task(table, tmp_path):
    """It starts with a new head, of which transformers warns; it is not asked questions."""
    searching = METER_RETRIEVAL.model_class(MeterWithLLMBlockConfig(**METER_RETRIEVAL.fields))
    searching.save_pretrained(tmp_path / "search")
    METER_RETRIEVAL.processor().save_pretrained(tmp_path / "search")
    _, info = AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path / "search", output_loading_info=True)
    assert {key.partition(".")[0] for key in info["missing_keys"]} == {"classifier"}
    with pytest.raises(
        ValueError, match="a key of the task visual-question-answering, and the task here is image-text"
    ):
        predict(str(tmp_path / "search"), str(table / "red0.png"), ["--question", "What?", "--use_cpu"])


def test_submission_to_the_server(tmp_path, capsys):
    recipe, folder, file = tmp_path / "recipe.yaml", tmp_path / "run", tmp_path / "answers.json"
    recipe.write_text(RECIPE)
    data = write_vqa(tmp_path / "vqa", {"train2014": 8, "test2015": 5})
    flags = ["--train_split", "train2014", "--output_dir", str(folder), "--llm_block", "null"]
    main(["train", str(recipe), *TINY_METER, "--dataset_name", data, *flags])
    split = ["--dataset_name", data, "--split", "test2015", "--use_cpu"]
    capsys.readouterr()
    main(["predict", str(folder), *split, "--submission", str(file)])
    assert f"5 predictions are in {file}." in capsys.readouterr().out
    best = [(r["question_id"], r["predictions"][0]["label"]) for r in predict(str(folder), (), split).records]
    assert json.loads(file.read_text()) == [{"question_id": number, "answer": answer} for number, answer in best]
    assert [number for number, _ in best] == [0, 10, 20, 30, 40]

    file.unlink()
    (tmp_path / "vqa" / "test2015" / "COCO_test2015_000000000003.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"1 of 5 rows have no prediction, the first is row 3: .*cannot be decoded"):
        predict(str(folder), (), split, submission=file)
    with pytest.raises(FileNotFoundError, match=r"submission is 'nowhere/a\.json', but there is no folder"):
        predict(str(folder), (), split, submission="nowhere/a.json")
    image = str(tmp_path / "vqa" / "test2015" / "COCO_test2015_000000000000.jpg")
    with pytest.raises(ValueError, match="there is no column question_id"):
        predict(str(folder), image, ["--question", "What?", "--use_cpu"], submission=file)
    assert not file.exists()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2, 1], r"question_id 1 belongs to 2 questions \(1 ids occur more than once\)"),
        (["1", "01", "2"], "question_id 1 belongs to 2 questions"),
        (["1", None, ""], r"row 1: question_id is None \(2 of 3 are no whole numbers\)"),
    ],
)
def test_ids_of_a_submission(ids, message):
    with pytest.raises(ValueError, match=message):
        TASK.check_submission(datasets.Dataset.from_dict({"question_id": ids}), "answers.json")


def test_other_tasks_have_no_submission():
    with pytest.raises(ValueError, match="image-text-retrieval has no server that takes predictions"):
        TASKS["image-text-retrieval"].check_submission(datasets.Dataset.from_dict({"question_id": [1]}), "a.json")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--question", "What?"], "question is 'What?', but only `predict` asks it"),
        (["--max_length", "60"], "max_length is 60; the text encoder has positions for 54"),
        (
            ["--host.text_name_or_path", "FacebookAI/roberta-base"],
            "is set, but host.name_or_path is not",
        ),
        (
            ["--host.text_config", "{vocab_size: 99}"],
            "vocab_size of 99; a tokenizer made from the texts needs",
        ),
        (["--host.id2label", "{0: a}"], "unknown key `host.id2label`"),
    ],
)
def test_bad_recipes(flags, message, table, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    run = ["--dataset_name", str(table), "--output_dir", str(tmp_path / "run"), "--llm_block", "null"]
    with pytest.raises(ValueError, match=re.escape(message)):
        main(["train", str(tmp_path / "recipe.yaml"), *TINY_METER, *run, *flags])
