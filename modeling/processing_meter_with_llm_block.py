# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Images and texts as inputs of a METER."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_transforms import to_pil_image
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ImageInput,
    PILImageResampling,
    make_flat_list_of_images,
)

from .answers import rank_answers
from .code_files import SavedWithCode


class MeterImageProcessor(BaseImageProcessor):
    r"""
    Prepares images as METER does: the shorter side is resized to `size` (bicubic), a square is cut out of the middle,
    and the pixels are normalised by CLIP's mean and standard deviation. Transparency is taken into account when
    resizing, and then dropped: fully transparent pixels are black.

    Source: github.com/zdou0830/METER, `meter/transforms/transform.py` (`clip_transform`).

    Args:
        size (`dict[str, int]`, *optional*, defaults to `{"shortest_edge": 224}`):
            The side of the model's images.
        image_mean (`Sequence[float]`, *optional*, defaults to CLIP's):
            Mean of each channel.
        image_std (`Sequence[float]`, *optional*, defaults to CLIP's):
            Standard deviation of each channel.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        size: dict[str, int] | None = None,
        image_mean: Sequence[float] = OPENAI_CLIP_MEAN,
        image_std: Sequence[float] = OPENAI_CLIP_STD,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.size = {"shortest_edge": 224} if size is None else dict(size)
        if set(self.size) != {"shortest_edge"} or self.size["shortest_edge"] < 1:
            raise ValueError(f"size is {size}; give the side of the images, as in {{'shortest_edge': 224}}.")
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def preprocess(self, images: ImageInput, return_tensors: str | None = "pt", **kwargs: Any) -> BatchFeature:
        r"""
        Prepare one image or a list of them.

        Args:
            images (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of these): images, with or without an
                alpha channel.
            return_tensors (`str`, *optional*, defaults to `"pt"`): `"pt"` or `"np"`.

        Returns:
            `BatchFeature`: `pixel_values` of shape `(images, 3, size, size)`, float32.
        """
        flat: Any = make_flat_list_of_images(images)
        pixels = torch.stack([self._prepare(to_pil_image(image)) for image in flat])
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.image_mean, self.image_std))
        pixel_values = (pixels.float() / 255 - mean) / std
        return BatchFeature({"pixel_values": pixel_values}, tensor_type="pt").convert_to_tensors(return_tensors)

    def _prepare(self, image: Any) -> torch.Tensor:
        """Resize and crop an image of PIL to `(3, size, size)`."""
        side = self.size["shortest_edge"]
        width, height = image.size
        shorter = min(width, height)
        width, height = side * width // shorter, side * height // shorter
        image = image.convert("RGBA").resize((width, height), resample=PILImageResampling.BICUBIC)
        # torchvision rounds half a pixel to even.
        left, top = round((width - side) / 2), round((height - side) / 2)
        image = image.crop((left, top, left + side, top + side)).convert("RGB")
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class MeterProcessor(SavedWithCode, ProcessorMixin):
    r"""
    Prepares pairs of an image and a text as the inputs of a METER, and names its answers.

    Args:
        image_processor ([`MeterImageProcessor`]):
            The image processor.
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer, of a RoBERTa.
        answers (`list[str]`, *optional*):
            The answers of a model that answers questions, in the order of its classes.
        max_length (`int`, *optional*, defaults to 50):
            Largest number of tokens of a text, special tokens included.

    Example:

    ```python
    >>> from PIL import Image
    >>> from transformers import AutoTokenizer
    >>> from hf_frozen_llm import MeterImageProcessor, MeterProcessor

    >>> tokenizer = AutoTokenizer.from_pretrained("FacebookAI/roberta-base")
    >>> processor = MeterProcessor(MeterImageProcessor(), tokenizer, answers=["yes", "no"])
    >>> inputs = processor(Image.new("RGB", (640, 480)), "Is it a cat?")
    >>> inputs["pixel_values"].shape
    torch.Size([1, 3, 224, 224])
    ```"""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        answers: list[str] | None = None,
        max_length: int = 50,
        **kwargs: Any,
    ):
        super().__init__(image_processor, tokenizer, **kwargs)
        if answers is not None and len(set(answers)) != len(answers):
            raise ValueError("answers holds an answer twice.")
        self.answers = answers
        self.max_length = max_length

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        truncation: bool = True,
        padding: bool | str = True,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        r"""
        Prepare images, texts, or both.

        Args:
            images (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of these, *optional*): images.
            text (`str` or `list[str]`, *optional*): texts.
            truncation (`bool`, *optional*, defaults to `True`): whether texts of more than `max_length` tokens are cut
                off, with a warning, or an error.
            padding (`bool` or `str`, *optional*, defaults to `True`): as in a tokenizer; by default to the longest
                text.
            return_tensors (`str`, *optional*, defaults to `"pt"`): `"pt"` or `"np"`.

        Returns:
            `BatchFeature`: `pixel_values` of the images; `input_ids` and `attention_mask` of the texts.

        Raises:
            `ValueError`: for an empty text, or one that is too long with `truncation=False`.
        """
        if images is None and text is None:
            raise ValueError("Give images, text, or both.")
        features: dict[str, Any] = {}
        if images is not None:
            features.update(self.image_processor(images, return_tensors=return_tensors))
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            self._check(texts, truncation)
            features.update(
                self.tokenizer(
                    texts,
                    padding=padding,
                    truncation=True,
                    max_length=self.max_length,
                    return_token_type_ids=False,
                    return_tensors=return_tensors,
                )
            )
        return BatchFeature(features)

    def _check(self, texts: list[str], truncation: bool) -> None:
        """Refuse empty texts; refuse, or warn of, texts that are too long."""
        if empty := [index for index, text in enumerate(texts) if not text.strip()]:
            raise ValueError(f"text {empty[0]} is empty ({len(empty)} of {len(texts)} are).")
        lengths = [len(ids) for ids in self.tokenizer(texts, truncation=False, verbose=False)["input_ids"]]
        too_long = [index for index, length in enumerate(lengths) if length > self.max_length]
        if too_long:
            first = too_long[0]
            message = (
                f"{len(too_long)} of {len(texts)} texts have more than max_length={self.max_length} tokens; text "
                f"{first} has {lengths[first]}: {texts[first][:60]!r}"
            )
            if not truncation:
                raise ValueError(f"{message}. Set max_length higher, or truncation=True.")
            warnings.warn(f"{message}. They are cut off.", stacklevel=3)

    def post_process_answers(self, logits: torch.Tensor, top_k: int = 5) -> list[list[dict[str, Any]]]:
        r"""
        Name the best answers of each question.

        Args:
            logits (`torch.Tensor` of shape `(batch, answers)`): outputs of the model.
            top_k (`int`, *optional*, defaults to 5): how many answers.

        Returns:
            `list[list[dict]]`: for each question `answer` and `score`, between 0 and 1, the best first.
        """
        return rank_answers(self.answers, logits, top_k)


__all__ = ["MeterImageProcessor", "MeterProcessor"]
