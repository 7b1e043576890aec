# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Bytes read and peak memory for one layer of an LLM, on a checkpoint of LLaMA-7B's sizes that is made of holes.

    python benchmarks/loading.py                       # layer 31 in float32
    python benchmarks/loading.py --layer-dtype bfloat16
    python benchmarks/loading.py --naive               # the whole LLM through transformers: needs 27 GB of memory

Prints, for a fresh process, bytes read / bytes of the layer in the file, and peak memory above that of the imports /
bytes of the layer in the model.
"""

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path


LLAMA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
BYTES = {"F16": 2, "BF16": 2, "F32": 4}


def write_sparse_llama(folder, config, shards, dtype="F16"):
    """Writes a LLaMA checkpoint of zeros whose tensors are holes in the files."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = Path(folder)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {k: list(v.shape) for k, v in AutoModelForCausalLM.from_config(config).state_dict().items()}
    names, weight_map = list(shapes), {}
    per_shard = -(-len(names) // shards)
    for i in range(shards):
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        file_name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        for name in names[i * per_shard : (i + 1) * per_shard]:
            size = BYTES[dtype] * torch.Size(shapes[name]).numel()
            header[name] = {"dtype": dtype, "shape": shapes[name], "data_offsets": [offset, offset + size]}
            weight_map[name] = file_name
            offset += size
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        with open(folder / file_name, "wb") as f:
            f.write(struct.pack("<Q", len(encoded)) + encoded)
            f.truncate(8 + len(encoded) + offset)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def memory(name):
    """`VmRSS` (now) or `VmHWM` (peak) of this process in bytes."""
    with open("/proc/self/status") as f:
        return 1024 * int(next(line for line in f if line.startswith(f"{name}:")).split()[1])


def forget_peak():
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")


def bytes_read_by_process():
    with open("/proc/self/io") as f:
        return int(dict(line.split(": ") for line in f)["rchar"])


def measure(folder, layer_index, layer_dtype, hidden_size):
    """Build one block from the checkpoint in `folder`, in a separate process."""
    from transformers import LlamaConfig

    from hf_frozen_llm import LLMBlock, LLMBlockConfig

    # A tiny block first, so that lazy imports do not count.
    with tempfile.TemporaryDirectory() as tiny:
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        write_sparse_llama(tiny, LlamaConfig(vocab_size=8, **sizes), shards=1)
        LLMBlock(LLMBlockConfig(llm_name_or_path=tiny, hidden_size=8))
    config = LLMBlockConfig(
        llm_name_or_path=str(folder), layer_index=layer_index, layer_dtype=layer_dtype, hidden_size=hidden_size
    )
    forget_peak()
    baseline, read_before, start = memory("VmRSS"), bytes_read_by_process(), time.perf_counter()
    block = LLMBlock(config)
    seconds = time.perf_counter() - start
    parameters = list(block.llm_layers.parameters())
    return {
        "seconds": seconds,
        "bytes_read": block.bytes_read,
        "bytes_read_by_process": bytes_read_by_process() - read_before,
        "layer_parameters": sum(p.numel() for p in parameters),
        "layer_bytes_in_model": sum(p.numel() * p.element_size() for p in parameters),
        "peak_above_baseline": memory("VmHWM") - baseline,
    }


def measure_naive(folder, layer_dtype):
    """Load the whole LLM by transformers, in a separate process, and take one layer out of it."""
    import torch
    from transformers import AutoModel

    forget_peak()
    baseline, start = memory("VmRSS"), time.perf_counter()
    layer = AutoModel.from_pretrained(folder, dtype=getattr(torch, layer_dtype or "float32")).layers[-1]
    return {
        "seconds": time.perf_counter() - start,
        "layer_bytes_in_model": sum(p.numel() * p.element_size() for p in layer.parameters()),
        "peak_above_baseline": memory("VmHWM") - baseline,
    }


def in_a_new_process(*arguments):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in LLAMA_7B.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--vocab-size", type=int, default=32000)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--dtype", choices=BYTES, default="F16", help="of the checkpoint's tensors")
    parser.add_argument("--layer-index", type=int, default=-1)
    parser.add_argument("--layer-dtype", choices=["float32", "bfloat16", "float16"], default=None)
    parser.add_argument("--host-width", type=int, default=768)
    parser.add_argument("--naive", action="store_true", help="also load the whole LLM through transformers")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)

    if args.measure:
        if args.naive:
            result = measure_naive(args.measure, args.layer_dtype)
        else:
            result = measure(args.measure, args.layer_index, args.layer_dtype, args.host_width)
        print(json.dumps(result))
        return result

    from transformers import LlamaConfig

    sizes = {name: getattr(args, name) for name in (*LLAMA_7B, "vocab_size")}
    with tempfile.TemporaryDirectory() as folder:
        write_sparse_llama(folder, LlamaConfig(**sizes), args.shards, args.dtype)
        total = sum(p.stat().st_size for p in Path(folder).glob("*.safetensors"))
        options = ["--layer-index", args.layer_index, "--host-width", args.host_width]
        if args.layer_dtype:
            options += ["--layer-dtype", args.layer_dtype]
        result = in_a_new_process("--measure", folder, *options)
        naive = in_a_new_process("--measure", folder, "--naive", *options) if args.naive else None
    layer_bytes_in_file = BYTES[args.dtype] * result["layer_parameters"]
    result["checkpoint_bytes"] = total
    result["layer_bytes_in_file"] = layer_bytes_in_file
    result["bytes_ratio"] = result["bytes_read"] / layer_bytes_in_file
    result["peak_ratio"] = result["peak_above_baseline"] / result["layer_bytes_in_model"]
    megabyte = 1e6
    print(
        f"checkpoint {total / megabyte:,.0f} MB in {args.shards} shards, "
        f"one layer {layer_bytes_in_file / megabyte:,.1f} MB"
    )
    print(
        f"read       {result['bytes_read'] / megabyte:,.1f} MB = {result['bytes_ratio']:.4f} x the layer in the file"
    )
    print(
        f"peak       {result['peak_above_baseline'] / megabyte:,.1f} MB above the imports = "
        f"{result['peak_ratio']:.3f} x the layer in the model ({result['layer_bytes_in_model'] / megabyte:,.1f} MB)"
    )
    print(f"time       {result['seconds']:.1f} s")
    if naive:
        ratio = naive["peak_above_baseline"] / naive["layer_bytes_in_model"]
        print(
            f"whole LLM  peak {naive['peak_above_baseline'] / megabyte:,.1f} MB = {ratio:.1f} x the layer, "
            f"{naive['seconds']:.1f} s"
        )
    return result


if __name__ == "__main__":
    main()
