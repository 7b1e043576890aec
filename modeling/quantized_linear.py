# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Frozen linear layers whose weights are stored in 8 or 4 bits. Their inputs are never quantised."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.pytorch_utils import Conv1D


Quantization = Literal["int8", "int4"]

# Inputs that share a scale and a minimum in int4.
GROUP_SIZE = 32
# Rows up to which PyTorch's fused kernel is used on CPUs: for one row it takes half the time of dequantising.
MAX_FUSED_ROWS = 16
FUSED_MULTIPLE = 64
# Bytes of a piece of a dequantised matrix that stays in a core's cache.
_CACHED_BYTES = 2**19


@dataclass
class QuantizedWeight:
    """
    A weight in integers. All tensors have the weight's dimensions except the last one, its inputs, so that it can be
    split by output channels like a tensor.

    Args:
        values (`torch.Tensor` of shape `(…, inputs)`):
            int8: `weight = values * scale`. In int4 of shape `(…, padded inputs / 2)` in uint8, with the first half
            of the inputs in the lower four bits: `weight = values * scale + minimum`, with 0 to 15 as values.
        scale (`torch.Tensor` of shape `(…, 1)`): one for each output channel; in int4 `(…, groups)`, one for each
            group of 32 inputs.
        minimum (`torch.Tensor` of shape `(…, groups)`, *optional*): the least value of each group, in int4.
        in_features (`int`): number of inputs.
    """

    values: torch.Tensor
    scale: torch.Tensor
    minimum: torch.Tensor | None
    in_features: int

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.values.shape[:-1], self.in_features))

    @property
    def dtype(self) -> torch.dtype:
        return self.scale.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    def flatten(self, start_dim: int, end_dim: int) -> "QuantizedWeight":
        return self._map(lambda tensor: tensor.flatten(start_dim, end_dim))

    def unflatten(self, dim: int, sizes: tuple[int, ...]) -> "QuantizedWeight":
        return self._map(lambda tensor: tensor.unflatten(dim, sizes))

    def split(self, sizes: int | list[int], dim: int = 0) -> "list[QuantizedWeight]":
        values = self.values.split(sizes, dim)
        minima = [None] * len(values) if self.minimum is None else self.minimum.split(sizes, dim)
        return [
            QuantizedWeight(*parts, self.in_features) for parts in zip(values, self.scale.split(sizes, dim), minima)
        ]

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "QuantizedWeight":
        minimum = None if self.minimum is None else function(self.minimum)
        return QuantizedWeight(function(self.values), function(self.scale), minimum, self.in_features)

    def _tensors(self) -> Any:
        return self.values, self.scale, self.minimum

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight as a tensor of floating point numbers."""
        scale = self.scale.to(dtype)
        if self.minimum is None:
            return self.values.to(dtype) * scale
        values = torch.cat([self.values & 15, self.values >> 4], dim=-1).unflatten(-1, (-1, GROUP_SIZE))
        weight = values.to(dtype) * scale[..., None] + self.minimum.to(dtype)[..., None]
        return weight.flatten(-2)[..., : self.in_features]


def quantize(weight: torch.Tensor, bits: Quantization) -> QuantizedWeight:
    """
    Round a weight of shape `(outputs, inputs)` to integers, the same ones on every machine.

    Args:
        weight (`torch.Tensor`): finite floating point numbers; float16 and bfloat16 are read as float32.
        bits (`"int8"` or `"int4"`): int8 has one scale for each output channel, int4 a scale and a minimum for each
            32 inputs.
    """
    in_features = weight.shape[1]
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if bits == "int8":
        scale = weight.abs().amax(dim=1, keepdim=True) / 127
        values = (weight / _nonzero(scale)).round().clamp(-127, 127).to(torch.int8)
        return QuantizedWeight(values, scale, None, in_features)
    # A last group with fewer inputs is filled with its last one, which changes neither minimum nor maximum.
    missing = -in_features % GROUP_SIZE
    groups = torch.cat([weight, weight[:, -1:].expand(-1, missing)], dim=1).unflatten(1, (-1, GROUP_SIZE))
    minimum, maximum = groups.aminmax(dim=2)
    scale = (maximum - minimum) / 15
    values = ((groups - minimum[..., None]) / _nonzero(scale)[..., None]).round().clamp(0, 15).to(torch.uint8)
    lower, upper = values.flatten(1).chunk(2, dim=1)
    return QuantizedWeight(lower | upper << 4, scale, minimum, in_features)


def _nonzero(scale: torch.Tensor) -> torch.Tensor:
    return scale.masked_fill(scale == 0, 1)  # equal values: every integer is 0


class QuantizedLinear(nn.Module):
    """
    A frozen `nn.Linear` (or `Conv1D`) with integer weights. Its parameters are `values`, `scale`, `minimum` (int4) and
    the `bias` of the module that it replaces. Casts leave the integers alone.

    Args:
        module (`nn.Linear` or `Conv1D`): the module to replace; its weight is not read.
        bits (`"int8"` or `"int4"`): see [`quantize`].
    """

    def __init__(self, module: nn.Module, bits: Quantization):
        super().__init__()
        weight, bias = cast(torch.Tensor, module.weight), cast("nn.Parameter | None", module.bias)
        self.bits = bits
        # Conv1D stores its weight as (inputs, outputs).
        self.is_transposed = isinstance(module, Conv1D)
        self.out_features, self.in_features = weight.shape[::-1] if self.is_transposed else weight.shape
        empty = quantize(torch.empty(self.out_features, self.in_features, dtype=weight.dtype, device="meta"), bits)
        self.values = nn.Parameter(empty.values, requires_grad=False)
        self.scale = nn.Parameter(empty.scale.to(weight.dtype), requires_grad=False)
        minimum = empty.minimum
        self.minimum = None if minimum is None else nn.Parameter(minimum.to(weight.dtype), requires_grad=False)
        self.bias = bias

    @property
    def weight(self) -> QuantizedWeight:
        """The weight, always of shape `(outputs, inputs)`."""
        return QuantizedWeight(self.values, self.scale, self.minimum, self.in_features)

    @property
    def shape_in_checkpoint(self) -> tuple[int, int]:
        shape = (self.out_features, self.in_features)
        return shape[::-1] if self.is_transposed else shape

    @torch.no_grad()
    def read_weight(self, weight: torch.Tensor) -> None:
        """Quantise the weight of the replaced module, unless the model's own checkpoint has initialised the values."""
        quantized = quantize(weight.mT if self.is_transposed else weight, self.bits)
        for name in ("values", "scale", "minimum"):
            if (parameter := getattr(self, name)) is not None:
                init.copy_(parameter, getattr(quantized, name))
                parameter._is_hf_initialized = True

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return linear(hidden_states, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"


def quantize_linear_modules(layers: nn.Module, bits: Quantization, name: str) -> None:
    """
    Replace the linear modules of decoder layers, whose weights are not read.

    Args:
        layers (`nn.Module`): the layers, changed in place.
        bits (`"int8"` or `"int4"`): see [`quantize`].
        name (`str`): the language model's family, for the error.

    Raises:
        `ValueError`: if matrices are not in linear modules, such as those of experts.
    """
    for path, module in list(layers.named_modules()):
        if type(module) in (nn.Linear, Conv1D):
            layers.set_submodule(path, QuantizedLinear(module, bits))
        elif matrices := [n for n, p in module.named_parameters(recurse=False) if p.ndim > 1]:
            raise ValueError(
                f"quantization={bits!r} is not possible for {name}: {path} ({type(module).__name__}) holds "
                f"{', '.join(matrices)} outside of nn.Linear, as experts do. Use quantization=None, or a language "
                "model whose layers consist of linear modules."
            )


def targets_of_reading(
    module: nn.Module, tensors: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor | QuantizedLinear]:
    """Replace the integers and scales among a module's tensors by the linear modules, as targets of their weights."""
    linears = {name: m for name, m in module.named_modules() if isinstance(m, QuantizedLinear)}
    parts = {f"{name}.{part}" for name in linears for part in ("values", "scale", "minimum")}
    plain = {name: tensor for name, tensor in tensors.items() if name not in parts}
    return {**plain, **{f"{name}.weight": m for name, m in linears.items() if f"{name}.values" in tensors}}


def copy_quantized(source: nn.Module, target: nn.Module) -> None:
    """Copy the tensors of a module into the same one with quantised linear modules, and quantise their weights."""
    for path, module in target.named_modules():
        original = source.get_submodule(path)
        if isinstance(module, QuantizedLinear):
            module.read_weight(cast(torch.Tensor, original.weight))
        own: Iterable[tuple[str, Any]] = (
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        )
        for name, tensor in own:
            if tensor is not None and name not in ("values", "scale", "minimum"):
                init.copy_(tensor, getattr(original, name))
                tensor._is_hf_initialized = True


# A weight in the form that the functions below take: floating point or quantised.
Weight = torch.Tensor | QuantizedWeight


def linear(x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Compute `F.linear` with a weight of either form."""
    if isinstance(weight, torch.Tensor):
        return F.linear(x, weight, bias)
    product = multiply(x, weight)
    return product if bias is None else product + bias.to(product.dtype)


def multiply(x: torch.Tensor, weight: QuantizedWeight, transposed: bool = False) -> torch.Tensor:
    """
    Multiply by a quantised weight in the data type of `x`: `x @ weight.mT`, or `x @ weight` if `transposed`.

    Derivatives are exact in every order and mode. Backward dequantises the weight again instead of keeping it.

    Args:
        x (`torch.Tensor` of shape `(…, inputs)`): with a weight of shape `(heads, outputs, inputs)` of shape
            `(heads, rows, inputs)`. If `transposed`, inputs and outputs are swapped.
        weight ([`QuantizedWeight`]): the weight.
        transposed (`bool`, *optional*, defaults to `False`): whether to multiply by the weight's transpose.
    """
    if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    # Tracers record operations, not autograd functions.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        matrix = weight.dequantize(x.dtype)
        return x @ (matrix if transposed else matrix.mT)
    return cast(torch.Tensor, _Multiply.apply(x, *weight._tensors(), weight.in_features, transposed))


class _Multiply(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: torch.Tensor,
        values: torch.Tensor,
        scale: torch.Tensor,
        minimum: torch.Tensor | None,
        in_features: int,
        transposed: bool,
    ) -> torch.Tensor:
        return _multiply(x, QuantizedWeight(values, scale, minimum, in_features), transposed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
        _, values, scale, minimum, ctx.in_features, ctx.transposed = inputs
        ctx.save_for_backward(values, scale, minimum)
        ctx.save_for_forward(values, scale, minimum)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        return _Multiply.apply(grad, *ctx.saved_tensors, ctx.in_features, not ctx.transposed), *[None] * 5

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor, *_: Any) -> torch.Tensor:
        return cast(torch.Tensor, _Multiply.apply(tangent, *ctx.saved_tensors, ctx.in_features, ctx.transposed))


def _multiply(x: torch.Tensor, weight: QuantizedWeight, transposed: bool) -> torch.Tensor:
    num_rows = x.shape[-2] if len(weight.shape) == 3 else x.shape[:-1].numel()
    if x.device.type == "cpu" and num_rows <= MAX_FUSED_ROWS:
        # For few rows, reading and writing the weight is most of the work: the parts of it stay in the cache.
        if len(weight.shape) == 3:
            heads = [w.flatten(0, 1) for w in weight.split(1)]
            return torch.stack([_multiply(rows, head, transposed) for rows, head in zip(x, heads)])
        # The kernel reads past the end of rows whose length is not a multiple of its vectors'.
        has_kernel = weight.minimum is None and x.dtype == weight.dtype == torch.bfloat16
        if has_kernel and not transposed and all(size % FUSED_MULTIPLE == 0 for size in weight.shape):
            rows = x.reshape(num_rows, -1).contiguous()
            return torch._weight_int8pack_mm(rows, weight.values, weight.scale[:, 0]).view(*x.shape[:-1], -1)
        channels = max(1, _CACHED_BYTES // (4 * weight.in_features))
        if weight.minimum is None:
            # One scale for each row of the matrix: it multiplies the few numbers before or after the product.
            dtype = torch.promote_types(x.dtype, torch.float32)
            scale, values = weight.scale[:, 0].to(dtype), weight.values.split(channels)
            if transposed:
                scaled = (x.to(dtype) * scale).split(channels, dim=-1)
                return cast(torch.Tensor, sum(a @ b.to(dtype) for a, b in zip(scaled, values))).to(x.dtype)
            wide = x.to(dtype)
            return (torch.cat([wide @ part.to(dtype).mT for part in values], dim=-1) * scale).to(x.dtype)
        if not transposed:
            return torch.cat([x @ part.dequantize(x.dtype).mT for part in weight.split(channels)], dim=-1)
    matrix = weight.dequantize(x.dtype)
    return x @ (matrix if transposed else matrix.mT)


__all__ = [
    "GROUP_SIZE",
    "Quantization",
    "QuantizedLinear",
    "QuantizedWeight",
    "Weight",
    "copy_quantized",
    "linear",
    "multiply",
    "quantize",
    "quantize_linear_modules",
    "targets_of_reading",
]
