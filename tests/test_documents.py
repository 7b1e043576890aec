# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Run README.md and docs/ as written: commands (at tiny size), Python in order, errors; check the tables."""

import contextlib
import dataclasses
import importlib.metadata
import io
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import moving_pictures
import pytest
import torch
from host_table import HOST_TABLE
from hub_server import HubServer
from paths import REPO, shared_dir
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_hosts import HOSTS
from tiny_runs import TINY_POINT_BERT, TINY_VIDEOMAE, write_npz, write_parquet
from transformers import (
    BitImageProcessorPil,
    Dinov2Config,
    Dinov2Model,
    SwinConfig,
    ViTConfig,
    ViTForImageClassification,
)

from hf_frozen_llm import (
    LLMBlock,
    LLMBlockConfig,
    VisionWithLLMBlockConfig,
    VisionWithLLMBlockForImageClassification,
)
from hf_frozen_llm.cli import main
from hf_frozen_llm.tasks import TASKS
from hf_frozen_llm.training.arguments import RunArguments
from hf_frozen_llm.training.recipe import read_recipe


LLM = "HuggingFaceTB/SmolLM2-135M-Instruct"
SHORT = ["--max_steps", "2", "--eval_steps", "2"]
TINY_OF_TASK = {
    "video_classification": [*TINY_VIDEOMAE, *SHORT],
    "point_cloud_classification": [*TINY_POINT_BERT, *SHORT],
}


@dataclasses.dataclass
class Page:
    """
    A page that the test runs as a reader would.

    Args:
        path (`str`): in the repository.
        prepare (`Callable[[HubServer, Path], None]`): puts the files that the page names into the current folder and
            on the Hub; the second argument is a temporary folder.
        tiny (`list[str]`): flags that make a run of an image recipe tiny.
        check (`Callable[[str, list[list[str]], list[tuple[dict, str]]], None]`): gets the text, the commands, and
            after each block of Python a copy of its variables and what it printed.
        always (`list[str]`, *optional*): arguments of every run.
        names (`dict[str, Any]`, *optional*): names in the shown errors that the page's Python does not import.
    """

    path: str
    prepare: Callable[[HubServer, Path], None]
    tiny: list[str]
    check: Callable[[str, list[list[str]], list[tuple[dict[str, Any], str]]], None]
    always: list[str] = dataclasses.field(default_factory=list)
    names: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def text(self) -> str:
        return (REPO / self.path).read_text(encoding="utf-8")


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    lines = [line for block in blocks("bash", text) for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run_command(words: list[str], page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    match words:
        case ["make", *targets]:
            subprocess.run(["make", "-n", *targets], cwd=REPO, check=True, stdout=subprocess.DEVNULL)
        case ["pip", "install", "-e", what]:
            wanted = set(re.search(r"\[(.*)\]", what)[1].split(","))
            assert wanted <= set(importlib.metadata.metadata("hf_frozen_llm").get_all("Provides-Extra"))
        case ["python", "examples/moving_pictures.py", *_]:
            assert (REPO / words[1]).is_file()
            few = ["--dataset", "cifar10", "--train", "16", "--test", "8"]
            monkeypatch.setattr("sys.argv", [*words[1:], *few])
            moving_pictures.main()
        case ["python", "examples/furniture_points.py"]:
            # It needs Debian's packages; the page's preparation writes a small file instead.
            assert (REPO / words[1]).is_file() and Path("furniture_points.npz").is_file()
        case ["hf-frozen-llm", "train" | "check", recipe, *_]:
            main([*words[1:], *TINY_OF_TASK.get(recipe.partition("/")[0], page.tiny), *page.always])
        case ["hf-frozen-llm", "ablate", *_]:
            main([*words[1:], "--dry_run"])
        case ["hf-frozen-llm", "predict", *_]:
            main([*words[1:], "--use_cpu"])
        case ["hf-frozen-llm", *_]:
            main(words[1:])
        case _:
            pytest.fail(f"{page.path}: unknown command {words}")


def check_errors(session: str, namespace: dict[str, Any]) -> None:
    """Run the lines of a `pycon` block; each must raise the error shown below it."""
    cases = re.findall(r"^>>> (.*)\n(\w+): (.*)$", session, re.MULTILINE)
    assert len(cases) == session.count(">>>") > 0
    for code, error_type, message in cases:
        with pytest.raises(Exception, match=f"^{re.escape(message)}$") as error:
            eval(code, namespace)
        assert error.type.__name__ == error_type


def add_llm(hub: HubServer) -> None:
    hub.add(LLM, shared_dir() / "models" / "SmolLM2-135M-Instruct-layers")


# README.md


def prepare_readme(hub: HubServer, folder: Path) -> None:
    add_llm(hub)
    shutil.copytree(shared_dir() / "models" / "SmolLM2-135M-Instruct-layers", "path/to/SmolLM2-135M-Instruct")
    for split in ("train", "test"):
        for label, color in (("cat", (200, 20, 20)), ("dog", (20, 20, 200))):
            images = Path("pictures", split, label)
            images.mkdir(parents=True)
            for i in range(8):
                Image.new("RGB", (80, 60), color).save(images / f"{i}.png")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTForImageClassification(ViTConfig(**sizes, intermediate_size=32, num_labels=1000)).save_pretrained(
        folder / "vit"
    )
    Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2, image_size=518)).save_pretrained(folder / "dinov2")
    hub.add("google/vit-base-patch16-224", folder / "vit")
    hub.add("facebook/dinov2-small", folder / "dinov2")
    released = load_file(shared_dir() / "fixtures" / "official_vit_llama_tiny.safetensors")
    state = {n.removeprefix("state_dict."): t for n, t in released.items() if n.startswith("state_dict.")}
    torch.save({"model": state}, "checkpoint.pth")
    write_npz(Path("furniture_points.npz"), {"train": 24, "test": 12})


