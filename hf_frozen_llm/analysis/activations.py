# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The tokens of a model before, inside and after its LLM block."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from hf_frozen_llm.modeling.pretrained_model import PreTrainedModelWithLLMBlock
from hf_frozen_llm.modeling.vision_host import patch_grid


# By the class of the LLM layer, the module whose input is the residual stream after the attention; "" in a layer that
# computes attention and feed-forward side by side.
_AFTER_ATTENTION = {
    "GPT2Block": "ln_2",
    "GPTNeoXLayer": "post_attention_layernorm",
    "Gemma2DecoderLayer": "pre_feedforward_layernorm",
    "Gemma3DecoderLayer": "pre_feedforward_layernorm",
    "GemmaDecoderLayer": "post_attention_layernorm",
    "GptOssDecoderLayer": "post_attention_layernorm",
    "GraniteDecoderLayer": "post_attention_layernorm",
    "LlamaDecoderLayer": "post_attention_layernorm",
    "MistralDecoderLayer": "post_attention_layernorm",
    "OPTDecoderLayer": "final_layer_norm",
    "Phi3DecoderLayer": "post_attention_layernorm",
    "PhiDecoderLayer": "",
    "Qwen2DecoderLayer": "post_attention_layernorm",
    "Qwen3DecoderLayer": "post_attention_layernorm",
    "SmolLM3DecoderLayer": "post_attention_layernorm",
}
_ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")


@dataclass
class TokenActivations:
    """
    The tokens of a batch at the tap points of a model, see [`token_activations`].

    Args:
        states (`dict[str, torch.Tensor]`):
            By tap point, tokens of shape `(batch, tokens, channels)`, in the order of the computation.
        attention (`torch.Tensor` of shape `(batch, heads, tokens, tokens)`, *optional*):
            The attention probabilities, of each query (third dimension) over the keys.
        mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*):
            1 = token, 0 = padding; `None` if no token is padding.
        outputs (`Any`):
            The model's own outputs.
    """

    states: dict[str, torch.Tensor]
    attention: torch.Tensor | None
    mask: torch.Tensor | None
    outputs: Any = field(repr=False)


@dataclass(frozen=True)
class TokenLayout:
    """
    Where the tokens of a model's block come from.

    Args:
        num_prefix_tokens (`int`):
            Tokens before those that have a place in the input: CLS, distillation, registers.
        shape (`tuple[int, ...]`):
            How the other tokens are arranged: `(rows, columns)` of an image, `(times, rows, columns)` of a video, or
            only their number.
        reads_first_token (`bool`):
            Whether the head reads the first token (a CLS token, or the agent whose future is forecast) rather than
            the mean of all.
    """

    num_prefix_tokens: int
    shape: tuple[int, ...]
    reads_first_token: bool

    def take(self, tokens: torch.Tensor) -> torch.Tensor:
        """Drop the prefix tokens of `(batch, tokens, …)`."""
        return tokens[:, self.num_prefix_tokens :]

    def query(self, attention: torch.Tensor) -> torch.Tensor:
        """
        Return the attention of the head's query to the tokens that have a place.

        Args:
            attention (`torch.Tensor` of shape `(batch, heads, tokens, tokens)`): attention probabilities.

        Returns:
            `torch.Tensor` of shape `(batch, heads, tokens without prefix)`: the row of the first token if the head
            reads it, else the mean of the rows of the tokens that have a place.
        """
        queries = attention[:, :, :1] if self.reads_first_token else attention[:, :, self.num_prefix_tokens :]
        return queries.mean(2)[..., self.num_prefix_tokens :]


