# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Operations of METER at the paper's size, plain and with a layer of LLaMA-7B: as released, and as run here.

    python benchmarks/meter_flops.py [--output benchmarks/results/meter_flops.md]

CLIP ViT-B/32 at 224 pixels (50 image tokens), RoBERTa-base, six fusion layers of each modality, 3,129 answers, texts
of 50 tokens, METER's largest length. Counted on the meta device: exact, and without weights. The released construction
runs the layer on all image tokens; METER's retrieval encodes the image again for each of its texts.
"""

import argparse
from pathlib import Path

import torch
from loading import LLAMA_7B
from torch.utils.flop_counter import FlopCounterMode

from hf_frozen_llm import (
    LLMBlockConfig,
    MeterWithLLMBlockConfig,
    MeterWithLLMBlockForImageTextRetrieval,
    MeterWithLLMBlockForVisualQuestionAnswering,
)


IMAGES, TOKENS, TEXTS, ANSWERS = 32, 50, 16, 3129
QUESTIONS, RETRIEVAL = MeterWithLLMBlockForVisualQuestionAnswering, MeterWithLLMBlockForImageTextRetrieval
PLAIN, PLAIN_ONCE, RELEASED, OURS = (
    "plain METER",
    "plain METER, image encoded once",
    "released construction",
    "this package",
)
# For each task: the model class, whether the block has the fast path (`None`: no block), whether images are repeated.
TASKS = {
    "questions": {
        PLAIN: (QUESTIONS, None, False),
        RELEASED: (QUESTIONS, False, False),
        OURS: (QUESTIONS, True, False),
    },
    f"retrieval, {TEXTS} texts": {
        PLAIN: (RETRIEVAL, None, True),
        RELEASED: (RETRIEVAL, False, True),
        PLAIN_ONCE: (RETRIEVAL, None, False),
        OURS: (RETRIEVAL, True, False),
    },
}
HEADER = f"""\
# Operations of METER with a layer of LLaMA-7B

`python benchmarks/meter_flops.py`; CLIP ViT-B/32 at 224 pixels, RoBERTa-base, texts of {TOKENS} tokens, batches of
{IMAGES} images. GFLOP of the matrix products for one image, a multiplication and an addition are two operations. For
questions each image has one text; for retrieval {TEXTS} (a caption and 15 false ones), for which METER, and the
released construction, encode the image {TEXTS} times, and this package once. The released construction runs the
layer on all 50 image tokens, this package for the one token that is read. In brackets: the difference from plain METER
of the same kind.

| task | model | forward | training step |
|---|---|---:|---:|"""


def count(task, is_fast, repeats_images):
    """Return the operations of a forward and of a training step for one image, in GFLOP."""
    texts = 1 if task is QUESTIONS else TEXTS
    block = None
    if is_fast is not None:
        block = LLMBlockConfig(llm_config={"model_type": "llama", **LLAMA_7B}, weights="random", fast=is_fast)
    with torch.device("meta"):
        model = task(MeterWithLLMBlockConfig(num_labels=ANSWERS, llm_block=block))
        images = torch.zeros(IMAGES * (texts if repeats_images else 1), 3, 224, 224)
        inputs = {"pixel_values": images, "input_ids": torch.zeros(IMAGES * texts, TOKENS, dtype=torch.long)}
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model.eval()(**inputs)
    with FlopCounterMode(display=False) as step:
        sum(output.sum() for output in model.train()(**inputs).to_tuple()).backward()
    return [counter.get_total_flops() / IMAGES / 1e9 for counter in (forward, step)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rows = []
    for task, models in TASKS.items():
        counts = {name: count(*model) for name, model in models.items()}
        for name, values in counts.items():
            plain = counts[PLAIN if name == RELEASED or PLAIN_ONCE not in counts else PLAIN_ONCE]
            has_block = name in (RELEASED, OURS)
            added = [
                f" (+{100 * (value / base - 1):,.1f} %)" if has_block else "" for value, base in zip(values, plain)
            ]
            cells = [f"{value:,.1f}{more}" for value, more in zip(values, added)]
            rows.append(f"| {task} | {name} | {' | '.join(cells)} |")
    table = "\n".join([HEADER, *rows, ""])
    print(table)
    if args.output:
        args.output.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
