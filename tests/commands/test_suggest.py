# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm suggest`: layers whose worth is known, what it writes, and what it refuses."""

import json

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from llm_files import write_llm
from masked_images import write_cutouts
from tiny_llms import tiny_config, tiny_llm
from tiny_runs import write_image_folder
from transformers import ViTConfig, ViTModel
from vision_cases import POINT_BERT, VIT

from hf_frozen_llm import LLMBlock, LLMBlockConfig, suggest
from hf_frozen_llm.analysis import linear_cka, linear_probe, token_activations
from hf_frozen_llm.cli import main
from hf_frozen_llm.tasks import TASKS


SETTINGS = {"max_images": 48, "batch_size": 7, "split": "train"}


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    """Layer 0 changes nothing, layer 1 leaves one bit of each token, layer 2 is random."""
    model = tiny_llm(tiny_config("llama"))
    with torch.no_grad():
        for parameter in model.model.layers[0].parameters():
            parameter.zero_()
        mlp = model.model.layers[1].mlp
        # A single unit of the feed-forward, so large that the input is lost in rounding.
        mlp.up_proj.weight[1:] = 0
        mlp.gate_proj.weight[1:] = 0
        mlp.down_proj.weight *= 1e15
    return str(write_llm(model, tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("host")
    VIT.build(None).save_pretrained(folder)
    VIT.processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_image_folder(tmp_path_factory.mktemp("images") / "images", {"train": 60})


@pytest.fixture(scope="module")
def table(llm, host, data, tmp_path_factory):
    file = tmp_path_factory.mktemp("tables") / "table.json"
    flags = ["--max_images", "48", "--batch_size", "7", "--input_scale", "1", "--input_scale", "30"]
    main(["suggest", host, llm, "--data", data, *flags, "--output", str(file)])
    return pd.DataFrame(json.loads(file.read_text()))


def test_the_layer_that_destroys_its_input_is_last(table):
    assert table["layer"].tolist()[1:] == [0, 0, 1, 1, 2, 2] and np.isnan(table["layer"][0])
    assert table["input_scale"].tolist()[1:] == ["1", "30"] * 3
    probes = table.groupby("layer")["probe"].max()
    # Two of six classes are the most that one bit can tell apart.
    assert probes[1] <= 0.4 and probes[0] > 0.5
    nothing = table[table["layer"] == 0]
    assert (nothing["update_ratio"] == 0).all() and nothing["probe"].nunique() == 1
    suggested = table[table["suggested"]]
    assert len(suggested) == 1 and suggested["layer"].item() != 1


def test_one_row_by_hand(table, llm, host, data):
    model = VIT.loader.from_pretrained(host).eval()
    torch.manual_seed(0)
    block = LLMBlock(LLMBlockConfig(llm_name_or_path=llm, layer_index=2, hidden_size=model.config.hidden_size)).eval()
    task = TASKS["image-classification"]
    args = task.arguments(dataset_name=data)
    rows = task.read(args, "train").shuffle(seed=0).select(range(48))
    images = rows.cast_column("image", datasets.Image())
    inputs = VIT.processor()([row["image"] for row in images], return_tensors="pt")
    tokens = token_activations(model, inputs, at=["host"]).states["host"]
    outputs = token_activations(block, {"hidden_states": tokens}, at=["final_norm"]).states["final_norm"]
    row = table[(table["layer"] == 2) & (table["input_scale"] == "1")].iloc[0]
    assert row["probe"] == linear_probe(outputs[:, 0].double().numpy(), np.array(rows["label"])).mean()
    patches = [t[:, 1:].flatten(0, 1) for t in (tokens, outputs)]
    assert row["cka_to_host"] == pytest.approx(linear_cka(*patches), abs=1e-5)


def test_same_seed_same_table(table, llm, host, data, tmp_path):
    again = suggest(host, llm, data, layers=[-1], input_scales=[1], **SETTINGS)
    expected = table[(table["layer"] == 2) & (table["input_scale"] == "1")].iloc[0]
    assert again.loc[1, ["probe", "cka_to_host", "update_ratio"]].tolist() == pytest.approx(
        expected[["probe", "cka_to_host", "update_ratio"]].tolist(), rel=1e-6
    )
    other = suggest(host, llm, data, layers=[2], input_scales=[1], **SETTINGS, seed=1, output=tmp_path / "table.csv")
    assert other.loc[1, "cka_to_host"] != again.loc[1, "cka_to_host"]
    assert pd.read_csv(tmp_path / "table.csv")["suggested"].tolist() == [False, True]


def test_scale_that_does_not_exist_is_left_out(llm, host, data, capsys):
    found = suggest(host, llm, data, layers=[0, 2], input_scales=["balanced"], **SETTINGS)
    assert found["layer"].dropna().tolist() == [2] and found.loc[1, "factor"] > 0
    assert "layer 0, input scale balanced, is left out: input_scale='balanced' cannot be" in capsys.readouterr().out
    assert 0.5 < found.loc[1, "update_ratio"] < 2
    with pytest.raises(ValueError, match="There is no candidate left"):
        suggest(host, llm, data, layers=[0], input_scales=["balanced"], **SETTINGS)


def test_comparison_with_a_sweep(llm, host, data, tmp_path, capsys):
    lines = ["variant,llm_block.layer_index,seed,eval_top1", "first,0,0,0.5", "last,-1,0,0.7"]
    (tmp_path / "ablation.csv").write_text("\n".join(lines) + "\n")
    suggest(host, llm, data, layers=[2], input_scales=[1], **SETTINGS, sweep=tmp_path / "ablation.csv")
    printed = capsys.readouterr().out
    assert "Suggested by 48 images: --llm_block.layer_index 2 --llm_block.input_scale 1\n" in printed
    assert "the suggestion is number 1 of 2: 70.00, the best 70.00, the mean 60.00" in printed
    assert "recovery rate 1.00" in printed


def test_published_host(llm, data, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**sizes, image_size=8, patch_size=4)).save_pretrained(tmp_path / "vit")
    VIT.processor().save_pretrained(tmp_path / "vit")
    found = suggest(str(tmp_path / "vit"), llm, data, layers=[2], input_scales=[1], **SETTINGS)
    assert 0 < found.loc[1, "probe"] <= 1 and 0 < found.loc[1, "cka_to_host"] <= 1


def test_bad_input(llm, host, data, tmp_path):
    with pytest.raises(ValueError, match=r"has no layer 3; it has 3 layers, 0 to 2\."):
        suggest(host, llm, data, layers=[3])
    with pytest.raises(FileNotFoundError, match="none is neither a folder with a model nor a model on the Hub"):
        suggest(str(tmp_path / "none"), llm, data)
    POINT_BERT.build(None).save_pretrained(tmp_path / "clouds")
    with pytest.raises(ValueError, match="is a model for point-cloud-classification; suggest takes hosts whose only"):
        suggest(str(tmp_path / "clouds"), llm, data)
    VIT.build(LLMBlockConfig(llm_name_or_path=llm, layer_index=2)).save_pretrained(tmp_path / "block")
    with pytest.raises(ValueError, match="block has an LLM block; give a host that was trained without one"):
        suggest(str(tmp_path / "block"), llm, data)
    with pytest.raises(ValueError, match=r"output is 'table.txt'; give a \.csv or a \.json file"):
        suggest(host, llm, data, output="table.txt")
    one_class = tmp_path / "one" / "train" / "cat"
    write_cutouts(one_class, 3)
    with pytest.raises(ValueError, match="All examples have the same label"):
        suggest(host, llm, str(tmp_path / "one"))
    with pytest.raises(ValueError, match="input_scale is 'large'; give a number or balanced"):
        main(["suggest", host, llm, "--data", data, "--input_scale", "large"])
