# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Maps of inputs that are no images, and the pictures that they are drawn on."""

import numpy as np
import pytest
import torch
from llm_files import write_llm
from matplotlib import colormaps
from matplotlib.colors import to_hex
from meter_cases import METER_QUESTIONS
from motion_cases import FORECAST_MAE, VECTORNET
from PIL import Image
from sqa3d_cases import SQA3D
from tiny_llms import tiny_config, tiny_llm
from tiny_runs import CLASSES, class_fields, write_npz
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil
from vision_cases import POINT_BERT, VIDEOMAE

from hf_frozen_llm import LLMBlockConfig
from hf_frozen_llm.analysis import frequency, magnitude, min_max, token_activations
from hf_frozen_llm.analysis.figures import OverlayRow, plot_cells
from hf_frozen_llm.analysis.pictures import find_maps, find_picture
from hf_frozen_llm.cli import main
from hf_frozen_llm.commands.draw_activations import draw_activations
from hf_frozen_llm.plotting import new_figure


COLUMNS = ["host", "input_projection", "attention", "feed_forward", "final_norm", "output_projection"]


@pytest.fixture(scope="module")
def block(tmp_path_factory):
    llm = str(write_llm(tiny_llm(tiny_config("llama")), tmp_path_factory.mktemp("llama")))
    return LLMBlockConfig(llm_name_or_path=llm, layer_index=1)


def first_of(case):
    return {name: value[:1] for name, value in case.inputs(2).items()}


def draw(model, inputs, values, processor=None, outputs=None):
    picture = find_picture(model, processor, inputs, outputs)
    axis = new_figure(1, 1).add_subplot(projection=picture.projection)
    picture.draw(values, axis)
    return axis


@pytest.mark.parametrize(
    ("case", "shape", "num_prefix"),
    [(VIDEOMAE, (2, 2, 2), 0), (POINT_BERT, (6,), 1), (METER_QUESTIONS, None, 1), (SQA3D, None, 0)],
)
def test_maps(case, shape, num_prefix, block):
    model, inputs = case.build(block), first_of(case)
    maps, outputs = find_maps(model, inputs)
    assert outputs[case.output].shape[0] == 1
    assert list(maps) == ["magnitude", "frequency"] and list(maps["frequency"]) == [*COLUMNS, "attention scores"]
    found = token_activations(model, inputs, at=["feed_forward"])
    keep = torch.ones(found.states["feed_forward"].shape[1], dtype=torch.bool) if found.mask is None else found.mask[0]
    tokens = found.states["feed_forward"][:, num_prefix:][:, keep[num_prefix:].bool()]
    for name, measure in (("magnitude", magnitude), ("frequency", frequency)):
        values = maps[name]["feed_forward"]
        assert shape is None or values.shape == shape
        assert np.allclose(values[~np.isnan(values)], min_max(measure(tokens))[0].numpy(), atol=1e-4)


def test_padding_counts_for_nothing(block):
    model, inputs = FORECAST_MAE.build(block), first_of(FORECAST_MAE)
    inputs["lane_mask"] = torch.ones_like(inputs["lane_mask"])
    inputs["lane_mask"][:, -1] = 0
    padded, _ = find_maps(model, inputs)
    cut = {name: value[:, :-1] if name.startswith("lane") else value for name, value in inputs.items()}
    alone, _ = find_maps(model, cut)
    for measure, maps in padded.items():
        for tap, values in maps.items():
            assert np.isnan(values[-1]) and np.isfinite(values[0])
            assert np.allclose(values[:-1], alone[measure][tap], atol=1e-3, equal_nan=True), (measure, tap)


def test_choice_of_tap_points(block):
    maps, _ = find_maps(POINT_BERT.build(block), first_of(POINT_BERT), at=["attention", "block"])
    assert list(maps["magnitude"]) == ["attention", "attention scores"]
    maps, _ = find_maps(
        POINT_BERT.build(
            LLMBlockConfig(
                kind="identity", **{name: getattr(block, name) for name in ("llm_name_or_path", "layer_index")}
            )
        ),
        first_of(POINT_BERT),
    )
    assert "attention scores" not in maps["magnitude"]


def test_points_have_the_color_of_the_nearest_group(block):
    model, inputs = POINT_BERT.build(block), first_of(POINT_BERT)
    maps, _ = find_maps(model, inputs)
    values = maps["magnitude"]["host"]
    (drawn,) = draw(model, inputs, values).collections
    centers = model.point_bert.embeddings.config.num_groups
    points = inputs["points"][0].numpy()
    assert len(drawn.get_array()) == len(points) and len(values) == centers
    # The first centre is the first point.
    assert drawn.get_array()[0] == values[0] and set(drawn.get_array()) <= set(values)
    assert draw(model, inputs, None).collections[0].get_array() is None