def tap_points(model: Any) -> list[str]:
    """
    Return the names of a model's tap points, in the order of the computation.

    - `host`: the tokens that the host hands to the block, or to its final norm if it has no block (the paper's F_E);
    - `input_projection`: the layer's input (F_L^1), which contains the `input_scale`;
    - `attention`: the residual stream after the layer's attention, which contains the layer's input (F_LM^A). In a
      layer that computes attention and feed-forward side by side, it is the layer's input plus its attention;
    - `feed_forward`: the layer's output, the residual stream after its feed-forward (F_LM^F);
    - `mlp`: the output of the MLP that replaces the layer in a control (`kind="mlp"`);
    - `final_norm`: after the norm that the released code adds;
    - `output_projection`: in the host's width again (F_L^2);
    - `block`: the block's output, if a residual connection around the block makes it another one.

    With several LLM layers, `attention_0` and `feed_forward_0` are those of the first, and so on. `attention` is
    missing for families of language models whose layers are not known to this function, and for OPT-350m, whose norms
    follow the residual connections.

    Args:
        model (`PreTrainedModel`): a model of this package, or a block alone.

    Raises:
        `ValueError`: for another model, or one without a block whose host's tokens are not known.
    """
    block = _find_block(model)
    if block is None:
        _find_host_norm(model)
        return ["host"]
    layers = [
        f"{tap}{suffix}"
        for layer, suffix in zip(block.llm_layers, _suffixes(block))
        for tap in (["attention"] if _knows_attention(layer) else []) + ["feed_forward"]
    ]
    return [
        *("host", "input_projection"),
        *layers,
        *(["mlp"] if block.mlp_norm is not None else []),
        *(["final_norm"] if block.final_norm is not None else []),
        "output_projection",
        *(["block"] if block.config.residual in ("outer", "hybrid", "outer_linear") else []),
    ]


@torch.no_grad()
def token_activations(
    model: Any, inputs: Mapping[str, Any], at: Sequence[str] | None = None, attention: bool = False
) -> TokenActivations:
    """
    Return the tokens of a batch at tap points of a model.

    The block runs its plain path, for all tokens, and the model in evaluation mode; afterwards the model is as it was.

    Args:
        model (`PreTrainedModel`):
            A model of this package, of any task, or a block alone.
        inputs (`Mapping[str, Any]`):
            The arguments of its forward.
        at (`Sequence[str]`, *optional*):
            Names of [`tap_points`]; all of them by default.
        attention (`bool`, *optional*, defaults to `False`):
            Whether to return attention probabilities too, those of the last LLM layer or, without a block, of the
            host's last layer. Queries and keys are computed for all tokens, with the block's mask and positions.

    Returns:
        [`TokenActivations`]: the tokens.

    Raises:
        `ValueError`: for a tap point that the model does not have.

    Example:

    ```python
    >>> import torch
    >>> from hf_frozen_llm import LLMBlock, LLMBlockConfig
    >>> from hf_frozen_llm.analysis import token_activations

    >>> block = LLMBlock(LLMBlockConfig(llm_name_or_path="HuggingFaceTB/SmolLM2-135M", hidden_size=192))
    >>> found = token_activations(block, {"hidden_states": torch.randn(2, 65, 192)}, at=["attention"])
    >>> found.states["attention"].shape
    torch.Size([2, 65, 576])
    ```"""
    available = tap_points(model)
    wanted = available if at is None else list(at)
    if unknown := [name for name in wanted if name not in available]:
        raise ValueError(f"{' and '.join(unknown)}: the model has no such tap point; it has {', '.join(available)}.")
    block = _find_block(model)
    states: dict[str, torch.Tensor] = {}
    probabilities: list[torch.Tensor] = []
    masks: list[torch.Tensor | None] = []
    with ExitStack() as stack:
        stack.enter_context(_evaluating(model))
        if block is None:
            norm = _find_host_norm(model)
            _hook(stack, norm, lambda arguments, output: states.update(host=_first(arguments)), is_before=True)
        else:
            stack.enter_context(_on_plain_path(block))
            _tap_block(stack, block, states, masks)
        arguments = dict(inputs)
        if attention and block is None:
            stack.enter_context(_with_eager_host(model))
            arguments["output_attentions"] = True
        elif attention:
            if not len(block.llm_layers):
                raise ValueError(f"attention: the block has no LLM layer, its kind is {block.config.kind!r}.")
            stack.enter_context(_with_eager_layers(block))
            module = _attention_of(block.llm_layers[-1])
            _hook(stack, module, lambda arguments, output: probabilities.append(output[1]))
        outputs = model(**arguments)
    if attention and block is None:
        probabilities.append(outputs.attentions[-1])
        if probabilities[0].shape[-1] != states["host"].shape[1]:
            raise ValueError("attention: the last layer of this host does not attend to all of its tokens.")
    if attention and probabilities[0] is None:
        raise ValueError(f"attention: {type(module).__name__} does not return its attention probabilities.")
    if len(masks) != (block is not None):
        raise ValueError(f"The block ran {len(masks)} times in one forward; its tokens are not defined.")
    return TokenActivations(
        {name: states[name] for name in available if name in wanted},
        probabilities[0] if attention else None,
        masks[0] if masks else None,
        outputs,
    )


