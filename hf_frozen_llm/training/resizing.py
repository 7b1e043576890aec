# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Training on images whose size grows with the epoch (progressive resizing)."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch.nn import functional as F

from hf_frozen_llm.tasks.task import Batch


class ProgressiveResizing:
    """
    Resize augmented training batches on the device, by antialiased bicubic interpolation. Host and block see fewer
    tokens; the host interpolates its positions.

    Args:
        sizes (`Mapping[str, int]`): height and width of the images from each epoch on; before the first of them, and
            in evaluation, images have the model's own size.
        model (`PreTrainedModelWithLLMBlock`): the model, which must take images.

    Raises:
        `ValueError`: for a model of other inputs, a host with windows (Swin), or a size that is no multiple of the
            patch size.
    """

    def __init__(self, sizes: Mapping[str, int], model: Any):
        if list(model.input_modalities) != ["image"]:
            raise ValueError(
                f"progressive_resizing resizes images, and a {model.config.model_type} takes "
                f"{' and '.join(model.input_modalities)}. Remove it."
            )
        host = getattr(model, model.base_model_prefix)
        if hasattr(host.config, "window_size"):
            raise ValueError(
                f"progressive_resizing: the windows of a {host.config.model_type} do not fit images of another size. "
                "Remove it."
            )
        patch_size = getattr(host.config, "patch_size", None)
        for size in sizes.values():
            if isinstance(patch_size, int) and size % patch_size != 0:
                raise ValueError(
                    f"progressive_resizing: {size} is no multiple of the patch size {patch_size}. Give multiples."
                )
        self.sizes = {int(epoch): size for epoch, size in sizes.items()}
        # Others interpolate without being asked, or have no positions.
        self.asks = "interpolate_pos_encoding" in inspect.signature(host.forward).parameters

    def __call__(self, batch: Batch, epoch: int) -> Batch:
        begun = [first for first in self.sizes if first <= epoch]
        pixels = batch["pixel_values"]
        if not begun or pixels.shape[-2:] == (self.sizes[max(begun)],) * 2:
            return batch
        size = self.sizes[max(begun)]
        small = F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
        return {**batch, "pixel_values": small, **({"interpolate_pos_encoding": True} if self.asks else {})}
