# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""The contract of the LLM block, for every family of language models and both attention implementations."""

import copy
import functools
import shutil

import pytest
import torch
from tiny_llms import (
    EAGER_ONLY,
    FAMILIES,
    MAY_BE_REFUSED,
    MIXTURES,
    NO_ORACLE,
    NO_SDPA_ORACLE,
    NO_SELF_ATTENTION,
    NOT_DECODERS,
    decoder_stack,
    tiny_config,
    tiny_llm,
    write_llm,
)
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AttentionInterface,
    AttentionMaskInterface,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hf_frozen_llm import LLMBlock, LLMBlockConfig


CASES = [(f, a) for f in FAMILIES for a in ("sdpa", "eager") if a == "eager" or f not in EAGER_ONLY]
every_case = pytest.mark.parametrize(("family", "attention"), CASES, ids=[f"{f}-{a}" for f, a in CASES])
every_family = pytest.mark.parametrize("family", list(FAMILIES))
WIDTH, TOKENS = 24, 9
# rounding of norms and softmax, which transformers computes in float32
TOLERANCE = 2e-5


def dtype_of(family):
    return torch.float32 if family in MIXTURES else torch.float64


def build(folder, attn_implementation=None, **fields):
    config = LLMBlockConfig(**{"llm_name_or_path": folder, "layer_index": 1, "hidden_size": WIDTH, **fields})
    torch.manual_seed(0)
    kwargs = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    return AutoModel.from_config(config, **kwargs).eval()


@pytest.fixture(scope="module")
def block_of(llm_folder):
    """`block_of(family, attn_implementation, **fields)` -> a block that tests share and must not change."""

    @functools.cache
    def make(family, attn_implementation, **fields):
        return build(llm_folder(family)[1], attn_implementation, **fields).to(dtype_of(family))

    return make


def tokens(family, batch=2, count=TOKENS, width=WIDTH, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, count, width, generator=generator, dtype=torch.float64).to(dtype_of(family))


def assert_near(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE * expected.abs().max().item())


def frozen_names(model):
    return {n for n, p in model.named_parameters() if not p.requires_grad}


def layer_names(model):
    return {n for n, _ in model.named_parameters() if "llm_layers." in n or "final_norm." in n}


def assert_frozen(model):
    assert layer_names(model)
    assert frozen_names(model) == layer_names(model)


def assert_holds_layer(block, llm, index=1, position=0):
    expected = decoder_stack(llm)[0][index].state_dict()
    actual = block.llm_layers[position].state_dict()
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor.to(actual[name].dtype)), name


@every_case
def test_equivariant_and_not_causal(family, attention, block_of):
    block, x = block_of(family, attention), tokens(family)
    assert block.llm_layers[0].__class__.__module__.startswith("transformers.")
    with torch.no_grad():
        out = block(x)
        assert out.shape == x.shape and out.dtype == x.dtype
        assert out.std() > 1e-3
        order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(2))
        assert_near(block(x[:, order]), out[:, order])
        changed = x.clone()
        changed[:, -1] += 1
        assert (block(changed)[:, 0] - out[:, 0]).abs().max() > 1e-3 * out.abs().max()


@every_case
def test_padding_changes_nothing(family, attention, block_of):
    block, x = block_of(family, attention), tokens(family)
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[0, 6:] = 0
    mask[1, 2] = 0
    other = x.clone()
    other[mask == 0] = 7 * torch.randn_like(other[mask == 0])
    with torch.no_grad():
        out = block(x, attention_mask=mask)
        assert torch.isfinite(out).all()
        assert_near(block(other, attention_mask=mask)[mask == 1], out[mask == 1])
        assert_near(out[:1, :6], block(x[:1, :6]))
        kept = [i for i in range(TOKENS) if i != 2]
        assert_near(out[1:, kept], block(x[1:, kept]))
        assert (out[:1, :6] - block(x)[:1, :6]).abs().max() > 1e-3 * out.abs().max()
        # a mask of ones is no mask
        assert_near(block(x, attention_mask=torch.ones_like(mask)), block(x))


@every_case
def test_no_leak_across_the_batch(family, attention, block_of):
    block, x = block_of(family, attention), tokens(family).requires_grad_()
    out = block(x)
    (gradient,) = torch.autograd.grad(out[0].square().sum(), x)
    assert (gradient[0].abs().amax(-1) > 0).all() and gradient[1].abs().max() == 0
    assert_near(block(x[:1]), out[:1])


