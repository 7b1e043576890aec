# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Conversion of released checkpoints: the outputs must equal those of the released code."""

import json

import pytest
import torch
from paths import REPO, shared_dir
from references import relative_error
from safetensors import safe_open
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForVideoClassification

from hf_frozen_llm.cli import main
from hf_frozen_llm.conversion import convert_released_checkpoint, convert_to_folder, read_released_checkpoint
from hf_frozen_llm.modeling.modeling_point_bert_with_llm_block import group_points


FILES = {
    "image-classification": "official_vit_llama_tiny.safetensors",
    "video-classification": "official_videomae_llama_tiny.safetensors",
    "point-cloud-classification": "official_point_bert_llama_tiny.safetensors",
}
every_task = pytest.mark.parametrize("task", list(FILES))


@pytest.fixture
def released(tmp_path):
    """`released(task)`: (the `.pth` file, the fields that the tensors do not show, its input, the whole fixture)."""

    def make(task, wrap=lambda state: {"model": state}):
        with safe_open(shared_dir() / "fixtures" / FILES[task], "pt") as f:
            config, tensors = json.loads(f.metadata()["config"]), {name: f.get_tensor(name) for name in f.keys()}
        state = {k.removeprefix("state_dict."): v for k, v in tensors.items() if k.startswith("state_dict.")}
        llama = config.get("llama") or config["llama_cfg"]
        given = {"num_attention_heads": config["num_heads"], "llm_num_attention_heads": llama["n_heads"]}
        given["layer_index"] = llama["first_layer"]
        if task == "image-classification":
            inputs = tensors["pixel_values"]
        elif task == "video-classification":
            inputs = tensors["pixel_values_bcthw"].transpose(1, 2)
            given.update(num_frames=config["num_frames"], image_size=config["img_size"])
            given["tubelet_size"] = config["tubelet_size"]
        else:
            inputs = tensors["points"]
            given.update(num_groups=config["num_group"], group_size=config["group_size"])
        path = tmp_path / "checkpoint.pth"
        torch.save(wrap(state), path)
        return path, given, inputs, tensors

    return make


@every_task
def test_numbers_of_the_released_code(task, released):
    path, given, inputs, expected = released(task)
    model, seen = convert_released_checkpoint(path, task, **given), {}
    assert not model.training
    model.llm_block.register_forward_pre_hook(lambda module, args: seen.update(before_block=args[0]))
    model.llm_block.register_forward_hook(lambda module, args, out: seen.update(after_block=out))
    with torch.no_grad():
        assert relative_error(model(inputs).logits, expected["logits"]) < 2e-6
        logits = model(inputs, output_hidden_states=True).logits  # of all tokens
    assert relative_error(logits, expected["logits"]) < 2e-6
    for name, value in seen.items():
        assert relative_error(value, expected[name]) < 2e-6, name


def test_groups_of_the_released_code(released):
    expected = released("point-cloud-classification")[3]
    groups, centers = group_points(expected["points"], 16, 8)
    assert torch.equal(centers, expected["center"])
    # The released neighbours have no order.
    for ours, theirs in zip(groups.flatten(0, 1), expected["neighborhood"].flatten(0, 1)):
        assert sorted(ours.tolist()) == sorted(theirs.tolist())


@every_task
def test_round_trip(task, released, tmp_path):
    path, given, inputs, _ = released(task)
    model = convert_released_checkpoint(path, task, **given)
    model.save_pretrained(tmp_path / "saved")
    path.unlink()
    auto = {
        "image-classification": AutoModelForImageClassification,
        "video-classification": AutoModelForVideoClassification,
        "point-cloud-classification": AutoModel,
    }[task]
    again = auto.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        torch.testing.assert_close(again(inputs).logits, model(inputs).logits, rtol=1e-5, atol=1e-6)