def token_layout(model: Any, inputs: Mapping[str, Any], num_tokens: int) -> TokenLayout:
    """
    Return where the tokens of a model's block come from.

    Args:
        model (`PreTrainedModel`): a model of this package.
        inputs (`Mapping[str, Any]`): the arguments of its forward.
        num_tokens (`int`): the block's tokens of an example.

    Raises:
        `ValueError`: for a vision encoder with tokens of which it is not known which are patches.
    """
    config, kind = model.config, model.config.model_type
    if kind == "videomae_with_llm_block":
        frames, _, height, width = inputs["pixel_values"].shape[1:]
        grid = (frames // config.tubelet_size, *patch_grid(config.patch_size, height, width))
        return TokenLayout(0, grid, not config.use_mean_pooling)
    if kind == "vit_with_llm_block":
        num_prefix, vision, reads_first = 1, config, True
    elif kind == "meter_with_llm_block":
        num_prefix, vision, reads_first = 1, config.vision_config, True
    elif kind == "vision_with_llm_block":
        num_prefix, vision, reads_first = model._host.num_prefix_tokens, config.vision_config, config.pooling != "mean"
        if num_prefix is None or model._host.pixel_dims != 4:
            raise ValueError(f"It is not known which tokens of {vision.model_type} are patches of an image.")
    else:
        num_prefix = 1 if kind == "point_bert_with_llm_block" else 0
        return TokenLayout(num_prefix, (num_tokens - num_prefix,), kind != "sqa3d_with_llm_block")
    rows, columns = patch_grid(vision.patch_size, *inputs["pixel_values"].shape[-2:])
    # A hierarchical host merges patches.
    merged = (rows * columns / (num_tokens - num_prefix)) ** 0.5
    if rows % merged or columns % merged:
        raise ValueError(f"{num_tokens - num_prefix} tokens do not fit {rows} x {columns} patches of {kind}.")
    return TokenLayout(num_prefix, (int(rows / merged), int(columns / merged)), reads_first)


def _find_block(model: Any) -> Any:
    if not isinstance(model, PreTrainedModelWithLLMBlock):
        raise ValueError(f"{type(model).__name__} is not a model of this package.")
    return model._get_llm_block()


def _find_host_norm(model: Any) -> nn.Module:
    """Return the final norm of an image model without a block: its input is what a block would get."""
    kind = model.config.model_type
    if kind == "vit_with_llm_block":
        return model.vit.layernorm
    if kind == "vision_with_llm_block" and not model._host.norm_is_after_pooling:
        return model._host.norm(model.host)
    raise ValueError(
        f"This {type(model).__name__} has no LLM block, and so no tap points. Of models without a block, only those "
        "of images with a norm on their tokens have one, host."
    )


def _suffixes(block: Any) -> list[str]:
    count = len(block.llm_layers)
    return [""] if count == 1 else [f"_{index}" for index in range(count)]


def _knows_attention(layer: nn.Module) -> bool:
    return type(layer).__name__ in _AFTER_ATTENTION and getattr(layer, "do_layer_norm_before", True)


def _attention_of(layer: nn.Module) -> nn.Module:
    return next(getattr(layer, name) for name in _ATTENTION_NAMES if hasattr(layer, name))


def _hook(
    stack: ExitStack, module: Any, record: Callable[[dict[str, Any], Any], Any], is_before: bool = False
) -> None:
    """Call `record` with the arguments of a module by their names and, if it has run, its output."""
    signature = inspect.signature(module.forward)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        record(signature.bind(*args, **kwargs).arguments, None)

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        record(signature.bind(*args, **kwargs).arguments, output)

    if is_before:
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(after, with_kwargs=True)
    stack.callback(handle.remove)


def _first(arguments: dict[str, Any]) -> torch.Tensor:
    return next(iter(arguments.values()))


def _tap_block(
    stack: ExitStack, block: Any, states: dict[str, torch.Tensor], masks: list[torch.Tensor | None]
) -> None:
    """Record the block's tokens in `states`, and its mask in `masks`."""

    def enter(arguments: dict[str, Any], output: Any) -> None:
        states["host"] = arguments["hidden_states"]
        masks.append(arguments.get("attention_mask"))

    def keep(name: str, arguments: dict[str, Any], output: Any) -> None:
        states[name] = output[0] if isinstance(output, (tuple, list)) else output

    _hook(stack, block, enter, is_before=True)
    _hook(stack, block, partial(keep, "block"))
    _hook(stack, block.input_projection, partial(keep, "input_projection"))
    _hook(stack, block.output_projection, partial(keep, "output_projection"))
    for name, norm in (("final_norm", block.final_norm), ("mlp", block.mlp_norm)):
        if norm is not None:
            _hook(stack, norm, partial(keep, name))
    for layer, suffix in zip(block.llm_layers, _suffixes(block)):
        if _knows_attention(layer):
            _tap_attention(stack, layer, f"attention{suffix}", states)
        _hook(stack, layer, partial(keep, f"feed_forward{suffix}"))


def _tap_attention(stack: ExitStack, layer: Any, name: str, states: dict[str, torch.Tensor]) -> None:
    """Record the residual stream after the attention of a layer."""
    layer_inputs: list[torch.Tensor] = []
    _hook(stack, layer, lambda arguments, output: layer_inputs.append(_first(arguments)), is_before=True)

    def keep_stream(arguments: dict[str, Any], output: Any) -> None:
        states[name] = _first(arguments).reshape(layer_inputs[-1].shape)  # OPT's has no batch dimension

    def add_attention(arguments: dict[str, Any], output: Any) -> None:
        states[name] = layer_inputs[-1] + output[0]

    norm = _AFTER_ATTENTION[type(layer).__name__]
    if not norm or getattr(layer, "use_parallel_residual", False):
        _hook(stack, _attention_of(layer), add_attention)
    else:
        _hook(stack, getattr(layer, norm), keep_stream, is_before=True)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    in_training = [module for module in model.modules() if module.training]
    for module in in_training:
        module.training = False
    try:
        yield
    finally:
        for module in in_training:
            module.training = True


@contextmanager
def _on_plain_path(block: Any) -> Iterator[None]:
    before, block.config.fast = block.config.fast, False
    try:
        yield
    finally:
        block.config.fast = before


@contextmanager
def _with_eager_layers(block: Any) -> Iterator[None]:
    """Let the LLM layers form their attention probabilities, which other implementations do not return."""
    configs = [block._text_config, block._caller.config]
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation_internal = "eager"
    try:
        yield
    finally:
        for config, implementation in zip(configs, before):
            config._attn_implementation_internal = implementation


@contextmanager
def _with_eager_host(model: Any) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