def check_readme(text: str, ran: list[list[str]], after: list[tuple[dict[str, Any], str]]) -> None:
    verbs = [["hf-frozen-llm", verb] for verb in ("train", "evaluate", "check", "predict")]
    for command in (["make", "quickstart"], ["make", "test"], *verbs):
        assert command in [words[:2] for words in ran]
    assert Path("runs/long/check.png").is_file()
    predictions = [json.loads(line) for line in Path("predictions.jsonl").read_text().splitlines()]
    assert len(predictions) == 16 and predictions[0]["predictions"][0]["label"] in ("cat", "dog")
    results = json.loads(Path("runs/pictures/results.json").read_text())
    assert results["config"]["llm_block"]["llm_name_or_path"] == LLM
    assert set(results["config"]["label2id"]) == {"cat", "dog"}
    assert 0 <= json.loads(Path("runs/pictures/eval_results.json").read_text())["metrics"]["eval_top1"] <= 1
    corrupted = json.loads(Path("runs/pictures/eval_results_gaussian_noise_3.json").read_text())
    assert corrupted["dataset"]["corruption"] == "gaussian_noise" and corrupted["dataset"]["corruption_severity"] == 3

    first, printed = after[0]
    assert printed == blocks("text", text)[0]
    assert first["logits"].shape == (1, 10)
    frozen = sum(p.numel() for p in first["model"].parameters() if not p.requires_grad)
    assert f"{frozen:,} parameters are frozen" in text
    assert f"{first['model'].llm_block.bytes_read:,} bytes" in text
    last, _ = after[-1]
    assert last["tokens"].shape == (2, 50, 384)
    assert last["dinov2"].classifier.out_features == 10
    # The last block loaded the light folder from the LLM's new place.
    assert last["model"].config.llm_block.llm_name_or_path == "path/to/SmolLM2-135M-Instruct"
    names = {name for name, p in last["model"].named_parameters() if not p.requires_grad}
    assert names
    assert all(name.startswith(("llm_block.llm_layers.", "llm_block.final_norm.")) for name in names)