def test_frames(block):
    model, inputs = VIDEOMAE.build(block), first_of(VIDEOMAE)
    processor = VideoMAEImageProcessorPil()
    values = np.arange(8.0).reshape(2, 2, 2) / 8
    grey, overlay = draw(model, inputs, values, processor).images
    assert np.array_equal(overlay.get_array(), values.reshape(4, 2))  # the second time below the first
    (image,) = draw(model, inputs, None, processor).images
    pixels = inputs["pixel_values"][0, [0, 2]].numpy().transpose(0, 2, 3, 1)
    expected = pixels * np.array(processor.image_std) + np.array(processor.image_mean)
    assert np.allclose(image.get_array(), np.concatenate(expected.clip(0, 1)))
    assert grey.get_array().shape == (32, 16)


def test_traffic(block):
    vectors = torch.zeros(1, 4, 2, 9)
    vectors[0, :, :, :4] = torch.tensor([[0.0, 0, 0, 1], [0, 1, 0, 2]])
    vectors[0, 1:, :, 4] = 1  # lanes
    mask = torch.ones(1, 4, 2)
    mask[0, 0, 1] = 0
    inputs = {"polyline_vectors": vectors, "vector_mask": mask}
    axis = draw(VECTORNET.build(block), inputs, np.array([1, 0, np.nan, 0.5]))
    lanes, agents = axis.collections
    # Padding is missing, and the target is on top.
    found = [[to_hex(color) for color in lines.get_colors()] for lines in (lanes, agents)]
    expected = [to_hex(colormaps["cividis"](value)) for value in (0.0, 0.0, 0.5, 0.5, 1.0)]
    assert found == [expected[:4], expected[4:]]
    (track,) = agents.get_segments()
    assert track.tolist() == [[0, 0], [0, 1]]


def test_room(block):
    model, inputs = SQA3D.build(block), first_of(SQA3D)
    maps, outputs = find_maps(model, inputs)
    values = maps["magnitude"]["host"]
    _, objects = draw(model, inputs, values, outputs=outputs).collections
    assert np.array_equal(objects.get_array(), np.sort(values[~np.isnan(values)]))


def test_inputs_that_cannot_be_drawn(block):
    model = FORECAST_MAE.build(block)
    with pytest.raises(ValueError, match=r"The inputs of this ForecastMAE.* cannot be drawn"):
        find_picture(model, None, first_of(FORECAST_MAE), None)


def test_grid_of_cells(tmp_path):
    def fill(color):
        return lambda axis: axis.set_facecolor(color)

    rows = [
        OverlayRow("a question?", "first\nyes", {"input": fill("red"), "host": fill("blue")}),
        OverlayRow(None, "second", {"host": fill("lime")}),
    ]
    files = [tmp_path / "cells.png", tmp_path / "cells.svg"]
    plot_cells(files, rows, ["input", "host"], "Title")
    picture = Image.open(files[0])
    counts = {color: count for count, color in picture.convert("RGB").getcolors(10_000)}
    assert min(counts[color] for color in ((255, 0, 0), (0, 0, 255), (0, 255, 0))) > 0.9 * (1.15 * 100) ** 2
    text = files[1].read_text()
    assert all(f"<!-- {name} -->" in text for name in ("a question?", "host", "input", "second"))


def test_command(block, tmp_path):
    data = write_npz(tmp_path / "clouds.npz", {"train": 6, "test": 6})
    fields = {"num_labels": 6, **class_fields({name: index for index, name in enumerate(CLASSES)})}
    llm = {"llm_name_or_path": block.llm_name_or_path, "layer_index": 1}
    for name, of_model in {"llm": block, "identity": LLMBlockConfig(kind="identity", **llm), "plain": None}.items():
        POINT_BERT.build(of_model, **fields).save_pretrained(tmp_path / name)
        POINT_BERT.processor().save_pretrained(tmp_path / name)
    folders, output = [str(tmp_path / name) for name in ("llm", "identity")], tmp_path / "maps"
    flags = ["--data", data, "--split", "test", "--max_images", "2", "--output", str(output)]
    main(["analyze", *folders, *flags])
    names = {f"overlays_{measure}.{kind}" for measure in ("magnitude", "frequency") for kind in ("png", "svg")}
    assert {file.name for file in output.iterdir()} == names
    text = (output / "overlays_frequency.svg").read_text()
    assert all(f"<!-- {label} -->" in text for label in ("row 0", "row 5", "input", "attention scores"))
    assert text.count("<!-- llm -->") == text.count("<!-- identity -->") == 2
    with pytest.raises(ValueError, match="split is not set; say what to draw"):
        draw_activations(folders, output, data)
    with pytest.raises(ValueError, match="has no LLM block, and so no tap points"):
        draw_activations([tmp_path / "plain"], output, data, "test")
    with pytest.raises(ValueError, match="The model has no tap point values; it has host, input_proj"):
        draw_activations(folders, output, data, "test", at=["values"])
    with pytest.raises(FileNotFoundError, match=r"output is .* but there is no folder"):
        draw_activations(folders, tmp_path / "none" / "maps", data, "test")
