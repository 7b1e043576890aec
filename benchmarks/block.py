# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""What a layer of LLaMA-7B's sizes adds to a vision encoder: our block beside the paper's, on the same weights.

    python benchmarks/block.py --flops                              # counted on the meta device: exact, no weights
    python benchmarks/block.py --cases ViT-S --batch_sizes 32       # wall-clock and peak memory of some
    python benchmarks/block.py --output benchmarks/results/block    # of all: a table, a CSV file and a bar chart

The naive block is the paper's, transcribed: all tokens, separate projections, an explicit softmax in float32. The ViTs
are measured whole, with a head that uses the CLS token; of the point cloud and the video encoder, whose heads use
all tokens, only the block is measured. On a GPU everything is bfloat16, and no other job runs; weights are random.
"""

import argparse
import csv
import ctypes
import platform
import time
from pathlib import Path

import psutil
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hf_frozen_llm import LLMBlock, LLMBlockConfig, ViTWithLLMBlockConfig, ViTWithLLMBlockForImageClassification


LLAMA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 1,
    "num_attention_heads": 32,
    "vocab_size": 8,
}
# width of the tokens, and how many there are in an image, a cloud or a clip
CASES = {
    "ViT-T": (192, 197),
    "ViT-S": (384, 197),
    "ViT-B": (768, 197),
    "Point-BERT": (384, 65),
    "video ViT-S": (384, 1568),
}
PLAIN, NAIVE, OURS = "plain host", "naive block", "our block"


class NaiveBlock(nn.Module):
    """The block of the released code, on the weights of ours."""

    def __init__(self, block):
        super().__init__()
        self.block, self.heads = block, LLAMA_7B["num_attention_heads"]

    def forward(self, hidden_states):
        block, layer = self.block, self.block.llm_layers[0]
        hidden_states = block.input_projection(hidden_states)
        normed, attention = layer.input_layernorm(hidden_states), layer.self_attn
        query, key, value = (
            projection(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        weights = (query @ key.mT * attention.scaling).float().softmax(-1).to(value.dtype)
        hidden_states = hidden_states + attention.o_proj((weights @ value).transpose(1, 2).flatten(2))
        hidden_states = hidden_states + layer.mlp(layer.post_attention_layernorm(hidden_states))
        if block.final_norm is not None:
            hidden_states = block.final_norm(hidden_states)
        return block.output_projection(hidden_states)


class Case:
    """A model with the block, and how it is run with the naive one or none."""

    def __init__(self, name, device, dtype=torch.float32, final_norm="unit"):
        self.name, (self.width, self.tokens) = name, CASES[name]
        block = LLMBlockConfig(llm_config=LLAMA_7B, weights="random", hidden_size=self.width, final_norm=final_norm)
        self.is_image = name in ("ViT-T", "ViT-S", "ViT-B")
        self.kinds = (PLAIN, NAIVE, OURS) if self.is_image else (NAIVE, OURS)
        with torch.device(device):
            if self.is_image:
                sizes = {"num_attention_heads": self.width // 64, "intermediate_size": 4 * self.width}
                config = ViTWithLLMBlockConfig(hidden_size=self.width, **sizes, num_labels=1000, llm_block=block)
                self.model = ViTWithLLMBlockForImageClassification(config)
            else:
                self.model = LLMBlock(block)
        self.model.to(dtype)
        self.naive = NaiveBlock(self.model.llm_block if self.is_image else self.model)
        self.device, self.dtype = device, dtype

    def inputs(self, batch):
        shape = (batch, 3, 224, 224) if self.is_image else (batch, self.tokens, self.width)
        make = torch.empty if self.device == "meta" else torch.randn
        # Tokens have a gradient, as those of a host do.
        return make(shape, device=self.device, dtype=self.dtype, requires_grad=not self.is_image)

    def output(self, kind, inputs):
        if kind == OURS:
            return self.model(inputs).logits if self.is_image else self.model(inputs)
        if not self.is_image:
            return self.naive(inputs)
        hidden_states = self.model.vit.embeddings(inputs)
        for layer in self.model.vit.layers:
            hidden_states = layer(hidden_states)
        if kind == NAIVE:
            hidden_states = self.naive(hidden_states)
        return self.model.classifier(self.model.vit.layernorm(hidden_states)[:, 0])

    def infer(self, kind, inputs):
        with torch.inference_mode():
            self.output(kind, inputs)

    def step(self, kind, inputs):
        self.output(kind, inputs).sum().backward()


def count(function, *args):
    with FlopCounterMode(display=False) as counter:
        function(*args)
    return counter.get_total_flops()


def flops(case, kind, batch):
    """Of a forward without gradients and of a training step, for one input."""
    case.model.train()
    forward = torch.no_grad()(case.output)
    return tuple(count(run, kind, case.inputs(batch)) / batch for run in (forward, case.step))


def print_flops(batch):
    print(f"GFLOP per input, forward / training step, batch {batch}:")
    for name in CASES:
        case = Case(name, "meta")
        cells = []
        for kind in case.kinds:
            forward, step = flops(case, kind, batch)
            cells.append(f"{kind} {forward / 1e9:.2f}/{step / 1e9:.2f}")
        print(f"  {name}: {', '.join(cells)}")
    print(f"Our block / naive block where all of {CASES['ViT-S'][1]} tokens are read, width 384:")
    for final_norm in ("unit", "none"):
        case = Case("ViT-S", "meta", final_norm=final_norm)
        block, tokens = case.model.llm_block, torch.empty(batch, 197, 384, device="meta", requires_grad=True)
        forward = count(block, tokens) / count(case.naive, tokens)
        step = count(lambda t: block(t).sum().backward(), tokens)  # noqa: B023
        step /= count(lambda t: case.naive(t).sum().backward(), tokens)  # noqa: B023
        print(f"  final_norm {final_norm!r}: forward {forward:.3f}, training step {step:.3f}")


def saved_bytes(function, *args):
    """Bytes of distinct storages that autograd keeps for the backward pass, without the parameters."""
    kept = {}

    def pack(tensor):
        if not isinstance(tensor, nn.Parameter) and not tensor.is_leaf:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # the tensor itself would be a cycle with its node

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(*args)
    return sum(kept.values())


def needed_bytes(case, batch):
    """Roughly what the naive block's training step takes, most of it scores and the feed-forward's activations."""
    heads, width, inner = LLAMA_7B["num_attention_heads"], LLAMA_7B["hidden_size"], LLAMA_7B["intermediate_size"]
    values = batch * case.tokens * (4 * heads * case.tokens + 12 * width + 5 * inner)
    return values * case.dtype.itemsize + 2 * sum(p.nbytes for p in case.model.parameters())


def peak_bytes(device):
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status names no VmHWM; peak memory on the CPU is measured on Linux.")


def forget_peak(device):
    """Starts the peak anew; on the CPU, from what is in use: memory that was freed may still be the process's."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def measure(run, kinds, inputs, device, seconds):
    """
    For each kind the shortest time, and the highest peak of memory above what the process held before. The kinds take
    turns, so that what else the machine does meets all of them.
    """
    times, memory = {kind: [] for kind in kinds}, dict.fromkeys(kinds, 0)
    forget_peak(device)
    held, started = peak_bytes(device), time.perf_counter()
    while not times[kinds[0]] or time.perf_counter() - started < seconds:
        for kind in kinds:
            forget_peak(device)
            synchronize(device)
            start = time.perf_counter()
            run(kind, inputs)
            synchronize(device)
            times[kind].append(time.perf_counter() - start)
            memory[kind] = max(memory[kind], peak_bytes(device) - held)
    return {kind: min(times[kind]) for kind in kinds}, memory


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def matmul_ceiling(device, dtype):
    """FLOP/s of a large product of matrices: what the machine can do at best."""
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times, _ = measure(lambda kind, inputs: a @ b, ("product",), None, device, seconds=3)
    return 2 * size**3 / times["product"]