README = Page(
    "README.md",
    prepare_readme,
    ["--host.hidden_size", "16", "--host.num_attention_heads", "2", *SHORT],
    check_readme,
    names={"LLMBlock": LLMBlock, "LLMBlockConfig": LLMBlockConfig},
)


def test_flags_in_the_text_are_valid():
    flags = re.findall(r"`(--[^`]+)`", README.text)
    assert len(flags) >= 3
    for flag in flags:
        read_recipe("quickstart/vit_tiny_cifar10.yaml", flag.split())


def test_the_table_of_fields_is_right():
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \| (.+) \|$", README.text, re.MULTILINE)
    fields = {field.name: field for field in dataclasses.fields(LLMBlockConfig)}
    assert len(rows) >= 9
    for name, default, choices in rows:
        assert fields[name].default == eval(default)
        for choice in re.findall(r"`(\"\w+\"|True|\[[\d, ]+\]|-?\d+)`", choices):
            assert getattr(LLMBlockConfig(**{name: eval(choice)}), name) == eval(choice)


# docs/use_your_own_host.md


def prepare_hosts(hub: HubServer, folder: Path) -> None:
    add_llm(hub)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 518}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder / "dinov2")
    BitImageProcessorPil(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}).save_pretrained(
        folder / "dinov2"
    )
    hub.add("facebook/dinov2-small", folder / "dinov2")


def check_hosts(text: str, ran: list[list[str]], after: list[tuple[dict[str, Any], str]]) -> None:
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
        "SwinConfig": SwinConfig,
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


def check_videos_and_points(text: str, ran: list[list[str]], after: list[tuple[dict[str, Any], str]]) -> None:
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
    fields = {f.name: f for task in TASKS.values() for f in dataclasses.fields(task.arguments)}
    text = VIDEOS_AND_POINTS.text
    tables = [part.partition("\n\n")[0] for part in text.split("| key | default | description |\n")[1:]]
    rows = [row for table in tables for row in re.findall(r"^\| (`.+?`) \| (.+?) \|", table, re.MULTILINE)]
    assert len(tables) == 2 and len(rows) == 14
    for names, default in rows:
        keys, said = re.findall(r"\w+", names), default.replace("`", "").split(", ")
        for key, value in zip(keys, said if len(said) == len(keys) else said * len(keys)):
            real = fields[key].default
            expected = {"none": (None, False, 0.0), "true": (True,), "false": (False,)}.get(value)
            assert real in expected if expected else str(real) in (value, f"{value}.0"), key
    of_every_task = {f.name for f in dataclasses.fields(RunArguments)}
    assert {"layer_decay", "projection_learning_rate_scale", "base_batch_size"} <= of_every_task


# All pages


PAGES = [README, OWN_HOST, VIDEOS_AND_POINTS]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # of peft
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_page_runs_as_written(page, tmp_path, monkeypatch, caplog):
    (tmp_path / "reader").mkdir()
    monkeypatch.chdir(tmp_path / "reader")
    caplog.set_level("ERROR", "transformers.pipelines.video_classification")
    with HubServer() as hub, hub.active(tmp_path / "hub"):
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
        (session,) = blocks("pycon", page.text)
        check_errors(session, {**page.names, **namespace})


@pytest.mark.parametrize("path", ["README.md", *sorted(f"docs/{path.name}" for path in (REPO / "docs").glob("*.md"))])
def test_files_named_exist(path):
    text = (REPO / path).read_text(encoding="utf-8")
    names = re.findall(r"\]\(([^)#]+)[^)]*\)|`([\w/]+/(?:[\w./]*\.(?:py|yaml))?)`|(quickstart/\w+\.yaml)", text)
    for name in map("".join, names):
        if not name.startswith(("http", "runs/", "labels/", "20bn")):
            folders = (REPO, REPO / "recipes", (REPO / path).parent)
            assert any((folder / name).exists() for folder in folders), name
