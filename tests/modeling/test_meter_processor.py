# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""METER's images, texts and answers."""

import re

import numpy as np
import pytest
import torch
from meter_cases import METER_QUESTIONS
from model_case import image
from paths import shared_dir
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_frozen_llm import MeterImageProcessor, MeterProcessor


@pytest.fixture
def processor():
    return METER_QUESTIONS.processor()


@pytest.mark.parametrize("kind", ["PIL", "array", "channels first"])
def test_pixels_equal_meters(kind):
    """Bit for bit, odd margins of the crop, enlargement and transparency included."""
    official = load_file(shared_dir() / "fixtures" / "meter" / "clip_transform_official.safetensors")
    processor, count = MeterImageProcessor({"shortest_edge": 32}), 0
    while (pixels := official.get(f"image.{count}")) is not None:
        picture = {"PIL": Image.fromarray(pixels.numpy()), "array": pixels.numpy()}.get(kind, pixels.permute(2, 0, 1))
        if kind == "PIL" or pixels.shape[-1] == 3:
            actual = processor(picture)["pixel_values"][0]
            assert torch.equal(actual, official[f"pixel_values.{count}"]), count
        count += 1
    assert count == len(official) / 2 > 4


def test_images_of_several_kinds_in_one_batch():
    processor = MeterImageProcessor({"shortest_edge": 8})
    pictures = [image(), image().convert("L"), image().convert("RGBA"), Image.new("P", (30, 9))]
    pixels = processor(pictures)["pixel_values"]
    assert pixels.shape == (4, 3, 8, 8) and torch.equal(pixels[0], pixels[2])
    assert isinstance(processor(pictures, return_tensors="np")["pixel_values"], np.ndarray)
    with pytest.raises(ValueError, match=r"give the side of the images, as in \{'shortest_edge': 224\}"):
        MeterImageProcessor({"height": 8, "width": 8})


def test_texts_are_padded_and_cut_off(processor):
    inputs = processor(text=["cats", "a"])
    assert inputs["input_ids"].tolist() == [[0, 7, 6, 13, 12, 2], [0, 6, 2, 1, 1, 1]]
    assert inputs["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert processor(text="a", padding="max_length")["input_ids"].shape == (1, 6)
    message = "1 of 2 texts have more than max_length=6 tokens; text 1 has 7: 'coats'"
    with pytest.warns(UserWarning, match=re.escape(f"{message}. They are cut off.")):
        assert processor(text=["a", "coats"])["input_ids"][1].tolist() == [0, 7, 10, 6, 13, 2]
    with pytest.raises(ValueError, match=re.escape(f"{message}. Set max_length higher")):
        processor(text=["a", "coats"], truncation=False)
    with pytest.raises(ValueError, match=re.escape("text 1 is empty (2 of 3 are).")):
        processor(text=["a", "", " "])
    with pytest.raises(ValueError, match="Give images, text, or both"):
        processor()


def test_answers(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is MeterProcessor and again.answers == ["cat", "dog", "bird"] and again.max_length == 6
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is MeterImageProcessor
    best = again.post_process_answers(torch.tensor([[0.0, 2.0, -1.0]]), top_k=2)
    assert [answer["answer"] for answer in best[0]] == ["dog", "cat"] and best[0][1]["score"] == 0.5
    with pytest.raises(ValueError, match="The logits are of 2 answers; the processor's answers are 3"):
        again.post_process_answers(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="answers holds an answer twice"):
        MeterProcessor(processor.image_processor, processor.tokenizer, ["cat", "cat"])
