# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Run README.md and docs/ as written (see pages.py), and check their tables and numbers."""

import contextlib
import dataclasses
import io
import json
import re
import shutil
from pathlib import Path

import moving_pictures
import numpy as np
import pytest
import torch
import transformers
import typer
import yaml
from host_table import HOST_TABLE
from hub_pages import CARDS, HUB
from hub_server import HubServer
from image_pages import ANALYSIS, METRICS
from motion_pages import MOTION_FORECASTING
from pages import (
    LLM,
    TINY_VIT,
    AfterBlock,
    Page,
    add_llm,
    blocks,
    check_errors,
    commands,
    prepare_images,
    run_command,
)
from paths import REPO, shared_dir
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_hosts import HOSTS
from tiny_runs import TINY_RUN, write_color_images, write_npz, write_parquet, write_shapes, write_table

from hf_frozen_llm import LLMBlockConfig, VisionWithLLMBlockConfig, VisionWithLLMBlockForImageClassification
from hf_frozen_llm.cli import app, main
from hf_frozen_llm.tasks import TASKS
from hf_frozen_llm.training.arguments import RunArguments
from hf_frozen_llm.training.recipe import read_recipe


SMALL_VIT = [*TINY_VIT, "--host.num_hidden_layers", "1", "--host.image_size", "32"]
TINY_HOST = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


# README.md


def prepare_readme(hub: HubServer, folder: Path) -> None:
    prepare_images(hub, folder)
    transformers.Dinov2Model(transformers.Dinov2Config(**TINY_HOST, mlp_ratio=2, image_size=518)).save_pretrained(
        folder / "dinov2"
    )
    hub.add("facebook/dinov2-small", folder / "dinov2")


def check_readme(text: str, ran: list[list[str]], after: list[AfterBlock]) -> None:
    for command in (["make", "quickstart"], ["hf-frozen-llm", "train"], ["hf-frozen-llm", "evaluate"]):
        assert command in [words[:2] for words in ran]
    results = json.loads(Path("runs/pictures/results.json").read_text())
    assert results["config"]["llm_block"]["llm_name_or_path"] == LLM
    assert set(results["config"]["label2id"]) == {"cat", "dog"}
    assert 0 <= json.loads(Path("runs/pictures/eval_results.json").read_text())["metrics"]["eval_top1"] <= 1
    loaded, _ = after[0]
    assert {answer["label"] for answer in loaded["answers"]} == {"cat", "dog"}
    built, _ = after[-1]
    assert built["model"].classifier.out_features == 10


README = Page("README.md", prepare_readme, check=check_readme, trained=["runs/quickstart/vit_tiny_cifar10_smollm2"])


# docs/quickstart.md


def prepare_quickstart(hub: HubServer, folder: Path) -> None:
    prepare_images(hub, folder)
    transformers.ViTForImageClassification(
        transformers.ViTConfig(**TINY_HOST, intermediate_size=32, num_labels=1000)
    ).save_pretrained(folder / "vit")
    hub.add("google/vit-base-patch16-224", folder / "vit")


def check_quickstart(text: str, ran: list[list[str]], after: list[AfterBlock]) -> None:
    assert ["make", "test"] in ran
    (loaded, _), (built, printed), (published, _) = after
    assert {answer["label"] for answer in loaded["answers"]} == {"cat", "dog"}
    assert printed == blocks("text", text)[-1]
    assert built["logits"].shape == (1, 10)
    frozen = sum(p.numel() for p in built["model"].parameters() if not p.requires_grad)
    assert f"{frozen:,} parameters are frozen" in text
    trained = {name.partition(".")[0] for name, p in published["model"].named_parameters() if p.requires_grad}
    assert trained == {"llm_block", "classifier"}


QUICKSTART = Page(
    "docs/quickstart.md",
    prepare_quickstart,
    check=check_quickstart,
    trained=["runs/quickstart/vit_tiny_cifar10_smollm2"],
)


# docs/train_on_your_own_data.md


def check_own_data(text: str, ran: list[list[str]], after: list[AfterBlock]) -> None:
    assert {words[1] for words in ran} == {"train", "evaluate", "check", "predict", "plot"}
    assert Path("runs/long/check.png").is_file() and Path("curves.svg").is_file() and Path("curves.png").is_file()
    predictions = [json.loads(line) for line in Path("predictions.jsonl").read_text().splitlines()]
    assert len(predictions) == 16 and predictions[0]["predictions"][0]["label"] in ("cat", "dog")


