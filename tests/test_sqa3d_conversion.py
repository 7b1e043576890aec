# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Published SQA3D and ScanQA models: the numbers of the published classes, and every tensor accounted for."""

import json

import pytest
import torch
from paths import shared_dir
from safetensors import safe_open
from transformers import AutoModel

from hf_frozen_llm import SQA3DWithLLMBlockConfig, SQA3DWithLLMBlockForQuestionAnswering, SQA3DWithLLMBlockModel
from hf_frozen_llm.cli import main
from hf_frozen_llm.conversion import convert_released_checkpoint, read_released_checkpoint
from hf_frozen_llm.conversion.checkpoint import rename
from hf_frozen_llm.conversion.sqa3d import NAMES, OF_SCENE, UNUSED
from hf_frozen_llm.modeling import pointnet2, votenet
from hf_frozen_llm.modeling.sqa3d_host import SQA3DLayerNorm, SQA3DTexts
from hf_frozen_llm.modeling.votenet import VoteNetVoting, box_corners


TASK = "situated-question-answering"
FIELDS = {
    "num_attention_heads": 4,
    "num_samples": [72, 36, 18, 9],
    "num_neighbors": [5, 6, 6, 5],
    "radii": [0.2, 0.4, 0.8, 1.2],
    "num_proposals": 16,
    "vote_radius": 0.6,
    "vote_num_neighbors": 3,
    "num_heading_bins": 1,
}
BOUND, GRADIENT_BOUND = 2e-4, 5e-4


def read_fixture(name):
    with safe_open(shared_dir() / "fixtures" / "sqa3d" / f"official_sqa3d_{name}.safetensors", "pt") as f:
        return {key: f.get_tensor(key) for key in f.keys()}, json.loads(f.metadata()["config"])


@pytest.fixture(scope="module")
def official():
    return read_fixture("tiny")[0]


@pytest.fixture(scope="module")
def fusion():
    return read_fixture("fusion")


def below(prefix, tensors):
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@pytest.fixture
def state(official):
    return below("state_dict.", official)


@pytest.fixture
def model(state, official):
    return convert_released_checkpoint(state, TASK, mean_sizes=official["input.mean_size_arr"].tolist(), **FIELDS)


def word_mask(lengths, words):
    return torch.arange(words) < lengths[:, None]


def inputs_of(official):
    inputs = below("input.", official)
    return {
        "points": inputs["point_clouds"].clone().requires_grad_(),
        "situation_embeds": inputs["s_feat"].clone().requires_grad_(),
        "situation_mask": word_mask(inputs["s_len"], inputs["s_feat"].shape[1]),
        "question_embeds": inputs["q_feat"].clone().requires_grad_(),
        "question_mask": word_mask(inputs["q_len"], inputs["q_feat"].shape[1]),
    }


def labels_of(official):
    inputs = below("input.", official)
    return {
        "labels": inputs["answer_cat_scores"],
        "situation_labels": inputs["auxiliary_task"],
        "object_centers": inputs["center_label"],
        "object_mask": inputs["box_label_mask"],
        "object_classes": inputs["sem_cls_label"].long(),
        "object_size_classes": inputs["size_class_label"].long(),
        "object_size_residuals": inputs["size_residual_label"],
        "object_heading_classes": inputs["heading_class_label"].long(),
        "object_heading_residuals": inputs["heading_residual_label"],
        "vote_labels": inputs["vote_label"],
        "vote_mask": inputs["vote_label_mask"],
    }


def assert_close(actual, expected, name, bound=BOUND):
    assert actual.shape == expected.shape, name
    if expected.is_floating_point():
        error = (actual.double() - expected.double()).abs().max().item()
        assert error <= bound, f"{name}: {error:.1e}"
    else:
        assert torch.equal(actual.long(), expected.long()), name


