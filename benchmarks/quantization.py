# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
The frozen layer in fewer bits: its error on real weights, its bytes, and the latency of one image on a CPU.

    python benchmarks/quantization.py --llm SmolLM2-135M-Instruct-layers [--output FILE.md]

Error: ‖quantised layer(h) - layer(h)‖ / ‖layer(h) - h‖, and relative to ‖layer(h)‖, for standard-normal tokens of a
host of width 384 through the block's input projection at the balanced scale, in float32. Latency: a ViT-S (224 px,
batch 1, CLS token) with a random layer of LLaMA-7B's sizes, by turns with the plain ViT-S: the least CPU time of all
rounds, on one thread unless --threads says otherwise, as other work on the machine only adds to it.
"""

import argparse
import platform
import time
from pathlib import Path

import torch

from hf_frozen_llm import LLMBlock, LLMBlockConfig, ViTWithLLMBlockConfig, ViTWithLLMBlockForImageClassification


LLAMA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 1,
    "num_attention_heads": 32,
    "vocab_size": 8,
}
VIT_S = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
VARIANTS = {
    "float32": {},
    "bfloat16": {"layer_dtype": "bfloat16"},
    "int8, float32": {"quantization": "int8"},
    "int8, bfloat16": {"quantization": "int8", "layer_dtype": "bfloat16"},
    "int4, float32": {"quantization": "int4"},
    "int4, bfloat16": {"quantization": "int4", "layer_dtype": "bfloat16"},
}


@torch.no_grad()
def errors(llm, layer_index, fields):
    """Return the error relative to the layer's update and to its output."""
    torch.manual_seed(0)
    config = {"llm_name_or_path": llm, "layer_index": layer_index, "hidden_size": 384, "input_scale": "balanced"}
    exact = LLMBlock(LLMBlockConfig(**config))
    block = LLMBlock(LLMBlockConfig(**{**config, "input_scale": exact.config.input_scale}, **fields))
    h = exact.config.input_scale * exact.input_projection(torch.randn(1, 197, 384))
    expected = exact._caller.call(0, exact.llm_layers[0], h, None)
    actual = block._caller.call(0, block.llm_layers[0], h.to(block._dtype_of_layers()), None).float()
    error = (actual - expected).norm()
    return (error / (expected - h).norm()).item(), (error / expected.norm()).item()


def build(fields):
    torch.manual_seed(0)
    block = None if fields is None else LLMBlockConfig(llm_config=LLAMA_7B, weights="random", **fields)
    return ViTWithLLMBlockForImageClassification(ViTWithLLMBlockConfig(**VIT_S, llm_block=block)).eval()


def milliseconds(model, image):
    start = time.process_time()
    model(pixel_values=image)
    return 1e3 * (time.process_time() - start) / torch.get_num_threads()


@torch.inference_mode()
def measure_latency(fields, rounds):
    """Return the layer's bytes, and the least milliseconds with it and of the plain model in the same rounds."""
    plain, model, image = build(None), build(fields), torch.randn(1, 3, 224, 224)
    size = sum(tensor.nbytes for tensor in model.llm_block._named_llm_tensors().values())
    times = [(milliseconds(model, image), milliseconds(plain, image)) for _ in range(rounds + 2)][2:]
    return size, *map(min, zip(*times))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", required=True, help="a language model whose layer's error is measured")
    parser.add_argument("--layer_index", type=int, default=-1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    name = Path(args.llm).name
    lines = [
        "# The frozen layer in fewer bits",
        "",
        f"`python benchmarks/quantization.py --llm {name} --threads {args.threads} --rounds {args.rounds}` on "
        f"{platform.machine()} ({torch.backends.cpu.get_cpu_capability()}), torch {torch.__version__}. Error of layer "
        f"{args.layer_index} of {name}; bytes and latency of a layer of LLaMA-7B's sizes in a ViT-S, one image, the "
        "CLS token, in CPU time. After a comma: `layer_dtype`. The ratio is to the plain ViT-S of the same rounds.",
        "",
        "| layer | error / update | error / output | bytes | ms | plain ViT-S, ms | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for variant, fields in VARIANTS.items():
        of_update, of_output = errors(args.llm, args.layer_index, fields)
        size, time_with, time_plain = measure_latency(fields, args.rounds)
        numbers = f"{time_with:.1f} | {time_plain:.1f} | {time_with / time_plain:.2f}"
        lines.append(f"| {variant} | {of_update:.2%} | {of_output:.2%} | {size:,} | {numbers} |")
        print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    if args.output is None:
        print(text)
    else:
        args.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
