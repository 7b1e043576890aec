# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The LLM block: a frozen decoder layer of a language model between two trained projections."""

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils.output_capturing import OutputRecorder

from .checkpoint_files import digest_tensors
from .configuration_llm_block import LLMBlockConfig
from .fast_llm_layer import AttentionPlan, LayerPlan, choose_attention_plan, folds_output, run_layer
from .llm_checkpoint import load_llm_config
from .llm_layer import (
    LLMLayers,
    build_final_norm,
    build_llm,
    build_llm_layers,
    disable_dropout,
    has_rotary,
    init_random_layers,
    init_unit_norm,
)
from .llm_layer_call import LLMLayerCaller, attention_bias
from .llm_layer_reader import LLMLayerReader
from .llm_layer_scale import balanced_input_scale, layer_update_ratio
from .llm_layer_weights import LayerWeights, find_layer_weights
from .pretrained_model import LOADING, PreTrainedModelWithLLMBlock, check_stored_tensors
from .quantized_linear import quantize_linear_modules, targets_of_reading


PROJECTION_STD = 0.02  # released image code, models/vit_llama.py


class LLMBlock(PreTrainedModelWithLLMBlock):
    r"""
    A decoder layer of a language model inside a vision encoder: `(batch, tokens, hidden_size)` to the same shape.

    ```
    h = input_scale * W_in x           input_projection, Linear(d, D, bias=False)
    h = llm_layers(h)                  frozen; no causal mask, every token at position 0
    h = final_norm(h)                  frozen
    y = W_out h                        output_projection, Linear(D, d, bias=False)
    ```

    Source: "Frozen Transformers in Language Models Are Effective Visual Encoder Layers" (ICLR 2024), section 3, and
    its released code (github.com/ziqipang/LM4VisualEncoding, `image_classification/models`). The block may be used
    alone in any `nn.Module`. Building it reads the layer from the language model; only its projections are trained.
    Within a model it computes only the tokens that the head uses, and all tokens if a forward or backward hook on it
    sees them, or with `config.fast=False`.

    Args:
        config ([`LLMBlockConfig`]): the block's configuration.

    Raises:
        `ValueError`: if the language model has no such layer, the layer cannot run alone, the checkpoint lacks its
            tensors, or its tensors do not match the configuration's fingerprint.

    Example:

    ```python
    >>> import torch
    >>> from hf_frozen_llm import LLMBlock, LLMBlockConfig

    >>> block = LLMBlock(LLMBlockConfig(llm_name_or_path="HuggingFaceTB/SmolLM2-135M", hidden_size=192))
    >>> block(torch.randn(2, 65, 192)).shape
    torch.Size([2, 65, 192])
    ```"""

    config: LLMBlockConfig
    base_model_prefix = "llm_block"
    main_input_name = "hidden_states"
    _llm_block_prefix = ""
    _keys_to_ignore_on_load_missing = [r"(^|\.)llm_layers\.", r"(^|\.)final_norm\."]
    _can_record_outputs = {
        "hidden_states": OutputRecorder(cast(type[nn.Module], None), class_name="llm_block"),
        "attentions": [
            # Match `<layer index>.attn` only, not modules nested in it: GPT-Neo has an `attention` inside `attn`.
            OutputRecorder(cast(type[nn.Module], None), index=1, class_name=f"{digit}.{name}")
            for digit in range(10)
            for name in ("self_attn", "attn", "attention", "self_attention")
        ],
    }

    def __init__(self, config: LLMBlockConfig):
        super().__init__(config)
        if config.hidden_size is None:
            raise ValueError("LLMBlockConfig.hidden_size is not set: give the width of the host's tokens.")
        self._complete_llm_config()
        self._text_config = self._llm_config.get_text_config(decoder=True)
        built = None
        if config.kind in ("llm", "identity"):
            built = build_llm_layers(self._llm_config, config.layer_index, self._layer_dtype())
        llm_hidden_size = (self._text_config if built is None else built.config).hidden_size
        self.input_projection = nn.Linear(config.hidden_size, llm_hidden_size, bias=False)
        self.llm_layers: nn.ModuleList = nn.ModuleList()
        self.final_norm: nn.Module | None = None
        self.mlp_norm = nn.LayerNorm(llm_hidden_size) if config.kind == "mlp" else None
        self.bytes_read = 0
        if built is not None:
            self._add_llm_layers(built)
        self.output_projection = nn.Linear(llm_hidden_size, config.hidden_size, bias=False)
        has_linear_skip = config.residual == "outer_linear"
        self.skip_projection = nn.Linear(config.hidden_size, config.hidden_size) if has_linear_skip else None

        self._llm_tensor_names = sorted(self._named_llm_tensors())
        self._remembered_digest: str | None = None
        self.post_init()
        self.freeze_llm_layers()
        if self.input_projection.weight.device.type != "meta":
            self.complete_from_weights()

    def _add_llm_layers(self, built: LLMLayers) -> None:
        config, device = self.config, self.input_projection.weight.device
        self.final_norm = build_final_norm(built, config.final_norm)
        if device.type != "meta" and self.final_norm is not None:
            self.final_norm.to_empty(device=device)
        if config.kind == "identity":
            return
        if config.rotary and not has_rotary(built):
            raise ValueError(f"rotary=True, but {built.config.model_type} has no rotary positions. Use rotary=False.")
        self.llm_layers = built.layers
        self._base_model_prefix = built.llm.base_model_prefix
        self._llm_paths = {f"llm_layers.{i}.": built.layer_path(index) for i, index in enumerate(built.indices)}
        if config.final_norm == "pretrained":
            self._llm_paths["final_norm."] = cast(str, built.final_norm_path)
        self._caller = LLMLayerCaller(built, self._llm_config, config.rotary, config.attention == "causal")
        if config.quantization is not None:
            quantize_linear_modules(self.llm_layers, config.quantization, built.config.model_type)
        if device.type != "meta":
            self.llm_layers.to_empty(device=device)
        if not config.trainable:
            disable_dropout(self.llm_layers)

    def _get_llm_block(self) -> "LLMBlock":
        return self

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Return valid inputs of one example: 8 tokens, on the default device."""
        return {"hidden_states": torch.zeros(1, 8, cast(int, self.config.hidden_size), dtype=self.dtype)}

    def _complete_llm_config(self) -> None:
        config = self.config
        if config.llm_config is None:
            if config.llm_name_or_path is None:
                raise ValueError("LLMBlockConfig names no language model: set llm_name_or_path (or llm_config).")
            with self._name_errors() as hub_kwargs:
                config.llm_config, commit = load_llm_config(config.llm_name_or_path, config.llm_revision, hub_kwargs)
            config.llm_revision = commit or config.llm_revision
            if config._attn_implementation is not None:
                self._llm_config._attn_implementation = config._attn_implementation

    @contextmanager
    def _name_errors(self) -> Iterator[dict[str, Any]]:
        """Yield the arguments for the Hub; name the field of the configuration in errors of reading."""
        try:
            yield (LOADING.get() or {}).get("hub_kwargs", {})
        except OSError as error:
            raise OSError(
                f"The language model of llm_block.llm_name_or_path, {self.config.llm_name_or_path!r}, cannot be read: "
                f"{error} If it has moved, say where: from_pretrained(…, llm_block={{'llm_name_or_path': …}})."
            ) from error

    @property
    def _llm_config(self) -> PreTrainedConfig:
        return cast(PreTrainedConfig, self.config.llm_config)

    def _layer_dtype(self) -> torch.dtype:
        name = self.config.layer_dtype if self.config.kind == "llm" else None
        return getattr(torch, name) if name else torch.get_default_dtype()

    def _named_llm_tensors(self) -> dict[str, torch.Tensor]:
        state = self.state_dict(keep_vars=True)
        return {name: tensor for name, tensor in state.items() if name.startswith(("llm_layers.", "final_norm."))}

    def llm_tensors(self) -> list[str]:
        """Return the names of the tensors of the LLM layers and their norm, without those of adapters."""
        own = set(self._llm_tensor_names)
        return [name for name in self._named_llm_tensors() if name.replace(".base_layer.", ".") in own]

    # The LLM layer is initialised by reading it from the language model.

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        check_stored_tensors(self)
        if module is self.input_projection or module is self.output_projection:
            init.trunc_normal_(module.weight, std=PROJECTION_STD)
            return
        if self.skip_projection is not None and module is self.skip_projection:
            init.trunc_normal_(self.skip_projection.weight, std=PROJECTION_STD)
            init.zeros_(self.skip_projection.bias)
            return
        if self.mlp_norm is not None and module is self.mlp_norm:
            init.ones_(self.mlp_norm.weight)
            init.zeros_(self.mlp_norm.bias)
            return
        in_layers = any(module is m for m in self.llm_layers.modules())
        in_norm = self.final_norm is not None and any(module is m for m in self.final_norm.modules())
        if not (in_layers or in_norm):
            return
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if not own or any(tensor.is_meta for tensor in own):
            return
        if in_norm and self.config.final_norm == "unit":
            init_unit_norm(module)
            return
        if module._non_persistent_buffers_set:
            self._build_llm()._init_weights(module)
            for name in module._non_persistent_buffers_set:
                buffer = getattr(module, name)
                if buffer is not None and name == "bias":
                    buffer.fill_(1)  # the causal mask of GPT-Neo and GPT; the block passes its mask explicitly
        persistent = [
            tensor
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            if name not in module._non_persistent_buffers_set and not getattr(tensor, "_is_hf_initialized", False)
        ]
        if not persistent:
            return
        if self.config.weights == "random":
            init_random_layers(self.llm_layers, self._build_llm(), list(self._llm_paths.values()))
        else:
            self._read_llm_layers()

    def _build_llm(self) -> PreTrainedModel:
        return build_llm(self._llm_config, self._layer_dtype())

    def _read_llm_layers(self) -> None:
        """Read the LLM tensors that the model's own checkpoint lacks, and check their fingerprint."""
        config = self.config
        reader = LLMLayerReader(
            config, self._text_config, self._llm_paths, self._base_model_prefix, build_llm=self._build_llm
        )
        tensors = self._named_llm_tensors()
        with self._name_errors() as hub_kwargs:
            fingerprint, self.bytes_read = reader.read(targets_of_reading(self, tensors), hub_kwargs)
        stored_block = (LOADING.get() or {}).get("stored_block") or {}
        expected = config.fingerprint or stored_block.get("fingerprint")
        if expected not in (None, fingerprint):
            raise ValueError(
                f"The LLM layer read from {config.llm_name_or_path} is not the one this model was trained with: its "
                f"fingerprint is {fingerprint[:16]}…, expected is {expected[:16]}… (layer "
                f"{config.layer_index} of a {self._llm_config.model_type} at revision "
                f"{config.llm_revision or 'unknown'}). The same language model in another format or precision (GGUF, "
                "fp16) has another fingerprint. Name the right language model by "
                "from_pretrained(…, llm_block={'llm_name_or_path': …}), or save the model self-contained "
                "(llm_block.save_weights=True)."
            )
        config.fingerprint = fingerprint
        if config.weights == "shuffled":
            config.fingerprint = None  # none of the language model's layers any more
            for tensor in tensors.values():
                tensor.copy_(tensor.flatten()[torch.randperm(tensor.numel(), device=tensor.device)].view_as(tensor))

    # Freezing. `from_pretrained` of transformers makes every parameter trainable, and ends with `eval()`.

    def freeze_llm_layers(self) -> None:
        """Freeze the LLM layers and their norm as the configuration says; leave adapters inside them as they are."""
        frozen = set(self._llm_tensor_names)
        for name, parameter in self.named_parameters():
            if name.replace(".base_layer.", ".") in frozen:
                is_unit_norm = name.startswith("final_norm.") and self.config.final_norm == "unit"
                if is_unit_norm or not self.config.trainable:
                    parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> "LLMBlock":
        super().train(mode)
        if not self.config.trainable:
            for module in self.llm_layers.modules():
                if "Router" in type(module).__name__:
                    module.eval()  # Phi-3.5-MoE's router chooses experts at random in training
        self.freeze_llm_layers()
        return self

    # Whether a checkpoint may leave out the LLM layer.

    def is_reloadable(self) -> bool:
        """Return whether the layer can be read again from the language model."""
        config = self.config
        return config.kind == "llm" and config.weights == "pretrained" and not config.trainable

    def _llm_digest(self) -> str | None:
        tensors = {name.replace(".base_layer.", "."): tensor for name, tensor in self._named_llm_tensors().items()}
        return digest_tensors({name: tensor for name, tensor in tensors.items() if name in self._llm_tensor_names})

    def complete_from_weights(self) -> None:
        """
        Remember a digest of the layer, to notice when saving that it has been modified, and replace a balanced
        `input_scale` by its number. Building and loading a block call it once its weights are there.

        Raises:
            `ValueError`: if the layer has no balanced `input_scale`.
        """
        self._remembered_digest = self._llm_digest() if self.is_reloadable() else None
        if self.config.input_scale == "balanced":
            std = PROJECTION_STD * math.sqrt(cast(int, self.config.hidden_size))
            self.config.input_scale = balanced_input_scale(self.llm_layers[0], std, self._caller)

    def update_ratio(self, hidden_states: torch.Tensor) -> float:
        r"""
        Return by how much the LLM layer changes its input, `‖layer(h) - h‖ / ‖h‖` with
        `h = input_scale * input_projection(x)` and Frobenius norms over all tokens. Of several layers it is the first.

        Args:
            hidden_states (`torch.Tensor` of shape `(batch, tokens, hidden_size)`): x, the host's tokens.

        Raises:
            `ValueError`: if the block has no LLM layer, or for tokens of another width.
        """
        if self.config.kind != "llm":
            raise ValueError(f"update_ratio needs an LLM layer, and kind={self.config.kind!r} has none.")
        self._check_inputs(hidden_states, None)
        with torch.no_grad():
            hidden_states = hidden_states.to(self.input_projection.weight)  # under autocast, tokens have another type
            layer_input = self.input_projection(self._scale_input(hidden_states)).to(self._dtype_of_layers())
        return layer_update_ratio(self.llm_layers[0], layer_input, self._caller)

    def is_unmodified(self) -> bool:
        """Return whether the layer is still the language model's: merging an adapter into it is a modification."""
        if self.config.fingerprint is None or self._remembered_digest is None:
            return False
        return self._llm_digest() == self._remembered_digest

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_tokens: slice | None = None,
        fast: bool = True,
    ) -> torch.Tensor:
        r"""
        Args:
            hidden_states (`torch.Tensor` of shape `(batch, tokens, hidden_size)`): the host's tokens.
            attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 1 = token, 0 = padding.
            output_tokens (`slice`, *optional*): the query tokens, whose output is wanted; all tokens by default. The
                fewer, the cheaper.
            fast (`bool`, *optional*, defaults to `True`): `False` calls the layers themselves, which recording their
                attentions requires. `config.fast=False` always does.

        Returns:
            `torch.Tensor` of shape `(batch, query tokens, hidden_size)`.

        Raises:
            `ValueError`: for tokens of another width, or a mask of another shape.
        """
        self._check_inputs(hidden_states, attention_mask)
        output_tokens = slice(None) if output_tokens is None else output_tokens
        skipped = hidden_states[:, output_tokens]
        hidden_states = self._scale_input(hidden_states)
        query_tokens = hidden_states[:, output_tokens]
        if self.config.kind == "llm":
            plan = self._plan_last_layer(hidden_states, output_tokens, fast)
            projected = self.input_projection(query_tokens if plan.attends_to_host_tokens else hidden_states)
            layer_input = projected.to(self._dtype_of_layers())
            output = self._run_llm_layers(plan, hidden_states, layer_input, attention_mask)
            if not plan.attends_to_host_tokens:
                layer_input = layer_input[:, output_tokens]
        else:
            plan = LayerPlan(output_tokens)
            projected = layer_input = self.input_projection(query_tokens)
            output = self._run_control(layer_input)
        if not plan.folds_output:
            output = self._project_output(output, layer_input, projected.dtype)
        if self.skip_projection is not None:
            return output + nn.functional.leaky_relu(self.skip_projection(skipped))
        return output + skipped if self.config.residual in ("outer", "hybrid") else output

    def _scale_input(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Scale the host's tokens, and by them both the input projection's output and the fast path's folded form."""
        scale = self.config.input_scale
        if scale == "balanced":
            if hidden_states.device.type == "meta":
                return hidden_states
            raise ValueError(
                "input_scale is still 'balanced': the block was built on the meta device, without the weights that "
                "tell its number. Call llm_block.complete_from_weights() once they are there."
            )
        return hidden_states if scale == 1 else hidden_states * scale

    def _check_inputs(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
        if hidden_states.ndim != 3 or hidden_states.shape[-1] != self.config.hidden_size:
            raise ValueError(
                f"hidden_states has the shape {tuple(hidden_states.shape)}; the LLM block takes (batch, tokens, "
                f"{self.config.hidden_size}), where {self.config.hidden_size} is llm_block.hidden_size."
            )
        if attention_mask is not None and attention_mask.shape != hidden_states.shape[:2]:
            raise ValueError(
                f"attention_mask has the shape {tuple(attention_mask.shape)}; it must be (batch, tokens) = "
                f"{tuple(hidden_states.shape[:2])}, with 1 for tokens and 0 for padding."
            )

    # Choosing the computation.

    def _plan_last_layer(self, hidden_states: torch.Tensor, output_tokens: slice, fast: bool) -> LayerPlan:
        """Decide how the last LLM layer is computed. Earlier layers are always called, for all tokens."""
        # `set_attn_implementation` changes only the language model's configuration.
        self._caller.set_attn_implementation(self._text_config._attn_implementation)
        weights = self._find_layer_weights() if fast else None
        if weights is None:
            return LayerPlan(output_tokens)
        query_tokens = hidden_states[:, output_tokens]
        attention: AttentionPlan = "explicit_kv"
        if len(self.llm_layers) == 1:
            attention = self._choose_attention_plan(weights, hidden_states, query_tokens)
        folds_output = self._folds_output(weights, query_tokens)
        if attention == "explicit_kv" and not folds_output and query_tokens.shape[1] == hidden_states.shape[1]:
            return LayerPlan(output_tokens)  # the layer itself costs the same
        uses_sdpa = self._caller.config._attn_implementation != "eager"
        return LayerPlan(output_tokens, weights, attention, folds_output, uses_sdpa)

    def _find_layer_weights(self) -> LayerWeights | None:
        config = self.config
        if not config.fast or config.trainable or self._caller.rotary or self._caller.causal:
            return None
        return find_layer_weights(self.llm_layers[-1], self.input_projection)

    def _choose_attention_plan(
        self, weights: LayerWeights, hidden_states: torch.Tensor, query_tokens: torch.Tensor
    ) -> AttentionPlan:
        # ONNX has no Cholesky factorisation, and MPS no float64. (Old torch does not tell compiling from exporting.)
        is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
        if is_exporting() or hidden_states.device.type == "mps":
            return "explicit_kv"
        batch_size, num_tokens, hidden_size = hidden_states.shape
        # In evaluation the batch size must not decide: it would specialise a compiled model.
        batch_size = batch_size if self.training else 1
        return choose_attention_plan(weights, num_tokens, query_tokens.shape[1], hidden_size, batch_size)

    def _folds_output(self, weights: LayerWeights, query_tokens: torch.Tensor) -> bool:
        if self.final_norm is not None or self.config.residual in ("inner", "hybrid"):
            return False
        batch_size, num_query_tokens, _ = query_tokens.shape
        return folds_output(weights, self.output_projection, num_query_tokens * (batch_size if self.training else 1))

    # Running the layers.

    def _run_llm_layers(
        self,
        plan: LayerPlan,
        hidden_states: torch.Tensor,
        layer_input: torch.Tensor,
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """
        Run the LLM layers on `layer_input`: the projection of all tokens or, if the plan attends to the host's tokens
        `hidden_states`, of the query tokens. Return the output for the query tokens.
        """
        if plan.attends_to_host_tokens:
            return self._run_fast_layer(plan, hidden_states, layer_input, attention_mask)
        output, last = layer_input, len(self.llm_layers) - 1
        for i in range(last):
            output = self._caller.call(i, self.llm_layers[i], output, attention_mask)
        if plan.weights is not None:
            return self._run_fast_layer(plan, output, output[:, plan.output_tokens], attention_mask)
        return self._caller.call(last, self.llm_layers[last], output, attention_mask)[:, plan.output_tokens]

    def _run_fast_layer(
        self,
        plan: LayerPlan,
        tokens: torch.Tensor,
        query_tokens: torch.Tensor,
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        cosines = self._caller.cosines(-1)
        mask = attention_bias(attention_mask, tokens, causal=False)
        layer: Any = self.llm_layers[-1]
        run = run_layer
        if self.training and getattr(layer, "gradient_checkpointing", False) and torch.is_grad_enabled():
            run = functools.partial(layer._gradient_checkpointing_func, run_layer)
        # As separate arguments, so that gradient checkpointing sees them.
        input_weight = self.input_projection.weight if plan.attends_to_host_tokens else None
        output_weight = self.output_projection.weight if plan.folds_output else None
        return run(plan, tokens, query_tokens, mask, cosines, input_weight, output_weight)

    def _run_control(self, layer_input: torch.Tensor) -> torch.Tensor:
        return layer_input if self.mlp_norm is None else self.mlp_norm(nn.functional.gelu(layer_input))

    # Norm, residual connection and output projection.

    def _project_output(self, output: torch.Tensor, layer_input: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Add the final norm, the residual connection around the layers, and the output projection in `dtype`."""
        if self.final_norm is not None:
            output = self.final_norm(output)
        if self.config.residual in ("inner", "hybrid"):
            output = output + layer_input
        return self.output_projection(output.to(dtype))

    def _dtype_of_layers(self) -> torch.dtype:
        return next(p.dtype for p in self.llm_layers.parameters() if p.is_floating_point())


__all__ = ["LLMBlock"]
