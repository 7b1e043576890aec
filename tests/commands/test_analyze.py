# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""`hf-frozen-llm analyze`: tables and figures of several models, and what it refuses."""

import numpy as np
import pandas as pd
import pytest
import torch
from llm_files import write_llm
from PIL import Image
from tiny_llms import tiny_config, tiny_llm
from vision_cases import POINT_BERT, VIDEOMAE, VIT

from hf_frozen_llm import LLMBlockConfig, analyze
from hf_frozen_llm.analysis import find_masked_images, magnitude, mask_of_tokens, min_max, token_activations
from hf_frozen_llm.analysis import oracle_iou as oracle
from hf_frozen_llm.analysis.scores import ious
from hf_frozen_llm.cli import main
from hf_frozen_llm.commands.ablation_report import bootstrap_interval
from hf_frozen_llm.commands.analyze import describe_baselines


TAPS = ["host", "input_projection", "attention", "feed_forward", "final_norm", "output_projection"]
FIGURES = {f"{name}.{kind}" for kind in ("png", "svg") for name in ("overlays_magnitude", "overlays_frequency")}
FIGURES |= {f"{name}.{kind}" for kind in ("png", "svg") for name in ("scores", "tokens", "curves")}


def save(case, folder, llm_block=None, **fields):
    model = case.build(llm_block, **fields)
    model.save_pretrained(folder)
    case.processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A ViT of 4 x 4 patches without a block, with a layer, and with a control."""
    folder = tmp_path_factory.mktemp("runs")
    llm = str(write_llm(tiny_llm(tiny_config("llama")), folder / "llama"))
    blocks = {"plain": None, "llm": {}, "identity": {"kind": "identity"}}
    for name, fields in blocks.items():
        block = None if fields is None else LLMBlockConfig(llm_name_or_path=llm, layer_index=1, **fields)
        save(VIT, folder / name, block, patch_size=2)
    return folder


def write_data(folder, masks, size=(16, 16)):
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number, mask in enumerate(masks):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    return folder


def square(left, top, side, size=(16, 16)):
    mask = np.zeros(size, np.uint8)
    mask[top : top + side, left : left + side] = 255
    return mask


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five images with an object, one without, and one that is all object."""
    masks = [square(4 * i % 12, 4 * i // 3 % 12, 8) for i in range(5)]
    return write_data(tmp_path_factory.mktemp("data"), [*masks, square(1, 1, 1), square(0, 0, 16)])


@pytest.fixture(scope="module")
def analysed(runs, data, tmp_path_factory):
    output = tmp_path_factory.mktemp("output") / "analysis"
    folders = [str(runs / name) for name in ("plain", "llm", "identity")]
    flags = ["--data", str(data), "--output", str(output), "--batch_size", "2", "--curve_images", "2"]
    main(["analyze", *folders, *flags])
    return output


def test_table(analysed, runs, data):
    table = pd.read_csv(analysed / "analysis.csv", keep_default_na=False, na_values=["nan", ""])
    table[["tap", "measure"]] = table[["tap", "measure"]].fillna("")
    taps = {model: list(dict.fromkeys(rows["tap"])) for model, rows in table.groupby("model", sort=False)}
    assert taps == {
        "random map": [""],
        "map of the centre": [""],
        "plain": ["host"],
        "llm": TAPS,
        "identity": ["host", "input_projection", "final_norm", "output_projection"],
    }
    of_llm = table[table["model"] == "llm"].set_index(["tap", "measure", "score"])
    assert set(of_llm.loc["feed_forward"].index) == {
        *(
            (measure, score)
            for measure in ("magnitude", "frequency")
            for score in ("miou", "miou_oracle", "pointing_game", "auroc", "deletion", "insertion")
        ),
        *((measure, f"filtering_ratio{of}") for measure in ("magnitude", "frequency") for of in ("", "_of_layer")),
        *(("", score) for score in ("effective_rank", "token_similarity", "update_ratio", "cka_to_host")),
    }
    assert ("attention", "attention", "pointing_game") in of_llm.index
    plain = table[table["model"] == "plain"].set_index(["tap", "measure", "score"])
    assert ("host", "attention", "auroc") in plain.index and ("host", "", "gradient_coherence") in plain.index
    has_curve = table["score"].isin(["deletion", "insertion"])
    assert (table["images"].dropna() == np.where(has_curve, 2, 5)[table["images"].notna()]).all()
    assert of_llm.loc[("host", "", "cka_to_host"), "value"] == pytest.approx(1)
    assert ((table["low"] <= table["value"] + 1e-9) & (table["value"] <= table["high"] + 1e-9))[
        table["low"].notna()
    ].all()
    # One number by hand: the paper's score of the magnitudes after the feed-forward.
    model, processor = VIT.loader.from_pretrained(runs / "llm").eval(), VIT.processor()
    images = find_masked_images(data)[:5]
    pixel_values = processor([image.read()[0] for image in images], return_tensors="pt")["pixel_values"]
    tokens = token_activations(model, {"pixel_values": pixel_values}).states["feed_forward"][:, 1:]
    masks = np.stack([mask_of_tokens(image.read()[1], processor, (4, 4)).flatten() for image in images])
    scores = oracle(ious(min_max(magnitude(tokens)).numpy(), masks))
    row = of_llm.loc[("feed_forward", "magnitude", "miou_oracle")]
    assert row["value"] == pytest.approx(scores.mean(), abs=1e-6)
    assert (row["low"], row["high"]) == pytest.approx(bootstrap_interval(scores), abs=1e-6)
    update = of_llm.loc[("feed_forward", "", "update_ratio"), "value"]
    ratios = [
        model.llm_block.update_ratio(token_activations(model, {"pixel_values": p[None]}, at=["host"]).states["host"])
        for p in pixel_values
    ]
    assert update == pytest.approx(np.mean(ratios), rel=1e-4)


def test_pages_and_figures(analysed, capsys):
    assert {file.name for file in analysed.iterdir()} == {"analysis.csv", "analysis.md", *FIGURES}
    text = (analysed / "analysis.md").read_text()
    assert "5 images of" in text and "; 1 image without object skipped; 1 image without background skipped" in text
    assert "| llm | feed forward |" in text and "## Attention" in text and "random map" in text
    svg = (analysed / "overlays_magnitude.svg").read_text()
    assert all(f"<!-- {name} -->" in svg for name in ("plain", "llm", "identity", "image", "mask", "host"))
    pixels = np.asarray(Image.open(analysed / "overlays_magnitude.png").convert("RGB")).astype(int)
    # Cividis is blue at its dark end and yellow at its bright one.
    assert (pixels[..., 2] - pixels[..., 0] > 30).any() and (pixels[..., 0] - pixels[..., 2] > 60).any()


def test_choices(runs, data, tmp_path):
    table = analyze([runs / "llm"], data, tmp_path / "few", at=["attention"], max_images=3, num_curves=0)
    assert set(table["tap"]) == {"", "attention", "feed_forward", "host"} - {"host"} or "attention" in set(
        table["tap"]
    )
    assert not set(table["score"]) & {"deletion", "insertion", "gradient_coherence"}
    assert table["images"].max() == 2  # of the first, the fourth and the last one, which has no background
    assert not (tmp_path / "few" / "curves.png").exists()


def test_baselines():
    masks = np.zeros((3, 5, 5))
    masks[:, 2, 2] = 1
    rows = {(row[0], row[3]): row[4] for row in describe_baselines(masks)}
    assert rows["map of the centre", "pointing_game"] == rows["map of the centre", "auroc"] == 1
    assert rows["random map", "auroc"] < 1


def test_bad_input(runs, data, tmp_path):
    output = tmp_path / "output"
    with pytest.raises(ValueError, match=r"No model has the tap point values; there are host, input_projection, att"):
        analyze([runs / "llm", runs / "plain"], data, output, at=["values"])
    with pytest.raises(ValueError, match=r"No model has the tap point attention; there are host. Models without an L"):
        analyze([runs / "plain"], data, output, at=["attention"])
    with pytest.raises(FileNotFoundError, match="none: there is no such folder"):
        analyze([runs / "none"], data, output)
    with pytest.raises(ValueError, match="There is no model to analyse"):
        analyze([], data, output)
    with pytest.raises(ValueError, match="llm: given twice"):
        analyze([runs / "llm", runs / "llm"], data, output)
    with pytest.raises(FileNotFoundError, match="output is"):
        analyze([runs / "llm"], data, tmp_path / "no" / "output")
    clips, clouds = save(VIDEOMAE, tmp_path / "clips"), save(POINT_BERT, tmp_path / "clouds")
    with pytest.raises(ValueError, match=r"The models are of several tasks: image-classification .*llm.*clips"):
        analyze([runs / "llm", clips], data, output)
    with pytest.raises(ValueError, match=r"clouds is a model for point-cloud-classification; analyze takes models wh"):
        analyze([clouds], data, output)
    empty = write_data(tmp_path / "empty", [square(0, 0, 1), square(0, 0, 16)])
    with pytest.raises(ValueError, match=r"no image has both an object and background .* of 2 images, 1 have no obj"):
        analyze([runs / "llm"], empty, output)
    other = write_data(tmp_path / "other", [square(0, 0, 8, (16, 12))])
    with pytest.raises(ValueError, match="has 12 x 16 pixels, and its image"):
        analyze([runs / "llm"], other, output)
    assert not output.exists()


def test_half_precision(runs, data, tmp_path):
    model = VIT.loader.from_pretrained(runs / "llm", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    VIT.processor().save_pretrained(tmp_path / "half")
    table = analyze([tmp_path / "half"], data, tmp_path / "output", num_curves=2)
    assert np.isfinite(table["value"]).all()
