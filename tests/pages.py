# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""A page of the documentation that a test runs as its reader would: commands at tiny size, Python in order, errors."""

import dataclasses
import importlib.metadata
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cutouts
import furniture_rooms
import moving_pictures
import pytest
from hub_server import HubServer
from paths import REPO, shared_dir
from PIL import Image
from tiny_runs import TINY_METER, TINY_POINT_BERT, TINY_VIDEOMAE
from tiny_scenes import TINY_SQA3D
from tiny_traffic import TINY_VECTORNET

from hf_frozen_llm.cli import main
from hf_frozen_llm.training.recipe import read_recipe


LLM = "HuggingFaceTB/SmolLM2-135M-Instruct"
SHORT = ["--max_steps", "2", "--eval_steps", "2"]
TINY_VIT = ["--host.hidden_size", "16", "--host.num_attention_heads", "2", *SHORT]
TINY_OF_TASK = {
    "video_classification": [*TINY_VIDEOMAE, *SHORT],
    "point_cloud_classification": [*TINY_POINT_BERT, *SHORT],
    "visual_question_answering": [*TINY_METER, *SHORT],
    "image_text_retrieval": [*TINY_METER, *SHORT],
    "situated_question_answering": [*TINY_SQA3D, *SHORT],
    "motion_forecasting": [*TINY_VECTORNET, *SHORT],
}
AfterBlock = tuple[dict[str, Any], str]


def add_llm(hub: HubServer, folder: Path | None = None) -> None:
    hub.add(LLM, shared_dir() / "models" / "SmolLM2-135M-Instruct-layers")


def prepare_images(hub: HubServer, folder: Path) -> None:
    """Write `pictures`, a folder of two classes, and `photo.jpg`; put the LLM on the Hub."""
    add_llm(hub)
    for split in ("train", "test"):
        for label, color in (("cat", (200, 20, 20)), ("dog", (20, 20, 200))):
            images = Path("pictures", split, label)
            images.mkdir(parents=True)
            for i in range(8):
                Image.new("RGB", (80, 60), color).save(images / f"{i}.png")
    shutil.copy("pictures/train/cat/0.png", "photo.jpg")


def check_nothing(text: str, ran: list[list[str]], after: list[AfterBlock]) -> None:
    pass


@dataclasses.dataclass
class Page:
    """
    A page that the test runs as a reader would.

    Args:
        path (`str`): in the repository.
        prepare (`Callable[[HubServer, Path], None]`, *optional*): puts the files that the page names into the current
            folder and on the Hub; the second argument is a temporary folder. By default `prepare_images`.
        tiny (`list[str]`, *optional*): flags that make a run of an image recipe tiny.
        check (`Callable[[str, list[list[str]], list[AfterBlock]], None]`, *optional*): gets the text, the commands,
            and after each block of Python a copy of its variables and what it printed.
        always (`list[str]`, *optional*): arguments of every run.
        names (`dict[str, Any]`, *optional*): names in the shown errors that the page's Python does not import.
        trained (`list[str]`, *optional*): folders that hold a model of two classes, trained before.
    """

    path: str
    prepare: Callable[[HubServer, Path], None] = prepare_images
    tiny: list[str] = dataclasses.field(default_factory=lambda: TINY_VIT)
    check: Callable[[str, list[list[str]], list[AfterBlock]], None] = check_nothing
    always: list[str] = dataclasses.field(default_factory=list)
    names: dict[str, Any] = dataclasses.field(default_factory=dict)
    trained: list[str] = dataclasses.field(default_factory=list)

    @property
    def text(self) -> str:
        return (REPO / self.path).read_text(encoding="utf-8")


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    lines = [line for block in blocks("bash", text) for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def table_rows(text: str, header: str) -> list[list[str]]:
    """Return the cells of the table whose header begins with `header`, without the header."""
    table = text[text.index(f"\n| {header}") :].lstrip().partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


def run_command(words: list[str], page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    match words:
        case ["make", *targets]:
            subprocess.run(["make", "-n", *targets], cwd=REPO, check=True, stdout=subprocess.DEVNULL)
        case ["bash", script]:
            assert (REPO / script).is_file()
        case ["pip", "install", "-e", what] | ["uv", "pip", "install", "-e", what]:
            wanted = set(re.search(r"\[(.*)\]", what)[1].split(","))
            assert wanted <= set(importlib.metadata.metadata("hf_frozen_llm").get_all("Provides-Extra"))
        case ["torchrun", "--nproc_per_node", _, "-m", "hf_frozen_llm", "train", recipe, *flags]:
            read_recipe(recipe, flags)
        case ["torchrun", "--nnodes", "2", "--node_rank", _, "--nproc_per_node", _, *where, "-m", _, _, recipe]:
            assert where[::2] == ["--master_addr", "--master_port"]  # tests/training/test_two_nodes.py runs this
            read_recipe(recipe)
        case ["torchrun", "--nproc_per_node", _, "-m", "hf_frozen_llm", *command]:
            main([*command, *page.always])
        case ["accelerate", "launch", "--config_file", file, "--num_processes", _, "-m", _, "train", recipe, *flags]:
            assert (REPO / file).is_file()
            read_recipe(recipe, flags)
        case ["python", "examples/moving_pictures.py", *_]:
            assert (REPO / words[1]).is_file()
            few = ["--dataset", "cifar10", "--train", "16", "--test", "8"]
            monkeypatch.setattr("sys.argv", [*words[1:], *few])
            moving_pictures.main()
        case ["python", "examples/cutouts.py", *_]:
            assert (REPO / words[1]).is_file()
            monkeypatch.setattr("sys.argv", [*words[1:], "--count", "12", "--size", "32"])
            cutouts.main()
        case ["python", "examples/furniture_points.py"]:
            # It needs Debian's packages; the page's preparation writes a small file instead.
            assert (REPO / words[1]).is_file() and Path("furniture_points.npz").is_file()
        case ["python", "examples/furniture_rooms.py", *_]:
            assert (REPO / words[1]).is_file()
            monkeypatch.setattr("sys.argv", [*words[1:], "--rooms", "3", "2", "2"])
            furniture_rooms.main()
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
    """Run the lines of `pycon` blocks; each must raise the error shown below it, of which ` …` may cut off the end."""
    cases = re.findall(r"^>>> (.*(?:\n\.\.\. .*)*)\n(\w+): (.*)$", session, re.MULTILINE)
    assert len(cases) == session.count(">>>") > 0
    for code, error_type, message in cases:
        shown = message.removesuffix(" …")
        with pytest.raises(Exception, match=f"^{re.escape(shown)}{'' if shown != message else '$'}") as error:
            eval(code.replace("\n... ", "\n"), namespace)
        assert error.type.__name__ == error_type