def inner_outputs(model):
    """Return a dictionary that the model's next run fills with the tensors that the fixture has."""
    seen, host = {}, model.sqa3d

    def keep(module, name, choose=lambda args, out: out):
        module.register_forward_hook(lambda module, args, out: seen.update({name: choose(args, out)}))

    for index, level in enumerate(host.detector.levels, start=1):
        keep(level, f"sa{index}_features")
        keep(level, f"sa{index}_xyz", lambda args, out: args[2])
    keep(host.detector.propagation1, "fp1_features")
    keep(host.detector.propagation2, "fp2_features")
    keep(host.detector.propagation2, "fp2_xyz", lambda args, out: args[0])
    keep(host.detector.voting, "vote_xyz", lambda args, out: out[0])
    keep(host.detector.voting, "vote_features_raw", lambda args, out: out[1])
    keep(host.detector.vote_aggregation, "vote_features", lambda args, out: args[1])
    keep(host.detector.vote_aggregation, "aggregated_vote_xyz", lambda args, out: args[2])
    keep(host.detector.vote_aggregation, "aggregated_vote_features", lambda args, out: out.mT)
    keep(host.detector.proposal.conv3, "proposal_net_out")
    for short, name in (("s", "situation"), ("q", "question")):
        for index, layer in enumerate(getattr(host, f"{name}_layers")):
            keep(layer, f"enc_list_{short}_{index}_out")
    for released, name in (("dec_list", "situation"), ("dec_list_2", "question")):
        for index, layer in enumerate(getattr(host, f"{name}_fusion_layers")):
            keep(layer, f"{released}_{index}_out")
    for short, name in (("s", "situation"), ("q", "question"), ("visual", "object")):
        pooler = getattr(host, f"{name}_pooler")
        keep(pooler, f"attflat_{short}_out", lambda args, out: out[0])
        keep(pooler, f"{short[0].replace('v', 'o')}att", lambda args, out: out[1])
    return seen


def cut(tensor, expected):
    """Words beyond the longest text of the batch, which the published code cuts off."""
    return tensor[:, : expected.shape[1]]


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_outputs_equal_the_published_ones(attn, model, official):
    assert type(model) is SQA3DWithLLMBlockForQuestionAnswering and not model.training
    model.set_attn_implementation(attn)
    seen = inner_outputs(model)
    inputs = inputs_of(official)
    out = model(**inputs)
    assert len(seen) == 8 + 3 + 6 + 4 + 4 + 6
    for name, tensor in seen.items():
        expected = official[f"out.{name}"]
        assert_close(cut(tensor, expected) if name.startswith(("enc_list_q", "qatt")) else tensor, expected, name)
    detection = model.sqa3d.detect(inputs["points"], None, None)
    named = {
        "answer_scores": out.logits,
        "aux_scores": out.situation,
        "oatt": out.object_weights,
        "objectness_scores": out.objectness_logits,
        "sem_cls_scores": out.class_logits,
        "center": out.box_centers,
        "heading_scores": detection.heading_logits,
        "heading_residuals_normalized": detection.heading_residuals,
        "size_scores": detection.size_logits,
        "size_residuals_normalized": detection.size_residuals,
        "bbox_mask": out.object_mask,
        "bbox_sems": out.class_logits.argmax(dim=-1),
        "bbox_corner": box_corners(out.box_centers, out.box_sizes),
        "fp2_inds": detection.seed_indices,
        "pred_answers_at10": out.logits.topk(10).indices,
    }
    for name, tensor in named.items():
        assert_close(tensor, official[f"out.{name}"], name)
    with torch.no_grad():
        exact = model.double()(**{n: t.double() if t.is_floating_point() else t for n, t in inputs.items()})
    assert_close(exact.logits, official["out_f64.answer_scores"], "answer_scores", 1e-6)
    assert_close(exact.situation, official["out_f64.aux_scores"], "aux_scores", 1e-6)


