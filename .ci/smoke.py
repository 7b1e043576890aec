# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""What an installed wheel must do: build, run, save and load a classifier by its Auto class, and carry its recipes."""

import tempfile
from importlib.resources import files

import torch
from transformers import AutoModelForImageClassification

import hf_frozen_llm
from hf_frozen_llm import LLMBlockConfig, ViTWithLLMBlockConfig, ViTWithLLMBlockForImageClassification


llm_config = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vocab_size": 16,
}
config = ViTWithLLMBlockConfig(
    hidden_size=16,
    intermediate_size=32,
    num_attention_heads=2,
    num_hidden_layers=1,
    image_size=16,
    patch_size=8,
    llm_block=LLMBlockConfig(llm_config=llm_config, weights="random"),
)
model = ViTWithLLMBlockForImageClassification(config).eval()
pixel_values = torch.randn(2, 3, 16, 16)
with torch.no_grad():
    logits = model(pixel_values=pixel_values).logits
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = AutoModelForImageClassification.from_pretrained(folder).eval()
    assert torch.equal(logits, again(pixel_values=pixel_values).logits)

recipes = [
    path for path in files("hf_frozen_llm.recipes").iterdir() if path.is_dir() and not path.name.startswith("__")
]
assert recipes, "the wheel carries no recipes"
print(f"hf_frozen_llm {hf_frozen_llm.__version__}: wheel works, recipes for {sorted(path.name for path in recipes)}")
