# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The LLM block: a frozen decoder layer of a language model between two trained projections."""

import copy
import functools
import hashlib
import re
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils.output_capturing import OutputRecorder

from .configuration_llm_block import LLMBlockConfig
from .fast_llm_layer import LayerParts, cheapest_route, find_parts, folds_output, run_layer
from .llm_checkpoint import LLMCheckpoint, load_llm_config
from .llm_conversion import convert_tensors, find_keys
from .llm_layer import (
    LLMLayers,
    accepted_arguments,
    attention_bias,
    build_llm,
    build_llm_layers,
    call_layer,
    disable_dropout,
    expand_positions,
    has_rotary,
    has_sdpa,
    rotary_embeddings,
)
from .pretrained_model import LOADING, PreTrainedModelWithLLMBlock


class LLMBlock(PreTrainedModelWithLLMBlock):
    r"""
    A decoder layer of a language model inside a vision encoder: `(batch, tokens, hidden_size)` to the same shape.

    ```
    h = input_projection(x)            Linear(d, D, bias=False)
    h = llm_layers(h)                  frozen; no causal mask, every token at position 0
    h = final_norm(h)                  frozen
    y = output_projection(h)           Linear(D, d, bias=False)
    ```

    Source: "Frozen Transformers in Language Models Are Effective Visual Encoder Layers" (ICLR 2024), section 3, and
    its released code (github.com/ziqipang/LM4VisualEncoding, `image_classification/models`). The block may be used
    alone in any `nn.Module`: building it reads the layer from the language model, only its projections are trained.

    Args:
        config ([`LLMBlockConfig`]): the block's configuration.

    Raises:
        `ValueError`: if the language model has no such layer, the layer cannot run alone, or the checkpoint lacks its
            tensors or holds others than those the configuration's fingerprint stands for.

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
            # The digit ends the layer's index: GPT-Neo has another `attention` inside its `attn`.
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
        if config.kind == "llm":
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

        self._llm_tensor_names = sorted(self._named_llm_tensors())
        self._digest_as_read: str | None = None
        self.post_init()
        self.freeze_llm_layers()
        if self.input_projection.weight.device.type != "meta":
            self.remember_llm_tensors()

    def _add_llm_layers(self, built: LLMLayers) -> None:
        config = self.config
        if config.rotary and not has_rotary(built):
            raise ValueError(f"rotary=True, but {built.config.model_type} has no rotary positions. Use rotary=False.")
        self.llm_layers = built.layers
        self.final_norm = self._build_final_norm(built)
        self._layer_config = built.config
        self._base_model_prefix = built.llm.base_model_prefix
        self._has_sdpa = has_sdpa(self._llm_config)
        self._llm_paths = {f"llm_layers.{i}.": built.layer_path(index) for i, index in enumerate(built.indices)}
        if config.final_norm == "pretrained":
            self._llm_paths["final_norm."] = cast(str, built.final_norm_path)
        self._accepted = [accepted_arguments(layer) for layer in self.llm_layers]
        # In a list, so that it is no submodule: its buffers would come back uninitialised from `from_pretrained`.
        self._rotary = [built.rotary]
        self._indices = built.indices
        self._position_zero: list[Any] = []
        self._prepare_layer_calls()
        device = self.input_projection.weight.device
        if device.type != "meta":
            self.llm_layers.to_empty(device=device)
            if self.final_norm is not None:
                self.final_norm.to_empty(device=device)
        if not config.trainable:
            disable_dropout(self.llm_layers)

    def _get_llm_block(self):
        return self

    def _complete_llm_config(self) -> None:
        config = self.config
        if config.llm_config is None:
            if config.llm_name_or_path is None:
                raise ValueError("LLMBlockConfig names no language model: set llm_name_or_path (or llm_config).")
            with self._explained() as hub_kwargs:
                config.llm_config, commit = load_llm_config(config.llm_name_or_path, config.llm_revision, hub_kwargs)
            config.llm_revision = commit or config.llm_revision
            if config._attn_implementation is not None:
                self._llm_config._attn_implementation = config._attn_implementation

    def _prepare_layer_calls(self) -> None:
        """
        Computes the rotary embeddings of position 0, and refuses by name, by a trial call while the layers are on the
        meta device, a family that cannot be called as the others.
        """
        hidden_states = torch.empty(1, 2, self._text_config.hidden_size, device="meta", dtype=self._dtype_of_layers())
        for i, (index, layer) in enumerate(zip(self._indices, self.llm_layers)):
            try:
                with torch.device("cpu"):  # not on the meta device of `from_pretrained`
                    self._position_zero.append(rotary_embeddings(self._rotary[0], self._layer_config, index, 1))
                with torch.no_grad():
                    self._call_layer(i, layer, hidden_states, None)
            except (AttributeError, KeyError, RuntimeError, TypeError) as error:
                # Routing tokens to experts depends on their values, and meta tensors have none; shapes are known.
                if isinstance(error, RuntimeError) and not re.search(
                    "must match|reduction dim|multiplied", str(error)
                ):
                    continue
                raise ValueError(
                    f"Layer {index} of {self._text_config.model_type} ({type(layer).__name__}) cannot run without its "
                    f"whole language model: {error}."
                ) from error

    @contextmanager
    def _explained(self):
        """Hands out the arguments for the Hub; says which field an LLM that cannot be reached comes from."""
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
        return getattr(torch, self.config.layer_dtype) if self.config.layer_dtype else torch.get_default_dtype()

    def _build_final_norm(self, built: LLMLayers) -> nn.Module | None:
        if self.config.final_norm == "none":
            return None
        if built.final_norm is None and self.config.final_norm == "pretrained":
            raise ValueError(
                f"final_norm='pretrained', but this {built.config.model_type} has no norm after its last layer. Use "
                "'unit' or 'none'."
            )
        if built.final_norm is not None:
            return built.final_norm
        # An LLM that ends without a norm (OPT-350m): the norm type of its layers.
        norms = [m for m in built.layers.modules() if "norm" in type(m).__name__.lower()]
        if not norms:
            raise ValueError(f"{built.config.model_type} has no norm; use final_norm='none'.")
        return copy.deepcopy(norms[-1])

    def _named_llm_tensors(self) -> dict[str, torch.Tensor]:
        state = self.state_dict(keep_vars=True)
        return {name: tensor for name, tensor in state.items() if name.startswith(("llm_layers.", "final_norm."))}

    def llm_tensors(self) -> list[str]:
        """Names of the tensors of the LLM layers and their norm, not of adapters that were put into them."""
        own = set(self._llm_tensor_names)
        return [name for name in self._named_llm_tensors() if name.replace(".base_layer.", ".") in own]

    # Initialising an LLM layer is reading it.

    @torch.no_grad()
    def _init_weights(self, module):
        self._check_own_checkpoint()
        if module is self.input_projection or module is self.output_projection:
            init.trunc_normal_(module.weight, std=0.02)  # released image code, models/vit_llama.py
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
            self._init_unit_norm(module)
            return
        if module._non_persistent_buffers_set:
            self._build_llm()._init_weights(module)
            for name in module._non_persistent_buffers_set:
                buffer = getattr(module, name)
                if buffer is not None and name == "bias":
                    buffer.fill_(1)  # the causal mask of GPT-Neo and GPT; the mask that is wanted is passed explicitly
        persistent = [
            tensor
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            if name not in module._non_persistent_buffers_set and not getattr(tensor, "_is_hf_initialized", False)
        ]
        if not persistent:
            return
        if self.config.weights == "random":
            self._init_random_layers()
        else:
            self._read_llm_layers()

    def _check_own_checkpoint(self) -> None:
        """Refuses a checkpoint of this block that lacks some of what its `config.json` says it holds."""
        loading = LOADING.get()
        if loading is None or loading["is_checked"] or loading["stored_block"] is None:
            return
        loading["is_checked"] = True  # once, before anything has been initialised
        stored_block = loading["stored_block"]
        if stored_block.get("kind", "llm") != self.config.kind:
            return  # `check_same_layer` will say so
        tensors = self.state_dict(keep_vars=True)
        missing = [n for n, t in tensors.items() if not (t.is_meta or getattr(t, "_is_hf_initialized", False))]
        if len(missing) == len(tensors):
            loading["stored_block"] = None  # a host alone, such as `model.vit.save_pretrained` writes it
            return
        if not stored_block.get("save_weights", True):
            missing = [name for name in missing if name not in self._llm_tensor_names]
        if missing:
            raise ValueError(
                f"{loading['source']} is incomplete: its weights lack {missing} of llm_block, which its config.json "
                "says it holds. Save or download it again."
            )

    def check_same_layer(self, stored_block: dict[str, Any], source: str) -> None:
        """Refuses a configuration of another layer than the one whose weights have been loaded from `source`."""
        stored = LLMBlockConfig(**{**stored_block, "llm_config": None})
        num_layers = self._text_config.num_hidden_layers
        for field in ("kind", "layer_index", "weights", "final_norm") if self.config.kind == "llm" else ("kind",):
            loaded, wanted = getattr(stored, field), getattr(self.config, field)
            if field == "layer_index":
                loaded = [i % num_layers for i in (loaded if isinstance(loaded, list) else [loaded])]
                wanted = self._indices
            if loaded != wanted:
                raise ValueError(
                    f"llm_block.{field} of {source} is {getattr(stored, field)!r} and cannot be changed to "
                    f"{getattr(self.config, field)!r} while loading it: its weights are of that layer. Build the "
                    "model that you want by `Model(config)`, or from the checkpoint of its host."
                )

    def _build_llm(self) -> PreTrainedModel:
        return build_llm(self._llm_config, self._layer_dtype())

    def _init_random_layers(self) -> None:
        """The family's own initialisation, of all modules at once: GPT-2 scales children's weights in their parent."""
        tensors = self.llm_layers.state_dict(keep_vars=True)
        wanted = {n: t for n, t in tensors.items() if t.is_floating_point() and not hasattr(t, "_is_hf_initialized")}
        for tensor in wanted.values():
            tensor.fill_(torch.nan)
        self.llm_layers.apply(self._build_llm()._init_weights)
        if unset := [name for name, tensor in wanted.items() if tensor.isnan().any()]:
            raise ValueError(
                f"weights='random' is not possible for {self._text_config.model_type}: its family does not say how to "
                f"initialise {unset}. Use weights='pretrained', or another language model."
            )
        for tensor in tensors.values():
            tensor._is_hf_initialized = True

    def _init_unit_norm(self, norm: nn.Module) -> None:
        """Weights with which the norm only normalises: 1, or 0 in families that store the weight minus one (Gemma)."""
        weight = getattr(norm, "weight", None)
        if weight is not None:
            probe = copy.deepcopy(norm).float().requires_grad_(False)
            for parameter in probe.parameters():
                parameter.zero_()
            response = probe(torch.linspace(-1, 1, weight.numel(), device=weight.device)[None])
            init.constant_(weight, 0.0 if response.abs().sum() > 0 else 1.0)
        if isinstance(bias := getattr(norm, "bias", None), torch.Tensor):
            init.zeros_(bias)

    def _read_llm_layers(self) -> None:
        """Copies the LLM's tensors, one at a time, into what the model's own checkpoint did not bring."""
        config = self.config
        if config.llm_name_or_path is None:
            raise ValueError("LLMBlockConfig.llm_name_or_path is not set, so the LLM layer cannot be read.")
        targets = self._named_llm_tensors()
        digest = hashlib.sha256()
        with (
            self._explained() as hub_kwargs,
            LLMCheckpoint(config.llm_name_or_path, config.llm_revision, hub_kwargs) as checkpoint,
        ):
            sources = self._find_llm_tensors(checkpoint, targets)
            for name in sorted(sources):
                tensor = sources.pop(name)
                tensor = checkpoint.read(tensor) if isinstance(tensor, str) else tensor
                _update_digest(digest, name, tensor)
                self._copy_llm_tensor(name, targets[name], tensor)
            self.bytes_read = checkpoint.bytes_read
        fingerprint = digest.hexdigest()
        stored_block = (LOADING.get() or {}).get("stored_block") or {}
        expected = config.fingerprint or stored_block.get("fingerprint")
        if expected not in (None, fingerprint):
            raise ValueError(
                f"The LLM layer read from {config.llm_name_or_path} is not the one this model was trained with: its "
                f"fingerprint is {fingerprint[:16]}…, expected is {expected[:16]}… (layer "
                f"{config.layer_index} of a {self._llm_config.model_type} at revision "
                f"{config.llm_revision or 'unknown'}). The same language model in another format or precision (GGUF, "
                "fp16) is different, too. Pass the right place as "
                "from_pretrained(…, llm_block={'llm_name_or_path': …}), or save the model self-contained "
                "(llm_block.save_weights=True)."
            )
        config.fingerprint = fingerprint

    def _copy_llm_tensor(self, name: str, target: torch.Tensor, tensor: torch.Tensor) -> None:
        if tuple(tensor.shape) != tuple(target.shape):
            raise ValueError(
                f"{self.config.llm_name_or_path}: {name} has the shape {tuple(tensor.shape)} in the checkpoint and "
                f"{tuple(target.shape)} by its config.json. Weights and configuration are of different models."
            )
        init.copy_(target, tensor)
        if target.is_floating_point() and target.numel() and not torch.stack(target.aminmax()).isfinite().all():
            raise ValueError(
                f"{self.config.llm_name_or_path}: {name} holds NaN or infinite values as {target.dtype}. The "
                "checkpoint is damaged, or its values do not fit into that type (llm_block.layer_dtype)."
            )
        target._is_hf_initialized = True  # type: ignore[attr-defined]

    def _find_llm_tensors(
        self, checkpoint: LLMCheckpoint, targets: dict[str, torch.Tensor]
    ) -> dict[str, str | torch.Tensor]:
        """From names in this block to keys of the checkpoint, or to tensors where these had to be converted."""
        sources: dict[str, str | torch.Tensor] = {}
        for prefix, path in self._llm_paths.items():
            expected = {name.removeprefix(prefix) for name in targets if name.startswith(prefix)}
            if not expected:
                continue  # a final norm without weights (OLMo)
            found: dict[str, Any] = dict(
                find_keys(checkpoint, path, expected, self._base_model_prefix, self._build_llm)
            )
            if not found:
                raise ValueError(
                    f"{checkpoint.name_or_path} holds no tensors of {path} of {self._text_config.model_type}. It is "
                    "not the checkpoint of this language model, or lacks that layer (layer_index "
                    f"{self.config.layer_index})."
                )
            is_complete = expected <= set(found)
            checkpoint.prefetch([found[name] for name in (expected if is_complete else found)])
            if not is_complete:
                tensors = {name: checkpoint.read(key) for name, key in found.items()}
                found = convert_tensors(self._build_llm(), path, tensors)
            if missing := sorted(expected - set(found)):
                raise ValueError(
                    f"{checkpoint.name_or_path} lacks tensors of {path}: {missing}. The checkpoint is incomplete, or "
                    "quantised in a format that cannot be read."
                )
            sources.update({prefix + name: found[name] for name in expected})
        return sources

    # Freezing. transformers makes every parameter trainable in `from_pretrained` and ends it with `eval()`.

    def freeze_llm_layers(self) -> None:
        """Freezes what the configuration says is frozen; adapters inside the layers are left as they are."""
        frozen = set(self._llm_tensor_names)
        for name, parameter in self.named_parameters():
            if name.replace(".base_layer.", ".") in frozen:
                is_unit_norm = name.startswith("final_norm.") and self.config.final_norm == "unit"
                if is_unit_norm or not self.config.trainable:
                    parameter.requires_grad_(False)

    def train(self, mode: bool = True):
        super().train(mode)
        if not self.config.trainable:
            for module in self.llm_layers.modules():
                if "Router" in type(module).__name__:
                    module.eval()  # Phi-3.5-MoE's draws the experts at random in training
        self.freeze_llm_layers()
        return self

    # What a checkpoint may leave out.

    def is_reloadable(self) -> bool:
        """Whether the layer can be read again from the language model."""
        config = self.config
        return config.kind == "llm" and config.weights == "pretrained" and not config.trainable

    def _llm_digest(self) -> str | None:
        digest = hashlib.sha256()
        for name, tensor in self._named_llm_tensors().items():
            name = name.replace(".base_layer.", ".")
            if tensor.is_meta or type(tensor.data) is not torch.Tensor:
                return None  # offloaded or sharded: nothing to compare
            if name in self._llm_tensor_names:
                _update_digest(digest, name, tensor)
        return digest.hexdigest()

    def remember_llm_tensors(self) -> None:
        """Remembers the layer as it is now, just read, so that a later change to it is noticed when it is saved."""
        self._digest_as_read = self._llm_digest() if self.is_reloadable() else None

    def is_unmodified(self) -> bool:
        """Whether the layer is still the language model's: not after an adapter was merged into it, for example."""
        if self.config.fingerprint is None or self._digest_as_read is None:
            return False
        return self._llm_digest() == self._digest_as_read

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
            output_tokens (`slice`, *optional*): the tokens that are read, by default all of them. The fewer, the
                cheaper.
            fast (`bool`, *optional*, defaults to `True`): `False` calls the layers themselves, as it must be where
                their attentions are recorded. `config.fast=False` always does.

        Returns:
            `torch.Tensor` of shape `(batch, read tokens, hidden_size)`.

        Raises:
            `ValueError`: for tokens of another width, or a mask of another shape.
        """
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
        output_tokens = slice(None) if output_tokens is None else output_tokens
        if self.config.kind != "llm":
            return self._run_control(hidden_states[:, output_tokens])
        self._follow_attn_implementation()
        parts = self._find_fast_parts() if fast else None
        read = hidden_states[:, output_tokens]
        is_everything_read = read.shape[1] == hidden_states.shape[1]
        route = "formed"
        if parts is not None and len(self.llm_layers) == 1:
            route = self._cheapest_route(parts, hidden_states, read)
        is_projected = parts is not None and self._folds_output(parts, read)
        if route != "formed":
            projected = self.input_projection(read)
            layer_input = projected.to(self._dtype_of_layers())
            tokens, weight = hidden_states, self.input_projection.weight
            output = self._run_fast(
                parts, route, tokens, layer_input, output_tokens, attention_mask, weight, is_projected
            )
        else:
            projected = self.input_projection(hidden_states)
            layer_input = output = projected.to(self._dtype_of_layers())
            last = len(self.llm_layers) - 1
            for i, layer in enumerate(self.llm_layers):
                if i == last and parts is not None and (is_projected or not is_everything_read):
                    last_read = output[:, output_tokens]
                    output = self._run_fast(
                        parts, route, output, last_read, output_tokens, attention_mask, is_projected=is_projected
                    )
                else:
                    output = self._call_layer(i, layer, output, attention_mask)
                    output = output[:, output_tokens] if i == last else output
            layer_input = layer_input[:, output_tokens]
        if not is_projected:
            if self.final_norm is not None:
                output = self.final_norm(output)
            if self.config.residual in ("inner", "hybrid"):
                output = output + layer_input
            output = self.output_projection(output.to(projected.dtype))
        return output + read if self.config.residual in ("outer", "hybrid") else output

    def _run_control(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = self.config.residual
        layer_input = output = self.input_projection(hidden_states)
        if self.mlp_norm is not None:
            output = self.mlp_norm(nn.functional.gelu(output))
        output = self.output_projection(output + layer_input if residual in ("inner", "hybrid") else output)
        return output + hidden_states if residual in ("outer", "hybrid") else output

    def _find_fast_parts(self) -> LayerParts | None:
        config = self.config
        if not config.fast or config.trainable or config.rotary or config.attention == "causal":
            return None
        return find_parts(self.llm_layers[-1], self.input_projection)

    def _cheapest_route(self, parts: LayerParts, hidden_states: torch.Tensor, read: torch.Tensor) -> str:
        # ONNX has no Cholesky factorisation, and MPS no float64. (Old torch does not tell compiling from exporting.)
        is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
        if is_exporting() or hidden_states.device.type == "mps":
            return "formed"
        batch, tokens, width = hidden_states.shape
        # In evaluation a compiled model must not be made for one size of batch.
        return cheapest_route(parts, tokens, read.shape[1], width, batch if self.training else 1)

    def _folds_output(self, parts: LayerParts, read: torch.Tensor) -> bool:
        if self.final_norm is not None or self.config.residual in ("inner", "hybrid"):
            return False
        batch, num_read, _ = read.shape
        return folds_output(parts, self.output_projection, num_read * (batch if self.training else 1))

    def _run_fast(
        self, parts, route, tokens, read, output_tokens, attention_mask, weight=None, is_projected=False
    ) -> torch.Tensor:
        position_zero = self._position_zero[-1]
        cosines = None if position_zero is None else position_zero[0].flatten()
        mask = attention_bias(attention_mask, tokens, causal=False)
        layer: Any = self.llm_layers[-1]
        run = run_layer
        if self.training and getattr(layer, "gradient_checkpointing", False) and torch.is_grad_enabled():
            run = functools.partial(layer._gradient_checkpointing_func, run_layer)
        output_weight = self.output_projection.weight if is_projected else None
        return run(parts, route, tokens, read, output_tokens, mask, cosines, weight, output_weight)

    def _follow_attn_implementation(self) -> None:
        """`set_attn_implementation` reaches the LLM's configuration; the layer follows where its family can."""
        wanted = self._text_config._attn_implementation
        if wanted == "sdpa" and not self._has_sdpa:
            wanted = "eager"
        if wanted is not None and wanted != self._layer_config._attn_implementation:
            self._layer_config._attn_implementation_internal = wanted

    def _dtype_of_layers(self) -> torch.dtype:
        return next(p.dtype for p in self.llm_layers.parameters() if p.is_floating_point())

    def _call_layer(self, i, layer, hidden_states, attention_mask):
        tokens = hidden_states.shape[1]
        device = hidden_states.device
        if self.config.rotary:
            positions = torch.arange(tokens, device=device)[None]
            embeddings = rotary_embeddings(self._rotary[0], self._layer_config, self._indices[i], tokens)
        else:
            positions = torch.zeros(1, tokens, dtype=torch.long, device=device)
            embeddings = self._position_zero[i]
        embeddings = None if embeddings is None else expand_positions(embeddings, tokens, hidden_states)
        causal = self.config.attention == "causal"
        return call_layer(
            layer, self._accepted[i], self._layer_config, hidden_states, attention_mask, causal, positions, embeddings
        )


def _update_digest(digest, name: str, tensor: torch.Tensor) -> None:
    tensor = tensor.detach().cpu().contiguous()
    digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy())


__all__ = ["LLMBlock"]