def test_indices_equal_the_published_ones(model, official, monkeypatch):
    found = {"sample_farthest": [], "query_ball": [], "find_three_nearest": []}

    def watch(module, name):
        function = getattr(module, name)

        def watched(*args):
            found[name].append(function(*args))
            return found[name][-1]

        monkeypatch.setattr(module, name, watched)

    watch(votenet, "sample_farthest")
    watch(pointnet2, "query_ball")
    watch(pointnet2, "find_three_nearest")
    model(**inputs_of(official))
    levels = [f"sa{level}" for level in range(1, 5)]
    sampled = [*(f"{level}_inds" for level in levels), "aggregated_vote_inds"]
    grouped = [*(f"{level}_group_inds" for level in levels), "vote_group_inds"]
    for names, function in ((sampled, "sample_farthest"), (grouped, "query_ball")):
        assert len(found[function]) == 5
        for name, indices in zip(names, found[function]):
            assert torch.equal(indices, official[f"out.{name}"].long()), name
    for name, (indices, distances) in zip(("fp1", "fp2"), found["find_three_nearest"]):
        assert torch.equal(indices, official[f"out.{name}_nn_inds"].long())
        assert_close(distances.square(), official[f"out.{name}_nn_dist2"], name)


def test_losses_and_gradients_equal_the_published_ones(model, official, state):
    inputs, labels = inputs_of(official), labels_of(official)
    out = model(**inputs, **labels)
    losses = {
        "loss": out.loss,
        "answer_loss": out.answer_loss,
        "aux_loss": out.situation_loss,
        "vote_loss": out.vote_loss,
        "objectness_loss": out.objectness_loss,
        "box_loss": out.box_loss,
        "sem_cls_loss": out.class_loss,
    }
    for name, loss in losses.items():
        assert_close(loss, official[f"loss.{name}"], name)
    by_number = model(**inputs, labels=official["input.answer_cat"]).answer_loss
    assert_close(by_number, official["loss.answer_loss_ce"], "answer_loss_ce")
    out.loss.backward()
    gradients = below("grad.", official)
    bound = GRADIENT_BOUND * max(gradient.abs().max().item() for gradient in gradients.values())
    parameters = dict(model.named_parameters())
    used = {name for name in state if name not in read_released_checkpoint(state, TASK, **FIELDS).left_out}
    assert {name for name in used if "running_" not in name and "num_batches" not in name} == gradients.keys()
    for name, gradient in gradients.items():
        (ours,) = rename(name, NAMES)
        assert_close(parameters.pop(ours).grad, gradient, name, bound)
    assert not parameters
    for name, key in (("point_clouds", "points"), ("s_feat", "situation_embeds"), ("q_feat", "question_embeds")):
        assert_close(inputs[key].grad, official[f"grad_input.{name}"], name, bound)


def test_padded_boxes_count(model, official):
    """A proposal near the rows of padding is positive, as in the published code."""
    labels = labels_of(official)
    loss = model(**inputs_of(official), **labels).objectness_loss
    far = torch.where(labels["object_mask"][..., None] > 0, labels["object_centers"], torch.tensor(50.0))
    assert abs(model(**inputs_of(official), **{**labels, "object_centers": far}).objectness_loss - loss) > 1e-3


