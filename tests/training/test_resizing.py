# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Images that grow with the epoch."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_hosts import HOSTS, vision_model
from tiny_runs import TINY
from vision_cases import VIDEOMAE

from hf_frozen_llm.cli import main
from hf_frozen_llm.tasks import TASKS
from hf_frozen_llm.training.recipe import read_recipe
from hf_frozen_llm.training.resizing import ProgressiveResizing
from hf_frozen_llm.training.run import build_run


RESIZING = ["--progressive_resizing", "{0: 8, 1: 16, 2: 24}", "--num_train_epochs", "3"]
FEW = ["--max_train_samples", "16", "--save_steps", "2", "--host.hidden_dropout_prob", "0"]


def run(recipe, output_dir, *flags):
    main(["train", str(recipe), *TINY, *RESIZING, *FEW, "--output_dir", str(output_dir), *flags])
    return json.loads((output_dir / "results.json").read_text())


def test_size_of_each_epoch(recipe, tmp_path, monkeypatch):
    """Two steps an epoch; a resumed run is the uninterrupted one."""
    sizes, own = [], TASKS["image-classification"].models["vit_with_llm_block"]
    forward = own.forward

    def watched(self, pixel_values=None, **kwargs):
        sizes.append((pixel_values.shape[-1], self.training, kwargs.get("interpolate_pos_encoding")))
        return forward(self, pixel_values=pixel_values, **kwargs)

    monkeypatch.setattr(own, "forward", watched)
    run(recipe, tmp_path / "run")
    trained = [(size, asks) for size, training, asks in sizes if training]
    assert trained == [(8, True), (8, True), (16, None), (16, None), (24, True), (24, True)]
    assert {size for size, training, _ in sizes if not training} == {16}
    shutil.copytree(tmp_path / "run" / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    run(recipe, tmp_path / "again", "--resume")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "again"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_interpolation_is_that_of_pillow():
    """An antialiased bicubic filter, here of floating-point pixels."""
    resize = ProgressiveResizing({"0": 16, "5": 8}, vision_model("vit", None, pooling="cls"))
    pixels = np.random.default_rng(0).random((40, 40), dtype=np.float32)
    batch = {"pixel_values": torch.from_numpy(pixels).expand(2, 3, 40, 40), "labels": torch.zeros(2)}
    for epoch, size in ((0, 16), (4, 16), (5, 8), (9, 8)):
        resized = resize(batch, epoch)
        expected = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))
        np.testing.assert_allclose(resized["pixel_values"][1, 2].numpy(), expected, atol=1e-5)
        assert resized["interpolate_pos_encoding"] is True and resized["labels"] is batch["labels"]
    assert batch["pixel_values"].shape[-1] == 40


@pytest.mark.parametrize("name", ["vit", "deit", "dinov2", "dinov3_vit", "beit_cls", "siglip", "clip", "ijepa"])
def test_hosts_take_other_sizes(name):
    model = vision_model(name, None)
    batch = ProgressiveResizing({"0": 8}, model)({"pixel_values": HOSTS[name].pixels()}, 0)
    assert model(**batch).logits.shape == (2, 3)


def test_what_cannot_be_resized(recipe, tmp_path):
    with pytest.raises(ValueError, match=r"resizes images, and a videomae_with_llm_block takes video\. Remove it"):
        ProgressiveResizing({"0": 8}, VIDEOMAE.build(None))
    with pytest.raises(ValueError, match="the windows of a swin do not fit images of another size"):
        ProgressiveResizing({"0": 8}, vision_model("swin", None))
    for sizes, message in (
        ("{0: 12}", "12 is no multiple of the patch size 8"),
        ("{first: 8}", "'first' must be the number of an epoch"),
        ("{0: 0}", "and 0 a size of at least 1"),
    ):
        flags = ["--progressive_resizing", sizes, "--output_dir", str(tmp_path / "run")]
        with pytest.raises(ValueError, match=message):
            build_run(read_recipe(recipe, [*TINY, *flags])).trainer()
