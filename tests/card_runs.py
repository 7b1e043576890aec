# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Runs whose cards are tested: their recipe and kinds, and what a test reads of a card."""

import json

from huggingface_hub import ModelCard
from tiny_runs import TINY, TINY_DINOV2, TINY_POINT_BERT, TINY_SWIN, TINY_VIDEOMAE


LLM_ID, DATASET = "owner/tiny-llama", "owner/animals"
RECIPE = """\
dataset_name: {data}
eval_split: test
llm_block:
  llm_name_or_path: {llm}
metrics: [f1]
num_train_epochs: 3
learning_rate: 1e-3
eval_strategy: epoch
save_strategy: epoch
logging_steps: 5
"""
VIDEOS = ["--task", "video-classification", "--model_type", "videomae_with_llm_block"]
POINTS = ["--task", "point-cloud-classification", "--model_type", "point_bert_with_llm_block"]
KINDS = {
    "image": [*TINY, "--load_best_model_at_end", "true"],
    "light": [*TINY, "--llm_block.save_weights", "false"],
    "plain host": [*TINY, "--llm_block", "null"],
    "control": [*TINY, "--llm_block.kind", "mlp"],
    "random": [*TINY, "--llm_block.weights", "random"],
    "any host": TINY_DINOV2,
    "swin": TINY_SWIN,
    "video": [*VIDEOS, *TINY_VIDEOMAE, "--max_steps", "2", "--logging_steps", "1"],
    "points": [*POINTS, *TINY_POINT_BERT, "--max_steps", "2", "--logging_steps", "1"],
}


def read_card(folder):
    """Return the metadata, parsed and checked by huggingface_hub, and the text."""
    card = ModelCard.load(folder / "README.md")
    return card.data, card.text


def change(file, **entries):
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **entries}))
