# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Bytes and memory for one layer, measured by benchmarks/loading.py in a separate process."""

import importlib.util

import pytest
from paths import REPO


@pytest.fixture(scope="module")
def loading():
    spec = importlib.util.spec_from_file_location("benchmarks_loading", REPO / "benchmarks" / "loading.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(result):
    assert result["layer_bytes_in_file"] < result["bytes_read"] <= 1.05 * result["layer_bytes_in_file"]
    assert result["bytes_read_by_process"] < result["bytes_read"] + 200_000
    assert result["peak_above_baseline"] <= 2 * result["layer_bytes_in_model"]


def test_small(loading):
    # an eighth of LLaMA-7B's layer
    sizes = ["--hidden-size", "1536", "--intermediate-size", "3584", "--num-hidden-layers", "6", "--host-width", "64"]
    result = loading.main([*sizes, "--num-attention-heads", "12", "--layer-index", "3", "--layer-dtype", "bfloat16"])
    assert result["checkpoint_bytes"] > 6 * result["layer_bytes_in_file"]
    check(result)


@pytest.mark.slow
@pytest.mark.parametrize("layer_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shards", [2, 3])
def test_llama_7b(layer_dtype, shards, loading):
    result = loading.main(["--shards", str(shards), "--layer-dtype", layer_dtype])
    assert result["layer_parameters"] == 202_383_360
    assert result["checkpoint_bytes"] > 13e9
    check(result)