@every_case
def test_causal(family, attention, block_of):
    block, x = block_of(family, attention, attention="causal"), tokens(family)
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[:, 3] = 0
    first, last = x.clone(), x.clone()
    first[:, 0] += 1
    last[:, -1] += 1
    with torch.no_grad():
        out = block(x)
        assert_near(block(last)[:, :-1], out[:, :-1])
        assert (block(first)[:, -1] - out[:, -1]).abs().max() > 1e-3 * out.abs().max()
        assert_near(block(x[:, :4]), out[:, :4])
        # the last token attends to all tokens, causal or not
        assert_near(block_of(family, attention)(x)[:, -1], out[:, -1])
        padded = block(x, attention_mask=mask)
        kept = [i for i in range(TOKENS) if i != 3]
        assert_near(padded[:, kept], block(x[:, kept]))
        # padding on the left: its rows see nothing at all
        mask[:, :4] = 0
        padded = block(x, attention_mask=mask)
        assert torch.isfinite(padded).all()
        assert_near(padded[:, 4:], block(x[:, 4:]))


@every_case
def test_training_mode_changes_nothing(family, attention, block_of):
    block, x = copy.deepcopy(block_of(family, attention)), tokens(family)
    with torch.no_grad():
        out = block(x)
        block.train()
        assert torch.equal(block(x), out)
        assert torch.equal(block(x), out)


@every_case
def test_own_whole_model_as_oracle(family, attention, llm_folder):
    if family in NO_ORACLE or (attention == "sdpa" and family in NO_SDPA_ORACLE):
        pytest.skip("the family's whole model adds alibi or chunks around its layers, or stays causal")
    llm, folder = llm_folder(family)
    width = llm.config.hidden_size
    block = build(folder, attention, hidden_size=width, final_norm="none").to(dtype_of(family))
    for projection in (block.input_projection, block.output_projection):
        projection.weight.data = torch.eye(width, dtype=dtype_of(family))
    llm = copy.deepcopy(llm).to(dtype_of(family))
    llm.set_attn_implementation(attention)
    x = tokens(family, width=width)
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[0, 6:] = 0
    with torch.no_grad():
        for attention_mask in (None, mask):
            expected = oracle(llm, x, attention_mask)
            keep = torch.ones_like(mask, dtype=torch.bool) if attention_mask is None else mask.bool()
            assert_near(block(x, attention_mask=attention_mask)[keep], expected[keep])


def oracle(llm, x, attention_mask):
    """Return the output of layer 1 inside the whole LLM, with `x` as its input instead of layer 0's output."""
    layer, seen = decoder_stack(llm)[0][1], []

    def inject(module, args, kwargs):
        if args:
            return (x, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": x}

    def capture(module, args, output):
        seen.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_pre_hook(inject, with_kwargs=True), layer.register_forward_hook(capture)]
    try:
        llm.base_model(
            inputs_embeds=x.new_zeros(*x.shape[:2], llm.get_input_embeddings().weight.shape[1]),
            attention_mask=attention_mask,
            position_ids=torch.zeros(x.shape[:2], dtype=torch.long),
            is_causal=False,
            use_cache=False,
        )
    finally:
        for hook in hooks:
            hook.remove()
    return seen[0]


@every_family
def test_sdpa_equals_eager_and_default(family, block_of):
    x = tokens(family)
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[0, 5:] = 0
    with torch.no_grad():
        eager, default = block_of(family, "eager"), block_of(family, None)
        for attention_mask in (None, mask):
            out = eager(x, attention_mask=attention_mask)
            keep = torch.ones_like(mask, dtype=torch.bool) if attention_mask is None else mask.bool()
            assert_near(default(x, attention_mask=attention_mask)[keep], out[keep])
            if family not in EAGER_ONLY:
                assert_near(block_of(family, "sdpa")(x, attention_mask=attention_mask)[keep], out[keep])