def measure_case(case, batch, seconds):
    """One row for each kind, with the ratios to the naive block."""
    meta, rows = Case(case.name, "meta"), {}
    inputs = case.inputs(batch)
    case.step(OURS, inputs)  # so that gradients are there already, and libraries are loaded
    for mode, run in (("inference", case.infer), ("step", case.step)):
        case.model.train(mode == "step")
        meta.model.train(mode == "step")
        times, memory = measure(run, case.kinds, inputs, case.device, seconds)
        for kind in case.kinds:
            total = count(meta.output if mode == "inference" else meta.step, kind, meta.inputs(batch))
            rows.setdefault(kind, {"case": case.name, "batch": batch, "kind": kind}).update(
                {
                    f"{mode}_ms": 1e3 * times[kind],
                    f"{mode}_speedup": times[NAIVE] / times[kind],
                    f"{mode}_peak_mb": memory[kind] / 1e6,
                    f"{mode}_gflop": total / 1e9,
                    f"{mode}_tflop_per_s": total / times[kind] / 1e12,
                }
            )
    for kind in case.kinds:
        rows[kind]["kept_for_backward_mb"] = saved_bytes(case.output, kind, inputs) / 1e6
    return list(rows.values())


def table(rows):
    lines = [
        "| case | batch | | inference ms | naive / this | peak MB | TFLOP/s | step ms | naive / this | peak MB | "
        "TFLOP/s | kept for backward MB |",
        "|---|---|---|" + "---:|" * 9,
    ]
    for row in rows:
        cells = [row["case"], str(row["batch"]), row["kind"]]
        for mode in ("inference", "step"):
            cells += [
                f"{row[f'{mode}_ms']:,.1f}",
                f"{row[f'{mode}_speedup']:.1f}",
                f"{row[f'{mode}_peak_mb']:,.0f}",
                f"{row[f'{mode}_tflop_per_s']:.3g}",
            ]
        lines.append("| " + " | ".join([*cells, f"{row['kept_for_backward_mb']:,.1f}"]) + " |")
    return "\n".join(lines)


