# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The base class of models with an LLM block: how they are loaded, saved and frozen."""

import copy
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from .atomic_saving import refuse_interrupted_save, written_atomically
from .checkpoint_files import SAFETENSORS_DTYPES, digest_tensors
from .code_files import copy_code
from .configuration_llm_block import LLMBlockConfig
from .llm_checkpoint import LLMCheckpoint
from .llm_layer_reader import find_saved_layer
from .publishing import is_publishing, leave_out_local_paths, publishing
from .quantized_linear import QuantizedLinear


# Arguments of `from_pretrained` that the model's constructor does not get, but reading the layer needs.
LOADING: ContextVar[dict[str, Any] | None] = ContextVar("loading", default=None)
HUB_KWARGS = ("token", "cache_dir", "local_files_only", "force_download")
_FRAMEWORKS = {"torch", "transformers", "accelerate", "deepspeed"}


@contextmanager
def _loading_from(name_or_path: Any, kwargs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Set `LOADING`, while a model is loaded, to the arguments for the Hub and the block's stored configuration."""
    hub_kwargs = {name: kwargs[name] for name in HUB_KWARGS if kwargs.get(name) is not None}
    block, stored = None, dict[str, Any]()
    if name_or_path is not None and os.path.isdir(name_or_path):
        refuse_interrupted_save(os.fspath(name_or_path))
    if name_or_path is not None and kwargs.get("gguf_file") is None:
        try:
            stored, _ = PreTrainedConfig.get_config_dict(
                name_or_path, revision=kwargs.get("revision"), subfolder=kwargs.get("subfolder", ""), **hub_kwargs
            )
        except OSError:
            pass  # an adapter folder, or no folder: `from_pretrained` raises the error
        block = stored if stored.get("model_type") == LLMBlockConfig.model_type else stored.get("llm_block")
    loading = {"hub_kwargs": hub_kwargs, "source": name_or_path, "stored_block": block, "is_checked": False}
    is_as_saved = kwargs.get("state_dict") is None and not kwargs.get("ignore_mismatched_sizes")
    loading["stored"] = stored if is_as_saved else {}
    token = LOADING.set(loading)
    try:
        yield loading
    finally:
        LOADING.reset(token)


class PreTrainedModelWithLLMBlock(PreTrainedModel):
    """
    Base class of every model with an LLM block: loading, saving, freezing, and running the block among host layers.

    The attribute `llm_block` is the block, or `None`; the host is the attribute named by `base_model_prefix`.
    """

    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _no_split_modules = ["LLMBlock"]

    # Prefix of the block's tensors in the state dictionary; "" in the block itself.
    _llm_block_prefix = "llm_block."

    def _get_llm_block(self) -> Any:
        return self.llm_block

    def post_init(self) -> None:
        super().post_init()
        # accelerate's FSDP refuses names that no module has; a plain host has no LLMBlock
        present = {type(module).__name__ for module in self.modules()}
        self._no_split_modules = [name for name in self._no_split_modules if name in present]
        self._keys_to_ignore_on_save = self._keys_left_out_of_checkpoints()

    def _llm_keys(self) -> set[str]:
        return {self._llm_block_prefix + name for name in self._get_llm_block().llm_tensors()}

    def _keys_left_out_of_checkpoints(self) -> set[str]:
        """Return exactly the keys that Trainer's checkpoints leave out: its resume warns about other missing keys."""
        block = self._get_llm_block()
        if block is None or not block.is_reloadable() or block.config.llm_name_or_path is None:
            return set()
        # A block nested in a third-party model is saved by that model, which cannot write light checkpoints.
        return set() if block is self and block.config.save_weights else self._llm_keys()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any) -> Any:
        r"""
        Load a model as in transformers. The argument `llm_block` is added: an [`LLMBlockConfig`] adds a block to the
        checkpoint of a plain host; `{"llm_name_or_path": …}` gives the new place of a saved model's language model.

        Raises:
            `OSError`: if the last save into the folder was interrupted; the error says how to finish it.
            `ValueError`: if the folder lacks tensors that its `config.json` says it holds, if the layer read from the
                language model is not the one that the model was trained with, or if the folder's layer has changed
                since it was saved.
        """
        wants_info, kwargs["output_loading_info"] = kwargs.get("output_loading_info", False), True
        with _loading_from(pretrained_model_name_or_path, kwargs) as loading:
            loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
            stored_block = loading["stored_block"]  # None if the checkpoint has only a host
        model, info = loaded
        if (block := model._get_llm_block()) is not None:
            on_disk = [name for name, device in getattr(model, "hf_device_map", {}).items() if device == "disk"]
            holds_layer = stored_block is not None and stored_block.get("save_weights", True)
            if not holds_layer and any(name.startswith("llm_block") or name == "" for name in on_disk):
                raise ValueError(
                    f"device_map puts the LLM block on the disk, but {pretrained_model_name_or_path} does not hold "
                    "its layer, from which it would be offloaded. Keep llm_block on another device, or save the model "
                    "self-contained first (llm_block.save_weights=True)."
                )
            if stored_block is not None:
                _check_same_layer(block, stored_block, pretrained_model_name_or_path)
            block.complete_from_weights()
            if stored_block is not None:
                _check_unchanged(block, stored_block, pretrained_model_name_or_path)
        _check_complete(model, info["missing_keys"], loading["stored"], pretrained_model_name_or_path)
        return (model, info) if wants_info else model

    @classmethod
    def from_host_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *,
        llm_block: LLMBlockConfig | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        r"""
        Load a published plain host, and add a block to it.

        Args:
            pretrained_model_name_or_path (`str`):
                Hub id or folder of the host: its base model, or one with a head.
            llm_block (`LLMBlockConfig` or `dict`, *optional*):
                The block; `None` is the plain host.
            kwargs:
                `num_labels`, `id2label` and `label2id`, which replace a classifier of another size; fields of the
                host's configuration; and arguments of `from_pretrained`.

        Raises:
            `ValueError`: if the checkpoint lacks weights of the host.
        """
        return cls._from_host(pretrained_model_name_or_path, llm_block=llm_block, **kwargs)

    @classmethod
    def _from_host(
        cls,
        pretrained_model_name_or_path: Any,
        *,
        replaces_classifier: bool = True,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        kwargs.pop("ignore_mismatched_sizes", None)
        model, info = cls.from_pretrained(
            pretrained_model_name_or_path, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs
        )
        keys = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
        # A pooler that the checkpoint lacks is initialised anew, as in transformers.
        prefix, pooler = f"{model.base_model_prefix}.", f"{model.base_model_prefix}.pooler."
        unloaded = sorted(key for key in keys if key.startswith(prefix) and not key.startswith(pooler))
        if unloaded:
            raise ValueError(
                f"{pretrained_model_name_or_path} has no fitting weights for {len(unloaded)} tensors of the host: "
                f"{', '.join(unloaded[:3])}{', …' if len(unloaded) > 3 else ''}. It is the checkpoint of another "
                "model, or fields of the configuration change the host's sizes or modules: remove these."
            )
        for key, there, here in info["mismatched_keys"]:
            if key == "classifier.weight" and not replaces_classifier:
                raise ValueError(
                    f"The classifier of {pretrained_model_name_or_path} has the shape {tuple(there)}, and here "
                    f"{tuple(here)} with pooling={model.config.pooling!r}. Choose the pooling it was trained with "
                    "('cls_mean' is twice as wide), or give num_labels to replace it."
                )
        return (model, info) if output_loading_info else model

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        r"""
        Save a model as in transformers, with these rules for the LLM layer: it is written if
        `config.llm_block.save_weights`, or if it would be lost otherwise (random, trainable, or modified since it was
        read). Trainer's `checkpoint-<n>` folders are light and keep the names of the modules, which its resume needs.
        `save_weights` in the written `config.json` says whether the folder holds the layer. Files are replaced only
        after all of them have been written, `config.json` last: without it the folder is no model. The model and its
        configuration are not changed, so that several threads may save it at the same time. A model that was loaded
        with its code (`config.auto_map`) is saved with it.
        """
        block = self._get_llm_block()
        folder = os.fspath(save_directory)
        if os.path.isfile(folder):
            raise NotADirectoryError(f"{folder} is a file; save_pretrained needs a folder.")
        given_state_dict = kwargs.get("state_dict")
        is_trainer_checkpoint = re.fullmatch(r"checkpoint-\d+", os.path.basename(os.path.normpath(folder))) is not None
        if kwargs.pop("save_original_format", not is_trainer_checkpoint):
            kwargs["state_dict"] = self._with_published_names(kwargs.get("state_dict"))
        kwargs["save_original_format"] = False
        model = object.__new__(type(self))  # not copy.copy: the class of a sharded model (FSDP2) has its own __new__
        vars(model).update(vars(self))
        model.config = copy.deepcopy(self.config)
        if block is not None and not getattr(self, "_hf_peft_config_loaded", False):
            model._describe_saved_block(block, is_trainer_checkpoint, given_state_dict)
        if is_publishing():
            leave_out_local_paths(model.config)
        with written_atomically(folder, is_main_process) as written_folder:
            super(PreTrainedModelWithLLMBlock, model).save_pretrained(
                written_folder, is_main_process=is_main_process, **kwargs
            )
            if auto_map := getattr(model.config, "auto_map", None):
                copy_code(auto_map, written_folder)
        if push_to_hub and is_main_process:
            hub_names = ("repo_id", "commit_message", "private", "token", "revision", "create_pr", "tags")
            hub_kwargs = {name: kwargs[name] for name in hub_names if name in kwargs}
            hub_kwargs.setdefault("repo_id", os.path.basename(os.path.normpath(folder)))
            self.push_to_hub(**hub_kwargs)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        r"""Push a model as in transformers; its `config.json` leaves out paths of this machine."""
        with publishing():
            return super().push_to_hub(*args, **kwargs)

    def _with_published_names(self, state_dict: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor] | None:
        """
        Return the state dictionary with the host's keys as in its published checkpoints. transformers' own
        `save_original_format` would apply the host's renames to the block's keys, too.
        """
        is_adapter = getattr(self, "_hf_peft_config_loaded", False)
        is_offloaded = {"cpu", "disk"} & {str(d) for d in getattr(self, "hf_device_map", {}).values()}
        if self._get_llm_block() is self or is_adapter or is_offloaded:
            return state_dict  # offloaded tensors are fetched by their names in the model
        state_dict = dict(self.state_dict() if state_dict is None else state_dict)
        prefix = f"{self.base_model_prefix}."
        host = {
            name.removeprefix(prefix): state_dict.pop(name) for name in list(state_dict) if name.startswith(prefix)
        }
        host = revert_weight_conversion(getattr(self, self.base_model_prefix), host)
        return {**{prefix + name: tensor for name, tensor in host.items()}, **state_dict}

    def _describe_saved_block(self, block: Any, light: bool, state_dict: dict[str, torch.Tensor] | None) -> None:
        """Set the configuration and the ignored keys of this copy of a model to what the saved folder will hold."""
        config = copy.deepcopy(block.config)
        is_unmodified = block.is_unmodified()
        is_reproducible = block.is_reloadable() and is_unmodified
        can_be_left_out = is_reproducible and config.llm_name_or_path is not None
        config.save_weights = not (can_be_left_out and (light or not config.save_weights))
        config.fingerprint = config.fingerprint if is_reproducible else None
        config.saved_fingerprint = None
        if config.save_weights and config.kind == "llm":
            if state_dict is None:
                config.saved_fingerprint = block._remembered_digest if is_unmodified else block._llm_digest()
            elif (keys := self._llm_keys()) <= set(state_dict):
                tensors = {key.removeprefix(self._llm_block_prefix): state_dict[key] for key in keys}
                config.saved_fingerprint = digest_tensors(tensors)
        if self._llm_block_prefix == "":  # the block itself
            self.config = config
        else:
            self.config.llm_block = config
        self._keys_to_ignore_on_save = set() if config.save_weights else self._llm_keys()

    def _run_layers(
        self,
        layers: Iterable[Callable[[torch.Tensor], torch.Tensor]],
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_tokens: slice | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """
        Run the host's layers, with the block at its position. Return the last output only for `output_tokens`,
        unless other layers, outputs or hooks need all tokens.
        """
        block, layers = self._get_llm_block(), list(layers)
        position = None if block is None else block.config.position
        position = len(layers) if position == -1 else position
        records_attentions, records_states = (
            bool(kwargs.get(name, getattr(self.config, name)))
            for name in ("output_attentions", "output_hidden_states")
        )
        if position != len(layers) or records_attentions or records_states or needs_all_tokens(block):
            output_tokens = None
        for index in range(len(layers) + 1):
            if block is not None and index == position:
                hidden_states = block(hidden_states, attention_mask, output_tokens, fast=not records_attentions)
            if index < len(layers):
                hidden_states = layers[index](hidden_states)
        return hidden_states

    def freeze_host(self) -> None:
        """Freeze the host: only the projections, the head (and a trainable LLM layer) are trained."""
        if self._get_llm_block() is self:
            raise TypeError("An LLMBlock has no host to freeze; call freeze_host on the model that holds it.")
        for parameter in getattr(self, self.base_model_prefix).parameters():
            parameter.requires_grad_(False)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        r"""Return the number of parameters as in transformers; a quantised weight counts as the one it stands for."""
        total = super().num_parameters(only_trainable, exclude_embeddings)
        quantized = [] if only_trainable else [m for m in self.modules() if isinstance(m, QuantizedLinear)]
        stored = sum(p.numel() for m in quantized for n, p in m.named_parameters() if n != "bias")
        return total - stored + sum(m.out_features * m.in_features for m in quantized)

    def print_trainable_parameters(self) -> None:
        """Print the number of trained parameters, of all parameters, and their ratio."""
        trainable, total = self.num_parameters(only_trainable=True), self.num_parameters()
        share = 100 * trainable / total
        print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share:.4f}")


def needs_all_tokens(block: Any) -> bool:
    """
    Return whether the block must compute tokens that the head does not use: its `config.fast` is `False`, or a hook
    sees its output or the gradient. Hooks of frameworks, which record outputs or shard the weights, do not count.
    """
    if block is None:
        return False
    hooks = (*block._forward_hooks.values(), *block._backward_hooks.values(), *block._backward_pre_hooks.values())
    owners = [(getattr(hook, "__module__", None) or "").partition(".")[0] for hook in hooks]
    return not block.config.fast or any(owner not in _FRAMEWORKS for owner in owners)


def check_stored_tensors(block: Any) -> None:
    """
    Refuse a checkpoint that is being loaded if it lacks tensors of the block which its `config.json` says it holds.
    """
    loading = LOADING.get()
    if loading is None or loading["is_checked"] or loading["stored_block"] is None:
        return
    loading["is_checked"] = True  # once, before anything has been initialised
    stored_block = loading["stored_block"]
    if stored_block.get("kind", "llm") != block.config.kind:
        return  # `_check_same_layer` will raise the error
    requantizes = stored_block.get("quantization") != block.config.quantization
    tensors = block.state_dict(keep_vars=True)
    missing = [n for n, t in tensors.items() if not (t.is_meta or getattr(t, "_is_hf_initialized", False))]
    if len(missing) == len(tensors):
        loading["stored_block"] = None  # only a host, as `model.vit.save_pretrained` writes it
        return
    if not stored_block.get("save_weights", True) or requantizes:
        missing = [name for name in missing if name not in block._llm_tensor_names]
    if stored_block.get("residual") != "outer_linear":
        missing = [name for name in missing if not name.startswith("skip_projection.")]
    if missing:
        raise ValueError(
            f"{loading['source']} is incomplete: its weights lack {missing} of llm_block, which its config.json "
            "says it holds. Save or download it again."
        )


def _check_complete(model: Any, missing: Iterable[str], stored: dict[str, Any], source: Any) -> None:
    """Refuse a saved model of this class, or another one with the same host, whose weights lack tensors."""
    saved_class = (stored.get("architectures") or [None])[0]
    if saved_class is None or stored.get("model_type") != model.config.model_type or model._get_llm_block() is model:
        return
    host = f"{model.base_model_prefix}."
    promised = "" if saved_class == type(model).__name__ else host  # another head is new
    # So is a pooler that the saved model was built without.
    lacking = [n for n in missing if n.startswith(promised) and not n.startswith(("llm_block.", f"{host}pooler."))]
    if lacking:
        raise ValueError(
            f"{source} is incomplete: its weights lack {sorted(lacking)[:5]}{' …' if len(lacking) > 5 else ''} of the "
            f"{saved_class} that its config.json says it holds. Save or download it again."
        )


def _check_same_layer(block: Any, stored_block: dict[str, Any], source: str) -> None:
    """Refuse a configuration of another layer than the one whose weights were loaded from `source`."""
    stored, config = LLMBlockConfig(**{**stored_block, "llm_config": None}), block.config
    num_layers = block._text_config.num_hidden_layers
    for field in ("kind", "layer_index", "weights", "final_norm") if config.kind == "llm" else ("kind",):
        loaded, wanted = getattr(stored, field), getattr(config, field)
        if field == "layer_index":
            loaded = [i % num_layers for i in (loaded if isinstance(loaded, list) else [loaded])]
            wanted = block._caller.indices
        if loaded != wanted:
            raise ValueError(
                f"llm_block.{field} of {source} is {getattr(stored, field)!r} and cannot be changed to "
                f"{getattr(config, field)!r} while loading it: its weights are of that layer. Build the "
                "model that you want by `Model(config)`, or from the checkpoint of its host."
            )
    if stored.quantization != config.quantization and stored.save_weights and stored.fingerprint is None:
        raise ValueError(
            f"llm_block.quantization of {source} is {stored.quantization!r} and cannot be changed to "
            f"{config.quantization!r} while loading it: the layer that it holds, random or modified, cannot be read "
            "from the language model again."
        )
    if stored.residual != config.residual and "outer_linear" in (stored.residual, config.residual):
        raise ValueError(
            f"llm_block.residual of {source} is {stored.residual!r} and cannot be changed to {config.residual!r} "
            "while loading it: 'outer_linear' has weights of its own. Build the model that you want by "
            "`Model(config)`, or from the checkpoint of its host."
        )
    if stored.input_scale == config.input_scale == "balanced":
        raise ValueError(
            f"llm_block.input_scale of {source} is 'balanced': its config.json lacks the number that the model was "
            "trained with. Give it: from_pretrained(…, llm_block={'input_scale': NUMBER})."
        )


def _check_unchanged(block: Any, stored_block: dict[str, Any], source: Any) -> None:
    """Refuse a layer that has changed in its folder since it was saved; one whose type was changed is not checked."""
    expected = stored_block.get("saved_fingerprint")
    if expected is None or block._remembered_digest in (None, expected) or not os.path.isdir(source):
        return
    tensors = block._named_llm_tensors()
    with LLMCheckpoint(os.fspath(source)) as checkpoint:
        keys = find_saved_layer(checkpoint)
        stored_types = {name: SAFETENSORS_DTYPES.get(checkpoint.size_of(key)[1]) for name, key in keys.items()}
    if stored_types == {name: tensor.dtype for name, tensor in tensors.items()}:
        raise ValueError(
            f"{source} is damaged: its LLM layer is not the one that was saved (fingerprint "
            f"{block._remembered_digest[:16]}…, expected is {expected[:16]}…). Save or copy it again; if you changed "
            "the layer on purpose, set llm_block.saved_fingerprint of its config.json to null."
        )


__all__ = ["HUB_KWARGS", "LOADING", "PreTrainedModelWithLLMBlock", "check_stored_tensors", "needs_all_tokens"]