@every_family
def test_switching_attention_of_a_built_block(family, block_of):
    if family in EAGER_ONLY:
        pytest.skip("transformers has eager attention only for this family")
    block, x = copy.deepcopy(block_of(family, "sdpa")), tokens(family)
    block.set_attn_implementation("eager")
    with torch.no_grad():
        assert_near(block(x), block_of(family, "eager")(x))
    assert all(m.config._attn_implementation == "eager" for m in block.llm_layers.modules() if hasattr(m, "config"))


@every_family
def test_weights_frozen_and_equal(family, llm_folder, tmp_path):
    llm, folder = llm_folder(family)
    block = build(folder)
    assert_holds_layer(block, llm)
    assert_frozen(block)
    assert_frozen(block.train())
    block.save_pretrained(tmp_path)
    again, info = LLMBlock.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert_holds_layer(again, llm)
    assert_frozen(again)
    x = tokens(family).float()
    with torch.no_grad():
        assert torch.equal(again(x), block.eval()(x))


@every_family
def test_gradients_and_optimizer_steps(family, llm_folder, block_of):
    llm, _ = llm_folder(family)
    block = copy.deepcopy(block_of(family, None)).train()
    before = {n: t.clone() for n, t in block.state_dict().items()}
    x = tokens(family).requires_grad_()
    optimizer = torch.optim.AdamW(block.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        block(x).square().mean().backward()
        optimizer.step()
    assert (x.grad.abs().sum(-1) > 0).all()
    for name, parameter in block.named_parameters():
        if name in layer_names(block):
            assert parameter.grad is None
            assert torch.equal(parameter, before[name]), name
        else:
            assert parameter.grad.abs().max() > 0
            assert not torch.equal(parameter, before[name]), name
    assert_holds_layer(block, llm)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "gptj", "mixtral"])
@pytest.mark.parametrize("final_norm", ["unit", "pretrained", "none"])
def test_freeze_survives(family, final_norm, llm_folder):
    block = build(llm_folder(family)[1], final_norm=final_norm)
    assert_frozen(block)
    for change in (
        lambda b: b.train(),
        lambda b: b.eval(),
        lambda b: b.to(torch.bfloat16),
        lambda b: b.float(),
        copy.deepcopy,
        lambda b: copy.deepcopy(b).train(),
        lambda b: b.requires_grad_(True).train(),
    ):
        block = change(block)
        assert_frozen(block)
    assert all(p.requires_grad for n, p in block.named_parameters() if "projection" in n)


def test_bfloat16_block_runs(llm_folder):
    block = build(llm_folder("llama")[1])
    x = tokens("mixtral")
    with torch.no_grad():
        expected = block(x)
        out = block.to(torch.bfloat16)(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.05 * expected.abs().max().item())


@pytest.mark.parametrize("mask", [torch.bool, torch.long, torch.float32, torch.uint8])
def test_mask_dtypes(mask, block_of):
    block, x = block_of("llama", None), tokens("llama")
    keep = torch.ones(2, TOKENS, dtype=torch.bool)
    keep[:, 5:] = False
    with torch.no_grad():
        assert torch.equal(block(x, attention_mask=keep.to(mask)), block(x, attention_mask=keep.long()))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_item_of_padding_only_is_finite(attention, block_of):
    block, x = block_of("llama", attention), tokens("llama").requires_grad_()
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[1] = 0
    out = block(x, attention_mask=mask)
    assert torch.isfinite(out).all()
    assert_near(out[:1], block(x[:1]))
    out[:1].sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_compiled_in_one_graph(family, block_of):
    block, x = block_of(family, None), tokens(family)
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[:, 5:] = 0
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert_near(compiled(x), block(x))
        assert_near(compiled(x, attention_mask=mask)[:, :5], block(x, attention_mask=mask)[:, :5])


def test_batch_of_one_and_one_token(block_of):
    for family in ("llama", "gpt2", "gemma2", "mpt", "bloom"):
        block = block_of(family, None)
        x = tokens(family, batch=1, count=1)
        assert block(x).shape == x.shape
        x = tokens(family, batch=3, count=4)
        # a layer's tuple must not be read as a batch
        assert_near(block(x)[1:2], block(x[1:2]))