@every_task
def test_every_tensor_is_accounted_for(task, released):
    path, given, _, _ = released(task)
    state = torch.load(path)["model"]
    converted = read_released_checkpoint(path, task, **given)
    assert set(converted.sources.values()) == set(state) and not converted.left_out
    assert set(converted.sources) == set(converted.tensors)
    assert converted.describe().count("\n") + 1 == len(converted.tensors)
    assert sum(t.numel() for t in converted.tensors.values()) == sum(t.numel() for t in state.values())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"base_model": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3},
        lambda state: {"module": state, "optimizer": {"lr": 0.1}},
    ],
    ids=["bare", "Point-BERT under DDP", "DeepSpeed"],
)
def test_wrappings(wrap, released):
    path, given, inputs, expected = released("point-cloud-classification", wrap)
    model = convert_released_checkpoint(path, "point-cloud-classification", **given)
    with torch.no_grad():
        assert relative_error(model(inputs).logits, expected["logits"]) < 2e-6


def test_state_dictionary_and_averaged_weights(released):
    path, given, inputs, expected = released("image-classification")
    state = torch.load(path)["model"]
    loaded = {"model": {name: torch.zeros_like(tensor) for name, tensor in state.items()}, "model_ema": state}
    model = convert_released_checkpoint(loaded, "image-classification", use_ema=True, **given)
    with torch.no_grad():
        assert relative_error(model(inputs).logits, expected["logits"]) < 2e-6
    with pytest.raises(ValueError, match="no averaged weights"):
        convert_released_checkpoint(path, "image-classification", use_ema=True, **given)


def test_checkpoint_without_an_llm_layer(released):
    path, given, inputs, _ = released("image-classification")
    state = {n: t for n, t in torch.load(path)["model"].items() if not n.startswith("llama")}
    model = convert_released_checkpoint(
        state, "image-classification", num_attention_heads=given["num_attention_heads"]
    )
    assert model.llm_block is None and model(inputs).logits.shape == (3, 10)


def test_pretrained_point_bert(released):
    """The classifier is new; tensors that only the pre-training needs are left out and listed."""
    path, given, inputs, _ = released("point-cloud-classification")
    state = torch.load(path)["model"]
    state = {f"module.transformer_q.{n}": t for n, t in state.items() if not n.startswith(("llama", "cls_head"))}
    state |= {"module.transformer_q.mask_token": torch.zeros(1), "module.dvae.encoder.weight": torch.zeros(1)}
    given = {n: given[n] for n in ("num_attention_heads", "num_groups", "group_size")}
    converted = read_released_checkpoint({"base_model": state}, "point-cloud-classification", **given)
    assert set(converted.left_out) == {"transformer_q.mask_token", "dvae.encoder.weight"}
    model = convert_released_checkpoint({"base_model": state}, "point-cloud-classification", **given, num_labels=4)
    assert model(inputs).logits.shape == (2, 4)


def test_pretrained_videomae(released):
    path, given, inputs, _ = released("video-classification")
    state = torch.load(path)["model"]
    host = {n: t for n, t in state.items() if not n.startswith(("llama", "head", "fc_norm"))}
    pretrained = {f"encoder.{n}": t for n, t in host.items()}
    pretrained |= {f"encoder.norm.{kind}": torch.zeros(len(state["fc_norm.weight"])) for kind in ("weight", "bias")}
    pretrained |= {"mask_token": torch.zeros(1), "decoder.blocks.0.norm1.weight": torch.zeros(1)}
    for name in ("llm_num_attention_heads", "layer_index"):
        del given[name]
    converted = read_released_checkpoint({"model": pretrained}, "video-classification", **given)
    left_out = {"mask_token", "decoder.blocks.0.norm1.weight", "encoder.norm.weight", "encoder.norm.bias"}
    assert set(converted.left_out) == left_out
    model = convert_released_checkpoint({"model": pretrained}, "video-classification", **given, num_labels=4)
    assert model(inputs).logits.shape == (len(inputs), 4) and model.llm_block is None
    weights = {n: t for n, t in model.state_dict().items() if n.startswith("videomae.") and "patch" in n}
    assert torch.equal(
        weights["videomae.embeddings.patch_embeddings.projection.weight"], host["patch_embed.proj.weight"]
    )


@pytest.mark.parametrize(
    ("task", "layer"), [("image-classification", 31), ("video-classification", 15), ("point-cloud-classification", 31)]
)
def test_default_layer_is_that_of_the_released_code(task, layer, released):
    path, given, _, _ = released(task)
    del given["layer_index"]
    layers = convert_released_checkpoint(path, task, **given).config.llm_block.layer_index
    assert (layers[-1] if isinstance(layers, list) else layers) == layer