def build_for_fusion(case, tensors, config):
    """A model whose detector, which the case lacks, is new."""
    fields = config[case]
    state = below(f"{case}.state_dict.", tensors)
    model = SQA3DWithLLMBlockForQuestionAnswering(
        SQA3DWithLLMBlockConfig(
            num_labels=fields["num_answers"],
            hidden_size=fields["hidden_size"],
            num_hidden_layers=2 * fields["mcan_num_layers"],
            num_attention_heads=fields["mcan_num_heads"],
            pooler_hidden_size=fields["mcan_flat_mlp_size"],
            num_glimpses=fields["mcan_flat_glimpses"],
            pooler_output_size=fields["mcan_flat_out_size"],
            word_embedding_size=fields["lang_emb_size"],
            num_lstm_layers=fields["lang_num_layers"],
            bidirectional_lstm=fields["lang_use_bidir"],
            proposal_size=fields["proposal_size"],
            predict_situation=fields["use_aux_situation"],
            use_points=not fields["wo3d"],
            num_proposals=7,
        )
    ).eval()
    left_out = UNUSED if model.config.use_points else (*UNUSED, *OF_SCENE, "aux_reg.")
    renamed = {rename(n, NAMES)[0]: t for n, t in state.items() if not n.startswith(left_out)}
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    assert not unexpected and all(name.startswith("sqa3d.detector.") for name in missing)
    return model


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("case", ["all_masked_item", "bidirectional_glimpses", "blind"])
def test_fusion_equals_the_published_one(case, attn, fusion):
    tensors, config = fusion
    model = build_for_fusion(case, tensors, config)
    model.set_attn_implementation(attn)
    inputs, outputs, host = below(f"{case}.input.", tensors), below(f"{case}.out.", tensors), model.sqa3d
    names = ("s_feat", "q_feat", "aggregated_vote_features")
    leaves = {name: inputs[name].clone().requires_grad_() for name in names}
    masks = [word_mask(inputs[f"{text}_len"], inputs[f"{text}_feat"].shape[1]) for text in "sq"]
    texts = host.encode_texts((leaves["s_feat"], masks[0], None), (leaves["q_feat"], masks[1], None))
    assert isinstance(texts, SQA3DTexts)
    for text, mask in zip("sq", masks):
        states = host.text_encoder(inputs[f"{text}_feat"], mask)
        assert_close(cut(states, outputs[f"{text}_out"]), outputs[f"{text}_out"], f"{text}_out")
        assert torch.equal(cut(~mask, outputs[f"{text}_mask"]), outputs[f"{text}_mask"])
    objects = object_mask = None
    if model.config.use_points:
        object_mask = inputs["bbox_mask"].bool()
        objects = host.project_objects(leaves["aggregated_vote_features"])
        for layer in host.fusion_layers(texts, object_mask):
            objects = layer(objects)
    pooled, weights = host.pool(texts, objects, object_mask)
    logits, situation = model.answer(pooled)
    assert_close(logits, outputs["answer_scores"], "answer_scores", 2e-6)
    assert_close(logits, tensors[f"{case}.out_f64.answer_scores"], "answer_scores", 5e-6)
    total = (logits * inputs["grad_answer_scores"]).sum()
    if model.config.use_points:
        assert_close(weights, outputs["oatt"], "oatt", 2e-6)
        assert_close(situation, outputs["aux_scores"], "aux_scores", 2e-6)
        total = total + situation.sum()
    else:
        assert weights is None and situation is None
    total.backward()
    gradients = below(f"{case}.grad_input.", tensors)
    bound = GRADIENT_BOUND * max(gradient.abs().max().item() for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert_close(leaves[name].grad, gradient, name, bound)


def test_blind_checkpoint_converts_and_runs(fusion):
    tensors, config = fusion
    state = below("blind.state_dict.", tensors)
    model = convert_released_checkpoint(state, TASK, num_attention_heads=config["blind"]["mcan_num_heads"])
    assert not model.config.use_points and not model.config.predict_situation
    left_out = read_released_checkpoint(state, TASK).left_out
    assert left_out["aux_reg.0.bias"] == "not used by a model without the scene"
    inputs = below("blind.input.", tensors)
    out = model(
        situation_embeds=inputs["s_feat"],
        situation_mask=word_mask(inputs["s_len"], 8),
        question_embeds=inputs["q_feat"],
        question_mask=word_mask(inputs["q_len"], 8),
    )
    assert_close(out.logits, tensors["blind.out.answer_scores"], "answer_scores", 2e-6)
    assert out.situation is None and out.object_mask is None


def test_voting_and_norm_equal_the_published_ones(fusion):
    tensors, config = fusion
    inputs, outputs = below("voting.input.", tensors), below("voting.out.", tensors)
    voting = VoteNetVoting(config["voting"]["seed_feature_dim"], config["voting"]["vote_factor"]).eval()
    voting.load_state_dict({name.replace("bn", "norm"): t for name, t in below("voting.state_dict.", tensors).items()})
    features = inputs["seed_features"].clone().requires_grad_()
    votes, of_votes = voting(inputs["seed_xyz"], features)
    assert_close(votes, outputs["vote_xyz"], "vote_xyz", 1e-5)
    assert_close(of_votes, outputs["vote_features"], "vote_features", 1e-5)
    ((of_votes * inputs["grad_vote_features"]).sum() + votes.sum()).backward()
    assert_close(features.grad, tensors["voting.grad.seed_features"], "seed_features", 1e-5)
    norm = SQA3DLayerNorm(config["layernorm"]["size"], config["layernorm"]["eps"])
    norm.load_state_dict({"weight": tensors["layernorm.state_dict.a_2"], "bias": tensors["layernorm.state_dict.b_2"]})
    assert_close(norm(tensors["layernorm.input.x"]), tensors["layernorm.out.y"], "y", 1e-6)
    assert_close(norm(tensors["layernorm.input.constant"]), tensors["layernorm.out.constant"], "constant", 1e-6)


def test_every_tensor_is_accounted_for(state):
    converted = read_released_checkpoint(state, TASK, **FIELDS)
    unused = {name for name in state if name.startswith(UNUSED)}
    assert set(converted.left_out) == unused and len(unused) == 14
    assert set(converted.sources.values()) == set(state) - unused
    assert "object_cls.0.bias: left out, not used by the published model" in converted.describe().splitlines()
    headless = read_released_checkpoint(state, "feature-extraction", **FIELDS)
    assert headless.left_out["answer_cls.0.weight"] == "a head" and headless.model_class is SQA3DWithLLMBlockModel


def test_full_size_names_and_shapes():
    """The default configuration is the published one."""
    shapes = json.loads((shared_dir() / "fixtures" / "sqa3d" / "official_sqa3d_full_shapes.json").read_text())
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    converted = read_released_checkpoint(state, TASK)
    with torch.device("meta"):
        published = SQA3DWithLLMBlockForQuestionAnswering(SQA3DWithLLMBlockConfig(num_labels=706))
    ours = {name: tensor.shape for name, tensor in published.state_dict().items()}
    assert ours == {name: tensor.shape for name, tensor in converted.tensors.items()}
    for name in ("num_samples", "radii", "num_neighbors", "mean_sizes", "point_channels", "num_attention_heads"):
        assert getattr(converted.config, name) == getattr(published.config, name)


def test_bad_checkpoints_are_refused(state):
    with pytest.raises(ValueError, match="The checkpoint is of situated-question-answering"):
        convert_released_checkpoint(state, "image-classification", **FIELDS)
    with pytest.raises(ValueError, match=r"does not have: \['surprise\.weight'\]"):
        convert_released_checkpoint({**state, "surprise.weight": torch.zeros(2)}, TASK, **FIELDS)
    with pytest.raises(ValueError, match=r"lacks answer_cls\.3\.weight, whose shape"):
        convert_released_checkpoint({n: t for n, t in state.items() if n != "answer_cls.3.weight"}, TASK, **FIELDS)
    with pytest.raises(ValueError, match=r"has others: .*norm2"):
        convert_released_checkpoint({n: t for n, t in state.items() if "bn2" not in n}, TASK, **FIELDS)
    with pytest.raises(ValueError, match="num_labels is given as 3, but the checkpoint's tensors show 14"):
        convert_released_checkpoint(state, TASK, num_labels=3, **FIELDS)
    with pytest.raises(ValueError, match="A proposal has 32 outputs, which do not fit num_heading_bins=20"):
        convert_released_checkpoint(state, TASK, **{**FIELDS, "num_heading_bins": 20})


def test_command_and_round_trip(state, official, tmp_path, capsys):
    torch.save(state, tmp_path / "model.pth")
    arguments = ["--task", TASK, "--output", str(tmp_path / "out"), "--num-attention-heads", "4"]
    main(["convert", str(tmp_path / "model.pth"), *arguments])
    assert "attflat_lstm_q.linear_merge.bias: left out, not used by the published model" in capsys.readouterr().out
    fields = {name: value for name, value in FIELDS.items() if name != "num_attention_heads"}
    model = AutoModel.from_pretrained(tmp_path / "out", **fields)
    with torch.no_grad():
        assert_close(model(**inputs_of(official)).logits, official["out.answer_scores"], "answer_scores")


def scanqa_state(state):
    """A checkpoint of ScanQA's own model, of the same layers: those that it has, by its names, and its heads."""
    names = {"enc_list_q.": "fusion_backbone.enc_list.", "dec_list.": "fusion_backbone.dec_list."}
    names |= {"attflat_q.": "attflat_lang."}
    others = ("enc_list_s.", "dec_list_2.", "attflat_s.", "attflat_lstm_q.", "s_feat", "q_feat", "aux_reg.", "answer_")
    found = {}
    for name, tensor in state.items():
        if not name.startswith(others):
            old = next((old for old in names if name.startswith(old)), "")
            found[names.get(old, "") + name.removeprefix(old)] = tensor
    pooled, width = state["attflat_q.linear_merge.weight"].shape[0], state["lang_feat_linear.0.bias"].shape[0]
    torch.manual_seed(0)
    shapes = {"fusion_norm.a_2": (pooled,), "fusion_norm.b_2": (pooled,), "lang_cls.0.weight": (width, pooled)}
    shapes |= {"answer_cls.0.weight": (width, pooled), "answer_cls.0.bias": (width,)}
    shapes |= {"answer_cls.3.weight": (5, width), "answer_cls.3.bias": (5,), "lang_cls.3.bias": (18,)}
    return found | {name: torch.randn(shape) for name, shape in shapes.items()}


def test_scanqa_checkpoint_answers_as_published(model, state, official):
    """The modules, each of which equals the published one, are put together as in ScanQA's code."""
    checkpoint = scanqa_state(state)
    converted = read_released_checkpoint(checkpoint, TASK, **FIELDS)
    unused = {name for name in checkpoint if name.startswith(("object_cls.", "lang_cls."))}
    assert set(converted.left_out) == unused and "lang_cls.0.weight: left out, a head" in converted.describe()
    assert not converted.config.use_situation and converted.config.num_hidden_layers == 2
    scanqa = convert_released_checkpoint(
        checkpoint, TASK, mean_sizes=official["input.mean_size_arr"].tolist(), **FIELDS
    )
    inputs = inputs_of(official)
    host = model.sqa3d
    with torch.no_grad():
        out = scanqa(**{name: value for name, value in inputs.items() if not name.startswith("situation")})
        assert torch.equal(out.logits, scanqa(**inputs).logits), "no situation is read"
        texts, mask = texts_of(model, inputs), inputs["question_mask"]
        detection = host.detect(inputs["points"], None, None)
        objects = host.project_objects(detection.proposal_features)
        for layer in host.situation_fusion_layers:
            objects = layer(objects, texts.question, detection.proposal_mask, mask)
        pooled = host.question_pooler(texts.question, mask)[0]
        pooled = pooled + host.object_pooler(objects, detection.proposal_mask)[0]
        spread = pooled.std(dim=-1, keepdim=True) + 1e-6
        pooled = (pooled - pooled.mean(dim=-1, keepdim=True)) / spread
        pooled = checkpoint["fusion_norm.a_2"] * pooled + checkpoint["fusion_norm.b_2"]
        for index in (0, 3):
            pooled = pooled @ checkpoint[f"answer_cls.{index}.weight"].T + checkpoint[f"answer_cls.{index}.bias"]
            expected, pooled = pooled, torch.nn.functional.gelu(pooled)
    assert_close(out.logits, expected, "answer_scores")
    assert out.situation is None


def texts_of(model, inputs):
    return model.sqa3d.encode_texts(
        *((inputs[f"{name}_embeds"], inputs[f"{name}_mask"], None) for name in ("situation", "question"))
    )


@pytest.mark.parametrize("fields", [{"predict_situation": True}, {"use_points": False, "predict_situation": False}])
def test_scanqa_has_points_and_no_pose(fields):
    with pytest.raises(ValueError, match="use_situation is False: set predict_situation to False"):
        SQA3DWithLLMBlockModel(SQA3DWithLLMBlockConfig(use_situation=False, **fields))