class Foreign(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.stem = nn.Linear(8, WIDTH)
        self.inner = nn.ModuleDict({"reader": block})
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        return self.head(self.inner["reader"](self.stem(x)).mean(1))


class ForeignConfig(PreTrainedConfig):
    model_type = "foreign_with_block"
    sub_configs = {"block": LLMBlockConfig}
    block: dict | PreTrainedConfig | None = None

    def __post_init__(self, **kwargs):
        if isinstance(self.block, dict):
            self.block = LLMBlockConfig(**self.block)
        super().__post_init__(**kwargs)


class ForeignModel(PreTrainedModel):
    config_class = ForeignConfig

    def __init__(self, config):
        super().__init__(config)
        self.stem = nn.Linear(8, WIDTH)
        self.reader = LLMBlock(config.block)
        self.head = nn.Linear(WIDTH, 3)
        self.post_init()

    def forward(self, x):
        return self.head(self.reader(self.stem(x)).mean(1))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_inside_a_foreign_module(family, llm_folder):
    llm, folder = llm_folder(family)
    model = Foreign(build(folder))
    assert_frozen(model)
    for change in (lambda m: m.train(), copy.deepcopy, lambda m: m.double(), lambda m: m.requires_grad_(True).train()):
        model = change(model)
        assert_frozen(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    model(torch.randn(2, 5, 8).double()).square().sum().backward()
    optimizer.step()
    assert_holds_layer(model.inner["reader"], llm)
    state = model.state_dict()
    other = Foreign(build(folder)).double()
    other.load_state_dict(state)
    assert_frozen(other)


@pytest.mark.parametrize("save_weights", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_inside_a_foreign_pretrained_model(family, save_weights, llm_folder, tmp_path):
    llm, folder = llm_folder(family)
    folder = shutil.copytree(folder, tmp_path / "llm")
    config = LLMBlockConfig(llm_name_or_path=str(folder), layer_index=1, hidden_size=WIDTH, save_weights=save_weights)
    model = ForeignModel(ForeignConfig(block=config)).eval()
    assert_holds_layer(model.reader, llm)
    assert_frozen(model)
    model.save_pretrained(tmp_path / "model")
    if save_weights:
        shutil.rmtree(folder)
    again, info = ForeignModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_holds_layer(again.reader, llm)
    assert_frozen(again)
    assert_frozen(again.train())
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), model(x))


def test_several_layers_and_negative_indices(llm_folder):
    llm, folder = llm_folder("llama")
    block = build(folder, layer_index=[2, 0])
    assert len(block.llm_layers) == 2
    assert_holds_layer(block, llm, index=2, position=0)
    assert_holds_layer(block, llm, index=0, position=1)
    assert_frozen(block)
    assert_holds_layer(build(folder, layer_index=-1), llm, index=2)
    assert_holds_layer(build(folder, layer_index=[-2, -1]), llm, index=1)
    one = build(folder, layer_index=1)
    assert sorted(k for k in one.state_dict() if "llm_layers" in k)[0].startswith("llm_layers.0.")


def assert_order_does_not_matter(block):
    x = tokens("mixtral")
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert_near(block(x[:, order]), block(x)[:, order])


@pytest.mark.parametrize("family", ["gemma3_text", "gpt_oss", "deepseek_v3", "llama4_text", "gpt_neo", "olmo3"])
def test_layers_of_every_kind_in_one_llm(family, llm_folder):
    # sliding and full attention, dense and mixture, local and global layers of one LLM
    llm, folder = llm_folder(family)
    for index in range(3):
        block = build(folder, layer_index=index).eval()
        assert_holds_layer(block, llm, index=index)
        assert_order_does_not_matter(block)


@pytest.mark.parametrize("family", list(NO_SELF_ATTENTION))
def test_layer_without_self_attention_is_refused(family, tmp_path):
    config = tiny_config(family)
    folder = write_llm(tiny_llm(config), tmp_path / "llm")
    index = NO_SELF_ATTENTION[family][2]
    with pytest.raises(ValueError, match=rf"(?s){index}.*self-attention|self-attention.*{index}") as error:
        LLMBlock(LLMBlockConfig(llm_name_or_path=str(folder), layer_index=index, hidden_size=WIDTH))
    assert config.model_type in str(error.value)


@pytest.mark.parametrize("family", ["jamba", "qwen3_next", "lfm2"])
def test_attention_layer_of_a_mixed_llm(family, tmp_path):
    llm = tiny_llm(tiny_config(family))
    folder = write_llm(llm, tmp_path / "llm")
    block = build(str(folder), layer_index=2)
    assert_holds_layer(block, llm, index=2)
    assert_order_does_not_matter(block)


@pytest.mark.parametrize("family", list(NOT_DECODERS))
def test_model_that_is_no_decoder_is_refused(family, tmp_path):
    config = tiny_config(family)
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="decoder") as error:
        LLMBlock(LLMBlockConfig(llm_name_or_path=str(tmp_path), hidden_size=WIDTH))
    assert config.model_type in str(error.value)


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("family", list(MAY_BE_REFUSED))
def test_unusual_family_runs_right_or_is_refused_by_name(family, attention, tmp_path):
    llm = tiny_llm(tiny_config(family))
    folder = write_llm(llm, tmp_path / "llm")
    try:
        block = build(str(folder), attention=attention)
    except ValueError as refusal:
        if llm.config.model_type not in str(refusal):
            raise
        return
    assert_holds_layer(block, llm)
    x = tokens("mixtral")
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[:, 6:] = 0
    last = x.clone()
    last[:, -1] += 1
    with torch.no_grad():
        out = block(x)
        assert_near(block(x, attention_mask=mask)[:, :6], block(x[:, :6]))
        if attention == "causal":
            assert_near(block(last)[:, :-1], out[:, :-1])
        else:
            order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(2))
            assert_near(block(x[:, order]), out[:, order])
            assert (block(last)[:, 0] - out[:, 0]).abs().max() > 1e-3 * out.abs().max()
        block.train()
        assert torch.equal(block(x), out)