@every_task
def test_what_is_not_shown_is_asked_for(task, released):
    path, given, _, _ = released(task)
    for name in set(given) - {"layer_index", "tubelet_size"}:
        rest = {n: value for n, value in given.items() if n != name}
        with pytest.raises(ValueError, match=f"do not show {name}: give it"):
            convert_released_checkpoint(path, task, **rest)


def test_bad_checkpoints_are_refused(released, tmp_path):
    path, given, _, _ = released("image-classification")
    state = torch.load(path)["model"]

    def convert(checkpoint, task="image-classification", **more):
        return convert_released_checkpoint(checkpoint, task, **{**given, **more})

    with pytest.raises(ValueError, match="is of image-classification, not of video-classification"):
        convert(path, "video-classification")
    with pytest.raises(ValueError, match=r"does not have: \['surprise\.weight'\]"):
        convert({**state, "surprise.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"lacks tensors that the model needs, or has others: .*layernorm"):
        convert({n: t for n, t in state.items() if n != "norm.weight"})
    with pytest.raises(ValueError, match=r"lacks head\.weight, whose shape gives a size of a released ViT"):
        convert({n: t for n, t in state.items() if not n.startswith("head")})
    with pytest.raises(ValueError, match="layer_index is 1, but the checkpoint holds 3 LLM layers"):
        convert({**state, "llama.layers.2.attention_norm.weight": torch.ones(64)}, layer_index=1)
    with pytest.raises(ValueError, match="patch_size is given as 16, but the checkpoint's tensors show"):
        convert(path, patch_size=16)
    with pytest.raises(ValueError, match=r"llama\.norm\.weight is not 1"):
        convert({**state, "llama.norm.weight": 2 * state["llama.norm.weight"]})
    with pytest.raises(ValueError, match="belongs to no released model"):
        convert({"weight": torch.zeros(2)})
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        convert(tmp_path / "nowhere.pth")
    with pytest.raises(ValueError, match=r"lacks pos_embed, whose shape"):
        convert({n: t for n, t in state.items() if n != "pos_embed"})
    with pytest.raises(ValueError, match="do not have the shapes of a released ViT"):
        convert({**state, "pos_embed": torch.zeros(4)})
    for content in ([torch.zeros(2)], {"model": [1]}, {"model": state["norm.weight"]}, {1: 2}, "text", None):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=r"state dictionary of a model|belongs to no released model"):
            convert(tmp_path / "other.pth")
    for text in (b"", b"hello", b"weights: [1, 2]\n", b"\x80\x02.", b"PK\x03\x04", b"c" * 100, b"]q"):
        (tmp_path / "other.pth").write_bytes(text)
        with pytest.raises(ValueError, match=r"other\.pth cannot be read|other\.pth holds a"):
            convert(tmp_path / "other.pth")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read"):
        convert(path)


@every_task
def test_command(task, released, tmp_path, capsys):
    path, given, _, _ = released(task)
    given.pop("tubelet_size", None)
    flags = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    main(["convert", str(path), "--task", task, "--output", str(tmp_path / "out"), *flags])
    printed = capsys.readouterr().out
    assert "llama_dim_mapper1.weight -> llm_block.input_projection.weight (64, 48)" in printed
    auto = AutoModel if task != "image-classification" else AutoModelForImageClassification
    assert auto.from_pretrained(tmp_path / "out").llm_block.config.layer_index == given["layer_index"]
    with pytest.raises(FileExistsError, match="exists already; convert into a new or empty folder"):
        main(["convert", str(path), "--task", task, "--output", str(tmp_path / "out"), *flags])


def test_nothing_is_written_where_the_conversion_fails(released, tmp_path):
    path, given, _, _ = released("image-classification")
    for task in ("video-classification", "depth-estimation"):
        with pytest.raises(ValueError, match="task"):
            convert_to_folder(path, task, tmp_path / "out", **given)
    with pytest.raises(ValueError, match="num_attention_heads"):
        convert_to_folder(path, "image-classification", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_architectures_name_no_task():
    """Names in checkpoints belong to an architecture, which can serve several tasks."""
    for path in (REPO / "hf_frozen_llm" / "conversion").glob("*.py"):
        assert not [task for task in FILES if task in path.read_text(encoding="utf-8")], path.name
