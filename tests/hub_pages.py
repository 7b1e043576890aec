# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The pages on the Hub, run as written on the local one."""

from pathlib import Path

from huggingface_hub import metadata_load
from pages import AfterBlock, Page
from transformers import ViTModel

from hf_frozen_llm import ViTWithLLMBlockForImageClassification, ViTWithLLMBlockModel


def check_hub(text: str, ran: list[list[str]], after: list[AfterBlock]) -> None:
    assert [words[1] for words in ran] == ["push"] * 3
    loaded, pinned, measured = (variables for variables, _ in after)
    assert type(loaded["model"]) is type(pinned["model"]) is ViTWithLLMBlockForImageClassification
    assert type(loaded["encoder"]) is ViTWithLLMBlockModel and type(loaded["encoder"].vit) is ViTModel
    assert len(pinned["commit"]) == 40
    assert 0 <= measured["result"]["accuracy"] <= 1


HUB = Page("docs/hub.md", check=check_hub, trained=["runs/pictures"])


def check_cards(text: str, ran: list[list[str]], after: list[AfterBlock]) -> None:
    assert Path("runs/pictures/README.html").is_file()
    assert metadata_load("runs/pictures/README.md")["license"] == "mit"


CARDS = Page("docs/model_cards.md", check=check_cards, trained=["runs/pictures"])
