# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm info`: describe a checkpoint."""

import pytest
import torch
from llm_files import write_llm
from tiny_llms import tiny_config, tiny_llm
from transformers import ViTConfig, ViTModel

from hf_frozen_llm import (
    LLMBlockConfig,
    PointBertWithLLMBlockConfig,
    PointBertWithLLMBlockForPointCloudClassification,
    VideoMAEWithLLMBlockConfig,
    VideoMAEWithLLMBlockForVideoClassification,
    ViTWithLLMBlockConfig,
    ViTWithLLMBlockForImageClassification,
)
from hf_frozen_llm.cli import main
from hf_frozen_llm.commands.info import describe_checkpoint


SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
SIZES |= {"image_size": 8, "patch_size": 4}


@pytest.fixture
def llm(tmp_path):
    folder = write_llm(tiny_llm(tiny_config("llama")), tmp_path / "llm")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A tiny LLaMA\n")
    return str(folder)


def save(folder, block, **fields):
    torch.manual_seed(0)
    config = ViTWithLLMBlockConfig(**SIZES, num_labels=3, llm_block=block, **fields)
    model = ViTWithLLMBlockForImageClassification(config)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("save_weights", [True, False])
def test_of_a_frozen_layer(save_weights, llm, tmp_path, capsys):
    block = LLMBlockConfig(llm_name_or_path=llm, layer_index=1, save_weights=save_weights)
    model = save(tmp_path / "model", block)
    facts = describe_checkpoint(str(tmp_path / "model"))
    assert facts["model"] == "ViTWithLLMBlockForImageClassification (vit_with_llm_block), 3 labels"
    assert "hidden_size 24, num_hidden_layers 2" in facts["host"]
    assert facts["LLM block"] == "kind llm, after the last layer of the host"
    assert facts["LLM"].startswith(llm) and facts["licence of the LLM"] == "apache-2.0"
    assert facts["layer"] == "1 of 3 (llama, width 32), weights pretrained, frozen"
    assert facts["layer's weights"].startswith("included" if save_weights else "left out")
    tokens = torch.randn(1, 64, 24, generator=torch.Generator().manual_seed(0))
    ratio = f"{model.llm_block.update_ratio(tokens):.3g} times its input, for standard-normal tokens"
    assert facts["update of the layer"] == (ratio if save_weights else facts["update of the layer"])
    assert save_weights or facts["update of the layer"].startswith("not measured")
    assert facts["input scale"] == "1, as released"
    assert facts["fingerprint"] == model.llm_block.config.fingerprint
    total, trainable = model.num_parameters(), model.num_parameters(only_trainable=True)
    assert facts["parameters"] == f"{total:,} total, {trainable:,} trainable, {total - trainable:,} frozen"
    main(["info", str(tmp_path / "model")])
    printed = capsys.readouterr().out
    assert all(value in printed for value in facts.values())


def test_bytes_of_a_quantized_layer(llm, tmp_path):
    model = save(tmp_path / "model", LLMBlockConfig(llm_name_or_path=llm, quantization="int4"))
    facts = describe_checkpoint(str(tmp_path / "model"))
    size = sum(tensor.nbytes for tensor in model.llm_block._named_llm_tensors().values())
    assert facts["bytes of the layer"].startswith(f"{size:,}, as int4 (")
    save(tmp_path / "plain", LLMBlockConfig(llm_name_or_path=llm))
    facts_of_plain = describe_checkpoint(str(tmp_path / "plain"))
    assert facts["parameters"] == facts_of_plain["parameters"]
    assert facts["GFLOP for one input"] == facts_of_plain["GFLOP for one input"]
    assert facts_of_plain["bytes of the layer"].endswith(", as float32")


def test_of_controls_and_of_the_plain_host(llm, tmp_path):
    save(tmp_path / "plain", None)
    facts = describe_checkpoint(str(tmp_path / "plain"))
    assert facts["LLM block"] == "none, the plain host" and "LLM" not in facts
    save(tmp_path / "mlp", LLMBlockConfig(llm_name_or_path=llm, kind="mlp", input_scale=2.5))
    facts = describe_checkpoint(str(tmp_path / "mlp"))
    assert facts["LLM block"].startswith("kind mlp") and "layer" not in facts and "update of the layer" not in facts
    assert facts["input scale"] == "2.5"
    save(tmp_path / "random", LLMBlockConfig(llm_name_or_path=llm, weights="random"))
    assert "none" in describe_checkpoint(str(tmp_path / "random"))["fingerprint"]


def test_of_videos_and_point_clouds(llm, tmp_path):
    block = LLMBlockConfig(llm_name_or_path=llm, layer_index=1)
    config = VideoMAEWithLLMBlockConfig(**SIZES, num_frames=4, llm_block=block)
    VideoMAEWithLLMBlockForVideoClassification(config).save_pretrained(tmp_path / "video")
    sizes = {name: size for name, size in SIZES.items() if name not in ("image_size", "patch_size")}
    config = PointBertWithLLMBlockConfig(**sizes, num_groups=4, group_size=4, llm_block=block)
    PointBertWithLLMBlockForPointCloudClassification(config).save_pretrained(tmp_path / "points")
    for name in ("video", "points"):
        facts = describe_checkpoint(str(tmp_path / name))
        assert "forward" in facts["GFLOP for one input"] and "frozen" in facts["parameters"]


def test_licence_without_a_card(llm, tmp_path):
    """There is no Hub in the tests, and users may have none either."""
    model = save(tmp_path / "model", LLMBlockConfig(llm_name_or_path=llm))
    model.config.llm_block.llm_name_or_path = "someone/llm"
    model.config.save_pretrained(tmp_path / "model")
    assert describe_checkpoint(str(tmp_path / "model"))["licence of the LLM"].startswith("unknown")


def test_other_checkpoints_are_refused(tmp_path):
    ViTModel(ViTConfig(**SIZES)).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="is a vit, not a model of this package"):
        describe_checkpoint(str(tmp_path / "vit"))
    with pytest.raises(OSError, match="nowhere"):
        describe_checkpoint(str(tmp_path / "nowhere"))
