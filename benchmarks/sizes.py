# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Parameters and bytes of ViT-T, S and B with a layer of SmolLM2-135M or LLaMA-7B, and of their saved folders.

    python benchmarks/sizes.py --llm SmolLM2-135M-Instruct-layers [--output benchmarks/results/sizes.md]

Bytes are counted from the shapes, without allocating them: no weights are read. For SmolLM2, whose folder `--llm`
names (`hf-frozen-llm layer … --output`), the models are also built and saved, and the files' sizes are printed.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from loading import LLAMA_7B

from hf_frozen_llm import LLMBlockConfig, ViTWithLLMBlockConfig, ViTWithLLMBlockForImageClassification


LLMS = {
    "SmolLM2-135M": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "LLaMA-7B": LLAMA_7B,
}
WIDTHS = {"ViT-T": 192, "ViT-S": 384, "ViT-B": 768}
ADAMW = 8  # bytes of AdamW's two averages, for each trained parameter
HEADER = """\
# Sizes of models and of their folders

`python benchmarks/sizes.py --llm SmolLM2-135M-Instruct-layers`; 1,000 classes, images of 224 pixels, float32. *light*
and *self-contained* are `model.safetensors` without and with the LLM layer (the second is also the memory of the
weights), *bfloat16 layer* is self-contained with `layer_dtype: bfloat16`, *checkpoint* is a `checkpoint-<n>` of
Trainer (light, with AdamW's state). MB are 10^6 bytes, counted from the shapes. {measured}

| model | trained | frozen | light MB | self-contained MB | bfloat16 layer MB | checkpoint MB |
|---|---:|---:|---:|---:|---:|---:|"""


def config_of(width, block):
    return ViTWithLLMBlockConfig(
        hidden_size=width,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        num_labels=1000,
        llm_block=block,
    )


def count(width, llm):
    """Return the numbers of trained and of frozen parameters."""
    block = llm and LLMBlockConfig(llm_config={"model_type": "llama", **llm}, weights="random")
    with torch.device("meta"):
        model = ViTWithLLMBlockForImageClassification(config_of(width, block))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained, sum(p.numel() for p in model.parameters()) - trained


def saved_bytes(width, llm_folder, save_weights):
    """Return the size of the weights' file of a model that is built and saved."""
    block = LLMBlockConfig(llm_name_or_path=llm_folder, save_weights=save_weights)
    with tempfile.TemporaryDirectory() as folder:
        ViTWithLLMBlockForImageClassification(config_of(width, block)).save_pretrained(folder)
        return Path(folder, "model.safetensors").stat().st_size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", help="folder with the last layer of SmolLM2-135M")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rows, differences = [], []
    for host, width in WIDTHS.items():
        for name, llm in {"": None, **LLMS}.items():
            trained, frozen = count(width, llm)
            light, whole = 4 * trained, 4 * (trained + frozen)
            sizes = [light, whole, light + 2 * frozen, light + ADAMW * trained]
            cells = [f"{host} + {name}" if name else host, f"{trained:,}", f"{frozen:,}"]
            rows.append(f"| {' | '.join([*cells, *(f'{size / 1e6:,.1f}' for size in sizes)])} |")
            if args.llm and name == "SmolLM2-135M":
                for counted, is_whole in ((light, False), (whole, True)):
                    differences.append(100 * abs(saved_bytes(width, args.llm, is_whole) / counted - 1))
    measured = (
        f"Saved models with SmolLM2's layer have these sizes, within {max(differences):.2f} %." if differences else ""
    )
    table = "\n".join([HEADER.format(measured=measured), *rows, ""])
    print(table)
    if args.output:
        args.output.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
