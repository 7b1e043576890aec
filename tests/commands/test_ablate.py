# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm ablate`: the grid, its runs in separate processes, and the written files."""

import pandas as pd
import pytest
from paths import REPO
from PIL import Image
from tiny_runs import TINY, write_llama, write_parquet

from hf_frozen_llm import LLMBlockConfig, ViTWithLLMBlockConfig
from hf_frozen_llm.cli import main
from hf_frozen_llm.commands.ablate import ablate, make_grid, read_variants
from hf_frozen_llm.flops import count_flops


RECIPE = "quickstart/vit_tiny_cifar10_smollm2.yaml"


@pytest.fixture
def flags(tmp_path):
    data = write_parquet(tmp_path / "data", image="img", label="label")
    llm = write_llama(tmp_path / "llm")
    steps = ["--max_steps", "2", "--eval_steps", "2", "--save_steps", "2"]
    return [*TINY, "--dataset_name", data, "--llm_block.llm_name_or_path", llm, *steps]


def test_grid():
    assert make_grid(["host.depths=[1,1],[2,2]"], None) == {
        "host.depths=[1,1]": {"host.depths": "[1,1]"},
        "host.depths=[2,2]": {"host.depths": "[2,2]"},
    }
    grid = make_grid(["llm_block.layer_index=14,-1", "learning_rate=1e-3,1e-4"], None)
    assert list(grid) == [
        "llm_block.layer_index=14, learning_rate=1e-3",
        "llm_block.layer_index=14, learning_rate=1e-4",
        "llm_block.layer_index=-1, learning_rate=1e-3",
        "llm_block.layer_index=-1, learning_rate=1e-4",
    ]
    controls = read_variants("controls.yaml")
    assert controls["plain host"] == {"llm_block": "null"} and controls["MLP"] == {"llm_block.kind": '"mlp"'}
    assert len(make_grid(["learning_rate=1e-3,1e-4"], "controls.yaml")) == 2 * len(controls)


def test_runs_and_report(flags, tmp_path, capsys):
    """Finished runs are not repeated; a failing run does not stop the others."""
    variants = tmp_path / "variants.yaml"
    variants.write_text("lost: {llm_block.llm_name_or_path: ./nowhere}\nMLP: {llm_block.kind: mlp}\n")
    command = ["ablate", RECIPE, "--variants", str(variants), "--seeds", "2"]
    main([*command, "--output_dir", str(tmp_path / "out"), *flags])
    assert "2 of 4 runs failed" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "out" / "ablation.csv")
    assert list(table["variant"]) == ["MLP", "MLP"] and list(table["seed"]) == [0, 1]
    assert set(table["llm_block.kind"]) == {'"mlp"'}
    assert table["eval_top1"].between(0, 1).all() and (table["frozen_parameters"] == 0).all()
    report = (tmp_path / "out" / "ablation.md").read_text()
    assert report.count("±") == 2 and "| MLP |" in report
    assert Image.open(tmp_path / "out" / "ablation.png").size[0] > 1000
    assert "nowhere" in (tmp_path / "out" / "runs" / "lost" / "seed0" / "log.txt").read_text()

    finished = tmp_path / "out" / "runs" / "MLP" / "seed0" / "results.json"
    before = finished.stat().st_mtime_ns
    variants.write_text("MLP: {llm_block.kind: mlp}\n")
    assert ablate(RECIPE, (), variants, 1, tmp_path / "out", flags)
    assert finished.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"seed0 holds runs of another command, .* Choose another output_dir"):
        ablate(RECIPE, (), variants, 1, tmp_path / "out", [*flags, "--learning_rate", "1"])


def test_flops():
    """FLOPs of the smallest model first; benchmarks/block.py also counts a ViT-T with a LLaMA-7B layer."""
    llama = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
    sizes = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}

    def count(lora=None, **fields):
        block = LLMBlockConfig(llm_config={**llama, "num_hidden_layers": 1}, **fields) if fields else None
        return count_flops(ViTWithLLMBlockConfig(**sizes, llm_block=block, num_labels=1000), 64, lora=lora)

    counts = [count(), count(kind="mlp"), count(weights="random"), count(weights="random", trainable=True)]
    assert counts == sorted(counts)
    with_lora = count({"r": 8}, weights="random")
    assert with_lora[0] == counts[2][0] and with_lora[1] > counts[2][1], "merged in evaluation"
    assert counts[2][0] / 1e9 < 3.1 and counts[2][1] / 1e9 < 8.8
    assert count(weights="random", attention="causal")[0] > counts[2][0], "as the layer itself computes it"


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (["learning_rat=1"], "nearest valid key is `learning_rate`"),
        (["llm_block.kind=vgg"], "`llm_block.kind` must be"),
        (["llm_block.kind=mlp", "llm_block.rotary=true"], "kind='mlp' has no LLM layer, so rotary cannot be set"),
        (["learning_rate"], "--over takes FIELD=a,b,c, got 'learning_rate'"),
        ([], "Nothing to vary"),
        (["eval_split=null"], "no eval_split"),
    ],
)
def test_bad_grids_are_refused_before_anything_runs(over, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ablate(RECIPE, over, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_variants_that_are_not_there():
    with pytest.raises(
        FileNotFoundError, match=r"no file of variants nowhere\.yaml\. The package has: controls\.yaml"
    ):
        read_variants("nowhere.yaml")
    assert (REPO / "recipes" / "variants" / "controls.yaml").is_file()
