# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Shared code of the tasks with images and texts: the processor, images and texts as tensors."""

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoProcessor, AutoTokenizer, RobertaTokenizer
from transformers.utils import logging

from hf_frozen_llm.data.datasets import Example, Row
from hf_frozen_llm.data.image_texts import ImageTextArguments
from hf_frozen_llm.data.images import decode_image, to_rgb
from hf_frozen_llm.modeling.processing_meter_with_llm_block import MeterImageProcessor, MeterProcessor


logger = logging.get_logger(__name__)

SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # in RoBERTa's order
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)  # every byte is a token


def build_meter_processor(
    args: ImageTextArguments,
    host: Mapping[str, Any],
    config: Any,
    read_texts: Callable[[], Iterable[str]],
    answers: list[str] | None = None,
) -> MeterProcessor:
    """
    Return the processor that is saved with the model.

    Args:
        args ([`ImageTextArguments`]):
            Name the tokenizer.
        host (`Mapping[str, Any]`):
            The recipe's group `host`, whose text encoder has a tokenizer.
        config ([`MeterWithLLMBlockConfig`]):
            The model's configuration.
        read_texts (`Callable[[], Iterable[str]]`):
            Reads the texts of which a tokenizer is made, if none is named.
        answers (`list[str]`, *optional*):
            The answers that the model can give.
    """
    text_config = config.text_config
    source, revision = args.tokenizer_name_or_path, None
    if source is None:
        prefix = "text_" if host.get("text_name_or_path") is not None else ""
        source, revision = host.get(f"{prefix}name_or_path"), host.get(f"{prefix}revision")
    if source is None:
        tokenizer: Any = train_tokenizer(read_texts(), text_config.vocab_size)
    else:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    if len(tokenizer) > text_config.vocab_size or tokenizer.pad_token_id != text_config.pad_token_id:
        raise ValueError(
            f"The tokenizer {source} has {len(tokenizer):,} tokens and pads with {tokenizer.pad_token_id}; the text "
            f"encoder has {text_config.vocab_size:,} and pads with {text_config.pad_token_id}. Set "
            "tokenizer_name_or_path to its own, or vocab_size and pad_token_id of host.text_config."
        )
    longest = text_config.max_position_embeddings - text_config.pad_token_id - 1
    if args.max_length > longest:
        raise ValueError(f"max_length is {args.max_length}; the text encoder has positions for {longest}. Lower it.")
    image_processor = MeterImageProcessor({"shortest_edge": config.vision_config.image_size})
    return MeterProcessor(image_processor, tokenizer, answers, max_length=args.max_length)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> RobertaTokenizer:
    """Return a byte-level tokenizer of the parts that occur at least twice in the texts."""
    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(
            f"host.text_config has a vocab_size of {vocab_size}; a tokenizer made from the texts needs at least "
            f"{SMALLEST_VOCABULARY}. Raise it, or set tokenizer_name_or_path."
        )
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(
        texts, vocab_size=vocab_size, min_frequency=2, show_progress=False, special_tokens=SPECIAL_TOKENS
    )
    merges = json.loads(made.to_str())["model"]["merges"]
    pairs: Any = [tuple(pair) for pair in merges]
    return RobertaTokenizer(vocab=made.get_vocab(), merges=pairs)


def load_meter_processor(name_or_path: str) -> MeterProcessor:
    processor: Any = AutoProcessor.from_pretrained(name_or_path, trust_remote_code=False)
    if not isinstance(processor, MeterProcessor):
        raise ValueError(f"{name_or_path} has a {type(processor).__name__}; the processor of a METER is needed.")
    return processor


class ImageTextTransform(ABC):
    """
    Turn encoded images and texts into tensors; see [`ExampleTransform`].

    Args:
        args ([`ImageTextArguments`]):
            Say what happens to long texts.
        processor ([`MeterProcessor`]):
            The processor that is saved with the model.
        location (`str`):
            The source, named in errors.
    """

    def __init__(self, args: ImageTextArguments, processor: MeterProcessor, location: str):
        self.args, self.processor, self.location = args, processor, location
        self.has_warned = False

    @abstractmethod
    def __call__(self, rows: Sequence[Row], keys: Sequence[tuple[int, ...]]) -> list[Example]:
        """Return the examples of rows."""

    def encode_images(self, rows: Sequence[Row], numbers: Sequence[int]) -> torch.Tensor:
        images = []
        for row, number in zip(rows, numbers):
            image, location = decode_image(row["image"], f"{self.location}, row {number}")
            is_deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
            images.append(to_rgb(image, None, location) if is_deep else image)
        return self.processor(images=images)["pixel_values"]

    def encode_texts(self, texts: Sequence[str]) -> list[torch.Tensor]:
        """Return the tokens of each text, without padding; warn only once of texts that are too long."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            inputs = self.processor(text=list(texts), truncation=self.args.truncation)
        if caught and not self.has_warned:
            self.has_warned = True
            logger.warning(f"{self.location}: {caught[0].message} Later ones are cut off without a warning.")
        return [ids[mask.bool()] for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"])]


def pad_texts(texts: Sequence[torch.Tensor], processor: MeterProcessor) -> dict[str, torch.Tensor]:
    """Return `input_ids` and `attention_mask` of tokens."""
    padding = processor.tokenizer.pad_token_id
    masks = [torch.ones_like(ids) for ids in texts]
    return {
        "input_ids": pad_sequence(list(texts), batch_first=True, padding_value=padding),
        "attention_mask": pad_sequence(masks, batch_first=True),
    }
