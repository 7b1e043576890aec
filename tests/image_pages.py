# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The pages about metrics and activation maps of image models, as test_documents.py runs them."""

import json
import re
import shutil
import sys
from pathlib import Path

import hand_grad_cam
import pandas as pd
import torch
from hub_server import HubServer
from masked_images import write_cutouts
from pages import AfterBlock, Page, prepare_images, table_rows

from hf_frozen_llm.tasks.image_classification.corruptions import CORRUPTIONS
from hf_frozen_llm.tasks.image_classification.suites import SUITES


# docs/metrics.md


def prepare_metrics(hub: HubServer, folder: Path) -> None:
    prepare_images(hub, folder)
    for suite in ("imagenet-a", "imagenet-r"):
        for label, wnid in (("cat", "n02123045"), ("dog", "n02084071")):
            shutil.copytree(f"pictures/test/{label}", f"path/to/test_sets/{suite}/{wnid}")
    Path("wnids.txt").write_text("n02123045 cat\nn02084071 dog\n")


def check_metrics(text: str, ran: list[list[str]], after: list[AfterBlock]) -> None:
    corrupted = json.loads(Path("runs/pictures/eval_results_gaussian_noise_3.json").read_text())
    assert corrupted["dataset"]["corruption"] == "gaussian_noise" and corrupted["dataset"]["corruption_severity"] == 3
    rows, shifted = pd.read_csv("robustness.csv"), pd.read_csv("shifted.csv")
    assert rows.suite.tolist() == ["clean", *["corruptions"] * 75, "fgsm", "pgd", "corruptions"]
    assert shifted.suite.tolist() == ["imagenet-a", "imagenet-r"] and set(shifted["count"]) == {16}
    assert Path("robustness.png").is_file() and Path("shifted.png").is_file()
    own = [name for row in table_rows(text, "suite |") for name in re.findall(r"`([\w-]+)`", row[0])]
    assert sorted(own) == sorted(SUITES)
    listed = [name for row in table_rows(text, "corruptions |") for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(listed) == sorted(CORRUPTIONS)


METRICS = Page("docs/metrics.md", prepare_metrics, check=check_metrics, trained=["runs/pictures"])


# docs/analysis.md


def prepare_cutouts(hub: HubServer, folder: Path) -> None:
    prepare_images(hub, folder)
    for name in ("animals", "vehicles"):
        write_cutouts(Path("stamps/usr/share/tuxpaint/stamps", name), 2)
    shutil.copytree("pictures/test", "backgrounds")
    sys.modules.setdefault("pytorch_grad_cam", hand_grad_cam)  # it needs torchvision


def check_analysis(text: str, ran: list[list[str]], after: list[AfterBlock]) -> None:
    suggestion = pd.read_csv("suggestion.csv")
    assert suggestion["suggested"].sum() == 1 and len(suggestion) > 2
    assert {name for row in table_rows(text, "column |") for name in re.findall(r"`(\w+)`", row[0])} < set(suggestion)
    written = {file.name for file in Path("analysis").iterdir()}
    named = {name for row in table_rows(text, "file |") for name in re.findall(r"`([\w.]+)`", row[0])}
    figures = {name for name in named if "." not in name}
    assert written == (named - figures) | {f"{name}.{kind}" for name in figures for kind in ("png", "svg")}
    (namespace, printed), (gradients, _), (cam, _) = after
    taps = [re.findall(r"\w+", row[0])[0] for row in table_rows(text, "name | tokens")]
    assert printed == f"{taps} (4, 4)\n"  # the recipe has a residual connection around the block
    assert namespace["heatmap"].shape == (1, 4, 4) and namespace["attention"].shape == (1, 16)
    model, pixels, label = (gradients[name] for name in ("model", "pixels", "label"))
    model.config.return_dict = True
    with torch.no_grad():
        logits = [model(pixel_values=each).logits[0, label] for each in (pixels, torch.zeros_like(pixels))]
    torch.testing.assert_close(gradients["attributions"].sum(), logits[0] - logits[1], rtol=0.05, atol=0.01)
    assert cam["grad_cam"].shape == (1, *pixels.shape[2:]) and 0 <= cam["grad_cam"].min() <= cam["grad_cam"].max() <= 1


ANALYSIS = Page("docs/analysis.md", prepare_cutouts, check=check_analysis)