@pytest.mark.parametrize(
    ("model_type", "keys"),
    [
        ("falcon_h1", {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4}),
        ("deepseek_v32", {"index_head_dim": 8, "index_n_heads": 2, "index_topk": 4}),
    ],
)
def test_layer_that_depends_on_the_order_is_refused(model_type, keys):
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    llm_config = CONFIG_MAPPING[model_type](**sizes, **keys)
    with pytest.raises(ValueError, match=rf"{model_type}.*order"):
        LLMBlock(LLMBlockConfig(llm_config=llm_config, weights="random", hidden_size=16))


def test_rotary_of_a_falcon_with_alibi_is_refused():
    with pytest.raises(ValueError, match="rotary=True"):
        LLMBlock(LLMBlockConfig(llm_config=tiny_config("falcon_alibi"), weights="random", rotary=True, hidden_size=16))


def test_random_layer_without_a_known_initialisation_is_refused():
    """Its activation has parameters that only the constructor sets."""
    with pytest.raises(ValueError, match=r"apertus.*alpha_p"):
        LLMBlock(LLMBlockConfig(llm_config=tiny_config("apertus"), weights="random", hidden_size=16))


def test_block_has_no_host_to_freeze():
    block = LLMBlock(LLMBlockConfig(llm_config=tiny_config("llama"), weights="random", hidden_size=16))
    with pytest.raises(TypeError, match="no host"):
        block.freeze_host()


@pytest.mark.parametrize("family", ["mistral_window", "gemma3_text", "gpt_oss"])
def test_no_window_reaches_the_attention(family):
    """Flash attention would keep to the window that it is given; SDPA and eager take theirs from the mask."""
    windows = set()

    def spy(module, query, key, value, attention_mask, **kwargs):
        windows.add(kwargs.get("sliding_window"))
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("spy", spy)
    AttentionMaskInterface.register("spy", sdpa_mask)
    config = LLMBlockConfig(llm_config=tiny_config(family), weights="random", layer_index=[0, 1], hidden_size=16)
    block = LLMBlock(config)
    block.config.llm_config._attn_implementation = "spy"
    block(torch.randn(1, 9, 16))
    assert windows == {None}


def test_family_with_rotary_positions_of_its_own_kind_is_refused_by_name():
    if "deepseek_v4" not in CONFIG_MAPPING:
        pytest.skip("this transformers has no deepseek_v4")
    config = LLMBlockConfig(llm_config=CONFIG_MAPPING["deepseek_v4"](), weights="random", hidden_size=16)
    with torch.device("meta"), pytest.raises(ValueError, match=r"of deepseek_v4 .* cannot run without"):
        LLMBlock(config)