OWN_DATA = Page("docs/train_on_your_own_data.md", check=check_own_data)


# docs/save_and_load.md


def prepare_moved_llm(hub: HubServer, folder: Path) -> None:
    add_llm(hub)
    shutil.copytree(shared_dir() / "models" / "SmolLM2-135M-Instruct-layers", "path/to/SmolLM2-135M-Instruct")


def check_saved(text: str, ran: list[list[str]], after: list[AfterBlock]) -> None:
    # The last block loaded the light folder from the LLM's new place.
    last, _ = after[-1]
    assert last["model"].config.llm_block.llm_name_or_path == "path/to/SmolLM2-135M-Instruct"
    names = {name for name, p in last["model"].named_parameters() if not p.requires_grad}
    assert names
    assert all(name.startswith(("llm_block.llm_layers.", "llm_block.final_norm.")) for name in names)


# docs/concepts.md


def check_concepts(text: str, ran: list[list[str]], after: list[AfterBlock]) -> None:
    assert after[0][0]["tokens"].shape == (2, 50, 384)
    assert after[-1][0]["llm_block"].config.input_scale > 1


CONCEPTS = Page("docs/concepts.md", check=check_concepts)


def test_the_table_of_fields_is_right():
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \| (.+) \|$", CONCEPTS.text, re.MULTILINE)
    fields = {field.name: field for field in dataclasses.fields(LLMBlockConfig)}
    assert len(rows) >= 9
    for name, default, choices in rows:
        assert fields[name].default == eval(default)
        for choice in re.findall(r"`(\"\w+\"|True|\[[\d, ]+\]|-?\d+)`", choices):
            assert getattr(LLMBlockConfig(**{name: eval(choice)}), name) == eval(choice)


# docs/language_models.md


def check_language_models(text: str, ran: list[list[str]], after: list[AfterBlock]) -> None:
    namespace, _ = after[0]
    assert namespace["tokens"].shape == (2, 65, 192)
    assert f"{namespace['block'].bytes_read:,} bytes" in text


# docs/errors.md


ERRORS = Page("docs/errors.md", trained=["runs/pictures"])


def test_the_messages_of_the_tables_exist():
    files = [file for folder in ("modeling", "hf_frozen_llm") for file in sorted((REPO / folder).rglob("*.py"))]
    source = re.sub(r'"\s*\n\s*f?"', "", "".join(file.read_text(encoding="utf-8") for file in files))
    messages = re.findall(r"^\| `(.+?)` \|", ERRORS.text, re.MULTILINE)
    assert len(messages) > 30
    for message in messages:
        assert all(part.strip(" ;:") in source for part in message.split("…")), message


# docs/use_your_own_host.md


def prepare_hosts(hub: HubServer, folder: Path) -> None:
    add_llm(hub)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 518}
    transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).save_pretrained(folder / "dinov2")
    transformers.BitImageProcessorPil(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}
    ).save_pretrained(folder / "dinov2")
    hub.add("facebook/dinov2-small", folder / "dinov2")


def check_hosts(text: str, ran: list[list[str]], after: list[AfterBlock]) -> None:
    assert len(ran) == 1 and Path("runs/dinov2/results.json").is_file()
    namespace, _ = after[-1]
    assert namespace["logits"].shape == (2, 10)
    assert namespace["swin"].config.pooling == "mean"
    assert [tuple(m.shape) for m in namespace["maps"]] == [(1, 96, 16, 16)] * 3
    assert len(namespace["features"][0]) == 24
    trained = {name for name, p in namespace["lora_model"].named_parameters() if p.requires_grad}
    assert any("lora_A" in name for name in trained)
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    assert namespace["exported"] is not None and namespace["onnx_program"] is not None