def draw(path, rows, title):
    """How long one input takes, for each case and batch size; beside our bars, how many times faster they are."""
    from matplotlib.ticker import LogLocator, NullFormatter

    from hf_frozen_llm.plotting import new_figure

    groups = list(dict.fromkeys((row["case"], row["batch"]) for row in rows))
    figure = new_figure(11, 1.4 + 0.42 * len(groups))
    figure.suptitle(title, fontsize=12)
    colors = {PLAIN: "#b0b0b0", NAIVE: "#dd8452", OURS: "#4c72b0"}
    for axis, mode, name in zip(
        figure.subplots(1, 2, sharey=True), ("inference", "step"), ("inference", "training step")
    ):
        for offset, kind in zip((-0.27, 0, 0.27), colors):
            of_kind = {(row["case"], row["batch"]): row for row in rows if row["kind"] == kind}
            places = [i + offset for i, group in enumerate(groups) if group in of_kind]
            values = [of_kind[group][f"{mode}_ms"] / group[1] for group in groups if group in of_kind]
            axis.barh(places, values, height=0.25, color=colors[kind], label=kind)
            if kind == OURS:
                for place, value, group in zip(places, values, groups):
                    axis.text(value, place, f" {of_kind[group][f'{mode}_speedup']:.1f} ×", va="center", fontsize=8)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.xaxis.set_major_formatter("{x:,g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(f"{name}: milliseconds for one input")
        axis.set_yticks(range(len(groups)), [f"{case}, batch {batch}" for case, batch in groups])
        axis.grid(axis="x", alpha=0.3)
        axis.margins(x=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    axis.invert_yaxis()
    axis.legend(frameon=False, fontsize=9, loc="upper right")
    figure.tight_layout()
    figure.savefig(path)


def machine(device):
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} threads of {platform.machine()}"


def run(names, batch_sizes, device, seconds, output):
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    ceiling = matmul_ceiling(device, dtype) / 1e12
    title = f"{machine(device)}, {str(dtype).removeprefix('torch.')}, torch {torch.__version__}"
    print(f"{title}; a large matrix product reaches {ceiling:.3g} TFLOP/s", flush=True)
    rows, left_out = [], []
    memory = (
        torch.cuda.get_device_properties(0).total_memory if device == "cuda" else psutil.virtual_memory().available
    )
    for name in names:
        case = Case(name, device, dtype)
        for batch in batch_sizes:
            if (needed := needed_bytes(case, batch)) > 0.9 * memory:
                left_out.append(f"{name}, batch {batch}: the naive block takes about {needed / 1e9:.0f} GB")
                print(f"left out: {left_out[-1]}", flush=True)
                continue
            rows += measure_case(case, batch, seconds)
            print(table(rows[-len(case.kinds) :]), flush=True)
        del case
    if output is None:
        return
    output.mkdir(parents=True, exist_ok=True)
    with open(output / f"{device}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(output / f"{device}.png", rows, f"A LLaMA-7B layer in a vision encoder ({title})")
    (output / f"{device}.md").write_text(
        f"# The LLM block beside the paper's\n\n"
        f"`python benchmarks/block.py --cases {' '.join(repr(n) if ' ' in n else n for n in names)} --batch_sizes "
        f"{' '.join(map(str, batch_sizes))} --output benchmarks/results/block` on {title}. A large matrix product "
        f"reaches {ceiling:.3g} TFLOP/s. Peak memory is what a run takes beyond the weights and inputs.\n\n"
        + f"{table(rows)}\n"
        + "".join(f"\nLeft out: {reason}.\n" for reason in left_out),
        encoding="utf-8",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flops", action="store_true", help="count operations only")
    parser.add_argument("--flops_batch", type=int, default=64)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seconds", type=float, default=4, help="to repeat a measurement for")
    parser.add_argument("--output", type=Path, help="folder for the table, the CSV file and the bar chart")
    args = parser.parse_args()
    print_flops(args.flops_batch)
    if not args.flops:
        run(args.cases, args.batch_sizes, args.device, args.seconds, args.output)
