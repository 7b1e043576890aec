# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Bytes and seconds for one layer of LLaMA-7B's sizes from a Hub server on this machine, by ranges and as whole files.

    python benchmarks/hub_loading.py     # needs 14 GB of disk and the folder tests/ beside this one

The checkpoint is made of holes, and the connection is the machine's own: seconds are those of reading, hashing and
writing, not of a network. "whole files" is what transformers downloads before it can build the language model.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from loading import BYTES, LLAMA_7B, write_sparse_llama
from transformers import LlamaConfig


sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

RANGES = """
import json, time
from hf_frozen_llm import LLMBlock, LLMBlockConfig
start = time.perf_counter()
config = LLMBlockConfig(llm_name_or_path="someone/llm", layer_index=-1, hidden_size=768, layer_dtype="float16")
block = LLMBlock(config)
print(json.dumps([time.perf_counter() - start, sum(p.numel() for p in block.llm_layers.parameters())]))
"""
WHOLE = """
import json, time
from huggingface_hub import snapshot_download
start = time.perf_counter()
snapshot_download("someone/llm")
print(json.dumps([time.perf_counter() - start, None]))
"""


def main():
    from hub_server import HubServer, blob_id

    with tempfile.TemporaryDirectory() as folder, HubServer() as hub:
        write_sparse_llama(Path(folder, "llm"), LlamaConfig(**LLAMA_7B, vocab_size=32000), shards=2)
        for file in Path(folder, "llm").iterdir():
            blob_id(file)  # hashed before the clock runs
        hub.add("someone/llm", Path(folder, "llm"))

        def measure(script, home):
            hub.clear()
            environment = hub.env(Path(folder, home), HF_HUB_DISABLE_PROGRESS_BARS="1")
            out = subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True)
            seconds, parameters = json.loads(out.stdout.splitlines()[-1])
            return hub.bytes_sent, len(hub.requests), seconds, parameters

        rows = {"ranges": measure(RANGES, "a"), "again, from the cache": measure(RANGES, "a")}
        layer = BYTES["F16"] * rows["ranges"][3]
        rows["whole files"] = measure(WHOLE, "b")

    print("| one layer of LLaMA-7B's sizes | MB sent | x the layer | requests | s |\n|---|---:|---:|---:|---:|")
    for name, (sent, requests, seconds, _) in rows.items():
        print(f"| {name} | {sent / 1e6:,.2f} | {sent / layer:.4f} | {requests} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