ONE_SMALL_RUN = ["--dataset_name", "cifar10", "--max_steps", "2", "--save_strategy", "no", "--use_cpu", "true"]
OWN_HOST = Page(
    "docs/use_your_own_host.md",
    prepare_hosts,
    [*ONE_SMALL_RUN, "--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "4"],
    check_hosts,
    names={
        "SwinConfig": transformers.SwinConfig,
        "VisionWithLLMBlockConfig": VisionWithLLMBlockConfig,
        "VisionWithLLMBlockForImageClassification": VisionWithLLMBlockForImageClassification,
    },
)


def test_recipe_lines_are_valid(tmp_path):
    (lines,) = blocks("yaml", OWN_HOST.text)
    (tmp_path / "recipe.yaml").write_text(lines)
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert recipe.values["model_type"] == "vision_with_llm_block" and recipe.values["freeze_host"] is True
    assert recipe.host == {"name_or_path": "facebook/dinov2-small"}


def test_the_table_has_every_host():
    """`make host-table` has been run since a host was added; a failing cell would be a failing test."""
    text = OWN_HOST.text
    table = text[text.index(HOST_TABLE.begin) : text.index(HOST_TABLE.end)]
    rows = re.findall(r"^\| (.+?) \|", table, re.MULTILINE)
    assert set(HOST_TABLE.rows.values()) <= set(rows)
    assert set(HOSTS) < set(HOST_TABLE.rows)
    assert all(column in table for column in HOST_TABLE.columns)
    assert "✗" not in table


# docs/videos_and_point_clouds.md


def prepare_videos_and_points(hub: HubServer, folder: Path) -> None:
    add_llm(hub)
    write_npz(Path("furniture_points.npz"), {"train": 24, "test": 12})
    with safe_open(shared_dir() / "fixtures" / "official_point_bert_llama_tiny.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith("state_dict.") and ".llama" not in name]
        state = {name.removeprefix("state_dict."): file.get_tensor(name) for name in names}
    state = {f"module.transformer_q.{n}": t for n, t in state.items() if not n.startswith("cls_head")}
    torch.save({"base_model": state}, "Point-BERT.pth")
    # The name of the page's clip; any video works.
    clip = folder / "clips"
    moving_pictures.make_videos(clip, write_parquet(folder / "images", image="img"), {"train": 2, "test": 2})
    shutil.copy(next(clip.glob("*/*/*.mp4")), "clip.mp4")


def check_videos_and_points(text: str, ran: list[list[str]], after: list[AfterBlock]) -> None:
    verbs = [words[1] for words in ran]
    assert verbs.count("train") == 2 and verbs.count("evaluate") == 2 and verbs.count("convert") == 1
    namespace, _ = after[-1]
    assert {answer["label"] for answer in namespace["answers"]} <= set(moving_pictures.MOTIONS)
    assert namespace["logits"].shape == (1, 15)


VIDEOS_AND_POINTS = Page(
    "docs/videos_and_point_clouds.md",
    prepare_videos_and_points,
    [],
    check_videos_and_points,
    always=["--save_strategy", "no"],
)


def test_the_tables_of_keys_are_right():
    of_page = [TASKS[name].arguments("x") for name in ("video-classification", "point-cloud-classification")]
    fields = {f.name: getattr(args, f.name) for args in of_page for f in dataclasses.fields(args)}
    text = VIDEOS_AND_POINTS.text
    tables = [part.partition("\n\n")[0] for part in text.split("| key | default | description |\n")[1:]]
    rows = [row for table in tables for row in re.findall(r"^\| (`.+?`) \| (.+?) \|", table, re.MULTILINE)]
    assert len(tables) == 2 and len(rows) == 14
    for names, default in rows:
        keys, said = re.findall(r"\w+", names), default.replace("`", "").split(", ")
        for key, value in zip(keys, said if len(said) == len(keys) else said * len(keys)):
            real = fields[key]
            expected = {"none": (None, False, 0.0), "true": (True,), "false": (False,)}.get(value)
            assert real in expected if expected else str(real) in (value, f"{value}.0"), key
    of_every_task = {f.name for f in dataclasses.fields(RunArguments)}
    assert {"layer_decay", "projection_learning_rate_scale", "base_batch_size"} <= of_every_task


# docs/paper.md


def prepare_released(hub: HubServer, folder: Path) -> None:
    prepare_images(hub, folder)
    released = load_file(shared_dir() / "fixtures" / "official_vit_llama_tiny.safetensors")
    state = {n.removeprefix("state_dict."): t for n, t in released.items() if n.startswith("state_dict.")}
    torch.save({"model": state}, "checkpoint.pth")


# All pages


# docs/vision_and_language.md


def prepare_pairs(hub: HubServer, folder: Path) -> None:
    """Write `shapes_vqa`, `captions`, `texts.txt` and `photo.jpg`."""
    prepare_images(hub, folder)
    Path("texts.txt").write_text("a red picture\na blue picture\n")
    write_shapes(Path("shapes_vqa"), {"train.small": 12, "val": 6, "test": 6})
    images = write_color_images(Path("captions"), copies=2)
    for split in ("train", "test"):
        rows = [{"image": file, "caption": f"a {color} picture"} for file, color in images]
        write_table(Path("captions", f"{split}.csv"), rows)


def check_pairs(text: str, ran: list[list[str]], after: list[AfterBlock]) -> None:
    records = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert len(records) == 6 and {answer["label"] for answer in records[0]["predictions"]} == {"yes", "no"}
    assert all(Path(name).is_file() for name in ("found.png", "answers.png"))
    (answering, printed), (searching, _), (embedding, _) = after[1:]
    assert printed.split()[0] in ("yes", "no") and searching["scores"].shape == (2,)
    assert answering["trained"].config.id2label == {0: "yes", 1: "no"}
    assert embedding["similarities"].shape == (1, 2) and embedding["similarities"].abs().max() <= 1.000001


VISION_AND_LANGUAGE = Page("docs/vision_and_language.md", prepare_pairs, check=check_pairs)


# docs/questions_about_3d_scenes.md


def prepare_rooms(hub: HubServer, folder: Path) -> None:
    add_llm(hub)
    shutil.copy(shared_dir() / "data" / "furniture_points.npz", "furniture_points.npz")
    rng = np.random.default_rng(0)
    np.save("scene.npy", np.concatenate([rng.uniform(0, 3, (200, 3)), rng.uniform(0, 255, (200, 3))], axis=1))


def check_rooms(text: str, ran: list[list[str]], after: list[AfterBlock]) -> None:
    assert {words[1] for words in ran} == {"examples/furniture_rooms.py", "train", "evaluate", "predict", "ablate"}
    lines = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert lines[0]["scene_id"].startswith("room") and len(lines[0]["predictions"]) == 10
    (built, _), (_, printed) = after
    assert built["model"].classifier.fc2.out_features == 707
    assert len(printed.splitlines()) == 2
    fields = {
        field.name: field.default for field in dataclasses.fields(TASKS["situated-question-answering"].arguments)
    }
    table = text.split("| key | default | description |\n")[1].partition("\n\n")[0]
    keys = [key for row in re.findall(r"^\| (`.+?`) \|", table, re.MULTILINE) for key in re.findall(r"\w+", row)]
    assert set(keys) <= set(fields) and fields["num_points"] == 40000 and fields["batch_norm_decay_epochs"] == 20


QUESTIONS_ABOUT_SCENES = Page("docs/questions_about_3d_scenes.md", prepare_rooms, check=check_rooms)


PAGES = [
    README,
    ANALYSIS,
    Page("docs/ablations.md"),
    CONCEPTS,
    Page("docs/distributed.md", trained=["runs/vit_tiny_cifar10_smollm2"]),
    ERRORS,
    HUB,
    MOTION_FORECASTING,
    Page("docs/language_models.md", add_llm, check=check_language_models),
    METRICS,
    CARDS,
    OWN_DATA,
    Page(
        "docs/paper.md",
        prepare_released,
        [*SMALL_VIT, "--dataset_name", "pictures", "--eval_split", "test", *TINY_RUN],
        always=["--llm_block.llm_name_or_path", LLM, "--llm_block.layer_index", "-1"],
    ),
    QUESTIONS_ABOUT_SCENES,
    QUICKSTART,
    Page("docs/save_and_load.md", prepare_moved_llm, check=check_saved),
    OWN_HOST,
    VIDEOS_AND_POINTS,
    VISION_AND_LANGUAGE,
]


def read_pages() -> dict[str, str]:
    files = [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md"))]
    return {file.relative_to(REPO).as_posix(): file.read_text(encoding="utf-8") for file in files}


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory) -> Path:
    """A tiny model of the quickstart's recipe, trained on `pictures`."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch, HubServer() as hub, hub.active(folder / "hub"):
        patch.chdir(folder)
        prepare_images(hub, folder)
        recipe = "quickstart/vit_tiny_cifar10_smollm2.yaml"
        main(["train", recipe, *TINY_VIT, "--dataset_name", "pictures", "--output_dir", "trained", *TINY_RUN])
    return folder / "trained"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # of peft
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_page_runs_as_written(page, request, tmp_path, monkeypatch, caplog):
    trained = request.getfixturevalue("trained_folder") if page.trained else None
    (tmp_path / "reader").mkdir()
    monkeypatch.chdir(tmp_path / "reader")
    caplog.set_level("ERROR", "transformers.pipelines.video_classification")
    for name in page.trained:
        shutil.copytree(trained, name)
    with HubServer() as hub, hub.active(tmp_path / "hub"):
        monkeypatch.setenv("HF_TOKEN", "hf_write")
        page.prepare(hub, tmp_path)
        write_parquet(Path("cifar10"), {"train": 24, "test": 12}, image="img", label="label")
        ran = commands(page.text)
        for words in ran:
            run_command(words, page, monkeypatch)
        namespace, after = {"main": main}, []
        for block in blocks("python", page.text):
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(block, page.path, "exec"), namespace)
            after.append((dict(namespace), printed.getvalue()))
        page.check(page.text, ran, after)
        if sessions := blocks("pycon", page.text):
            check_errors("".join(sessions), {**page.names, **namespace})


def test_every_page_with_code_is_run():
    with_code = {
        path for path, text in read_pages().items() if re.search(r"^```(bash|python|pycon)", text, re.MULTILINE)
    }
    assert with_code == {page.path for page in PAGES}


@pytest.mark.parametrize(
    "path", ["CONTRIBUTING.md", *sorted(str(p) for p in Path("benchmarks/results").glob("*/README.md"))]
)
def test_commands_elsewhere_exist(path, monkeypatch):
    """The runs of the results take hours: their commands are only checked."""
    monkeypatch.chdir(REPO)
    page = Page(path)
    for words in commands(page.text):
        if words[:2] == ["hf-frozen-llm", "evaluate"] or words[0] == "python":
            assert words[0] != "python" or (REPO / words[1]).is_file()
        else:
            run_command(words, page, monkeypatch)


def test_flags_in_the_text_are_valid():
    options = {
        option.replace("-", "_")
        for command in typer.main.get_command(app).commands.values()
        for parameter in command.params
        for option in parameter.opts
    }
    flags = [(path, flag) for path, text in read_pages().items() for flag in re.findall(r"`(--[^`]+)`", text)]
    assert len(flags) >= 9
    for path, flag in flags:
        if not {word.replace("-", "_") for word in flag.split() if word.startswith("--")} <= options:
            host = "dinov2" if path == OWN_HOST.path else "vit"
            read_recipe(f"quickstart/{host}_tiny_cifar10_smollm2.yaml", flag.split())


def test_yaml_of_the_pages_is_valid(tmp_path):
    (variants,) = blocks("yaml", (REPO / "docs/ablations.md").read_text(encoding="utf-8"))
    (tmp_path / "variants.yaml").write_text(variants)
    recipe, file = "quickstart/vit_tiny_cifar10_smollm2.yaml", str(tmp_path / "variants.yaml")
    main(["ablate", recipe, "--variants", file, "--output_dir", str(tmp_path / "runs"), "--dry_run"])
    (tracking,) = blocks("yaml", HUB.text)
    assert set(yaml.safe_load(tracking)) <= {
        field.name for field in dataclasses.fields(transformers.TrainingArguments)
    }
    # the third one: test_recipe_lines_are_valid
    assert sum(len(blocks("yaml", text)) for text in read_pages().values()) == 3


@pytest.mark.parametrize("path", list(read_pages()))
def test_files_named_exist(path):
    text = (REPO / path).read_text(encoding="utf-8")
    names = re.findall(r"\]\(([^)#]+)[^)]*\)|`([\w/]+/(?:[\w./]*\.(?:py|yaml))?)`|(quickstart/\w+\.yaml)", text)
    for name in map("".join, names):
        if not name.startswith(("http", "runs/", "labels/", "20bn")):
            folders = (REPO, REPO / "recipes", (REPO / path).parent)
            assert any((folder / name).exists() for folder in folders), name
