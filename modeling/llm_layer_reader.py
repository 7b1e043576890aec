# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Reading the decoder layers of an LLM block from the language model's checkpoint."""

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from .checkpoint_files import update_digest
from .configuration_llm_block import LLMBlockConfig
from .llm_checkpoint import LLMCheckpoint
from .llm_conversion import convert_tensors, find_keys
from .quantized_linear import QuantizedLinear


# Tensors that published layers hold and do not need: rotary frequencies (the configuration gives them), causal masks,
# and in fp8 checkpoints the scales by which activations would be quantised.
_NEEDLESS = re.compile(
    r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|rope\.freqs|(attn|attention)\.(bias|masked_bias)"
    r"|attn\.causal_mask|activation_scale)$"
)


class LLMLayerReader:
    """
    Finds the tensors of an LLM block in the language model's checkpoint, converts and copies them.

    Args:
        config ([`LLMBlockConfig`]): names the checkpoint; it is not changed.
        text_config (`PreTrainedConfig`): the configuration of the language model's decoder.
        module_paths (`dict[str, str]`): from prefixes of the block's tensors to the paths of their modules in the
            language model, such as `{"llm_layers.0.": "layers.3", "final_norm.": "norm"}`.
        base_model_prefix (`str`): the prefix of the language model's published keys, such as `model`.
        build_llm (`Callable`): returns the language model on the meta device; called only to convert tensors.
    """

    def __init__(
        self,
        config: LLMBlockConfig,
        text_config: PreTrainedConfig,
        module_paths: dict[str, str],
        base_model_prefix: str,
        build_llm: Callable[[], PreTrainedModel],
    ):
        self.config = config
        self.text_config = text_config
        self.module_paths = module_paths
        self.base_model_prefix = base_model_prefix
        self.build_llm = build_llm

    def read(self, targets: dict[str, torch.Tensor | QuantizedLinear], hub_kwargs: dict[str, Any]) -> tuple[str, int]:
        """
        Copy the checkpoint's tensors into `targets`, one at a time.

        Args:
            targets (`dict[str, torch.Tensor]`): the block's tensors by their names in the language model; in place of
                a quantised weight its [`QuantizedLinear`]. Tensors that the model's own checkpoint has initialised
                keep their values.
            hub_kwargs (`dict[str, Any]`): `token`, `cache_dir`, `local_files_only`, … for the Hub.

        Returns:
            `tuple[str, int]`: the fingerprint of the tensors as stored in the checkpoint, and the bytes read.

        Raises:
            `OSError`: if the checkpoint cannot be reached.
            `ValueError`: if it lacks tensors, has tensors that the layer has no place for, or tensors of another
                shape, of integers, or with infinite values.
        """
        if self.config.llm_name_or_path is None:
            raise ValueError("LLMBlockConfig.llm_name_or_path is not set, so the LLM layer cannot be read.")
        digest = hashlib.sha256()
        with LLMCheckpoint(self.config.llm_name_or_path, self.config.llm_revision, hub_kwargs) as checkpoint:
            sources = self._find_sources(checkpoint, targets)
            for name in sorted(sources):
                source = sources.pop(name)
                tensor = checkpoint.read(source) if isinstance(source, str) else source
                update_digest(digest, name, tensor)
                self._copy(name, targets[name], tensor)
            return digest.hexdigest(), checkpoint.bytes_read

    def _find_sources(
        self, checkpoint: LLMCheckpoint, targets: dict[str, torch.Tensor | QuantizedLinear]
    ) -> dict[str, str | torch.Tensor]:
        """Map the block's names to keys of the checkpoint, or to tensors if these had to be converted."""
        sources: dict[str, str | torch.Tensor] = {}
        for prefix, path in self.module_paths.items():
            expected = {name.removeprefix(prefix) for name in targets if name.startswith(prefix)}
            if not expected:
                continue  # a final norm without weights (OLMo)
            found: dict[str, Any] = dict(find_keys(checkpoint, path, expected, self.base_model_prefix, self.build_llm))
            found = {name: key for name, key in found.items() if name in expected or not _NEEDLESS.search(name)}
            if not found:
                raise ValueError(
                    f"{checkpoint.name_or_path} holds no tensors of {path} of {self.text_config.model_type}. It is "
                    "not the checkpoint of this language model, or lacks that layer (layer_index "
                    f"{self.config.layer_index})."
                )
            is_complete = expected <= set(found)
            if is_complete:
                self._check_unused(path, set(found) - expected)
            checkpoint.prefetch(path, [found[name] for name in (expected if is_complete else found)])
            if not is_complete:
                tensors = {name: checkpoint.read(key) for name, key in found.items()}
                for name, tensor in tensors.items():
                    self._check_type(name, targets.get(prefix + name), tensor)
                found, unused = convert_tensors(self.build_llm(), path, tensors)
                self._check_unused(path, unused)
            if missing := sorted(expected - set(found)):
                raise ValueError(
                    f"{checkpoint.name_or_path} lacks tensors of {path}: {missing}. The checkpoint is incomplete, or "
                    "quantised in a format that cannot be read."
                )
            sources.update({prefix + name: found[name] for name in expected})
        return sources

    def _check_unused(self, path: str, unused: Iterable[str]) -> None:
        """Refuse tensors of a module that it has no place for, except those that transformers leaves out, too."""
        if not unused:
            return
        left_out = self.build_llm()._keys_to_ignore_on_load_unexpected or ()
        unused = sorted(
            name
            for name in unused
            if not any(re.search(pattern, f"{self.base_model_prefix}.{path}.{name}") for pattern in left_out)
        )
        if unused:
            raise ValueError(
                f"{self.config.llm_name_or_path} holds tensors of {path} that this {self.text_config.model_type} has "
                f"no place for: {unused}. They are biases, adapters or scales that its config.json does not mention: "
                "use the plain checkpoint of this language model, with adapters merged, unquantised."
            )

    def _check_type(self, name: str, target: torch.Tensor | QuantizedLinear | None, tensor: torch.Tensor) -> None:
        """Refuse integers for a weight."""
        takes_integers = isinstance(target, torch.Tensor) and not target.is_floating_point()
        if not tensor.is_floating_point() and not takes_integers:
            raise ValueError(
                f"{self.config.llm_name_or_path} stores {name} as {tensor.dtype}, which cannot be read: it is "
                "quantised. Use the unquantised checkpoint of this language model."
            )

    def _copy(self, name: str, target: torch.Tensor | QuantizedLinear, tensor: torch.Tensor) -> None:
        self._check_type(name, target, tensor)
        shape = target.shape if isinstance(target, torch.Tensor) else target.shape_in_checkpoint
        if tuple(tensor.shape) != tuple(shape):
            raise ValueError(
                f"{self.config.llm_name_or_path}: {name} has the shape {tuple(tensor.shape)} in the checkpoint and "
                f"{tuple(shape)} by its config.json. Weights and configuration are of different models."
            )
        if isinstance(target, QuantizedLinear):
            target.read_weight(tensor)
        else:
            init.copy_(target, tensor)
        copied: torch.Tensor = target.scale if isinstance(target, QuantizedLinear) else target
        if copied.is_floating_point() and copied.numel() and not torch.stack(copied.aminmax()).isfinite().all():
            raise ValueError(
                f"{self.config.llm_name_or_path}: {name} holds NaN or infinite values as {copied.dtype}. The "
                "checkpoint is damaged, or its values do not fit into that type (llm_block.layer_dtype)."
            )
        copied._is_hf_initialized = True  # type: ignore[attr-defined]


def find_saved_layer(checkpoint: LLMCheckpoint) -> dict[str, str]:
    """Map the names of a saved model's LLM layers and norm in its block to their keys in its checkpoint."""
    keys = {key.removeprefix("llm_block."): key for key in checkpoint.keys()}
    return {name: key for name, key in keys.items() if name.startswith(("llm_layers.", "final_norm."))}


__all__ = ["LLMLayerReader", "find_saved_layer"]
