# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
The SQA3D model with an LLM block.

Sources: github.com/SilongYong/SQA3D (`ScanQA`) for the heads and the losses; "Frozen Transformers in Language Models
Are Effective Visual Encoder Layers" (ICLR 2024), section C.6, for the block.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers.modeling_outputs import ModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_llm_block import LLMBlockConfig
from .configuration_sqa3d_with_llm_block import SQA3DWithLLMBlockConfig
from .modeling_llm_block import LLMBlock
from .pretrained_model import PreTrainedModelWithLLMBlock
from .sqa3d_host import (
    OBJECT_ATTENTION,
    SQA3DMLP,
    SQA3DAttention,
    SQA3DFusionLayer,
    SQA3DModel,
    SQA3DModelOutput,
    init_sqa3d_weights,
)
from .votenet import Detection, ObjectLabels, box_sizes, detection_losses


# transformers before 5.23 has no such argument and needs none, as it does not resolve negative indices.
_HIDDEN_STATES = OutputRecorder(SQA3DFusionLayer)
_HIDDEN_STATES.num_hidden_layers_key = "num_recorded_layers"


@dataclass
class SQA3DQuestionAnsweringOutput(ModelOutput):
    """
    Outputs of a model that answers questions about scenes.

    Args:
        loss (`torch.Tensor`, *optional*): the weighted sum of the losses below, those whose labels are given.
        logits (`torch.Tensor` of shape `(batch, num_labels)`): the answers.
        situation (`torch.Tensor` of shape `(batch, 7)`): the agent's position, and its rotation as a quaternion x, y,
            z, w, which is not normalised.
        answer_loss (`torch.Tensor`, *optional*): binary cross entropy, summed over the answers, or cross entropy.
        situation_loss (`torch.Tensor`, *optional*): squared errors of position and rotation.
        vote_loss (`torch.Tensor`, *optional*): the distance of votes to centres.
        objectness_loss (`torch.Tensor`, *optional*): cross entropy.
        box_loss (`torch.Tensor`, *optional*): the loss of centres, headings and sizes.
        class_loss (`torch.Tensor`, *optional*): cross entropy of the objects' classes.
        vote_xyz (`torch.Tensor` of shape `(batch, votes, 3)`): the votes.
        object_mask (`torch.BoolTensor` of shape `(batch, proposals)`): which visual tokens are objects.
        object_weights (`torch.Tensor` of shape `(batch, proposals, num_glimpses)`): their weights in the pooled one.
        objectness_logits (`torch.Tensor` of shape `(batch, proposals, 2)`): class 1 = object.
        class_logits (`torch.Tensor` of shape `(batch, proposals, num_object_classes)`): the object classes.
        box_centers (`torch.Tensor` of shape `(batch, proposals, 3)`): the centres of the boxes.
        box_sizes (`torch.Tensor` of shape `(batch, proposals, 3)`): the sizes of the boxes.
        hidden_states (`tuple[torch.Tensor]`, *optional*): see [`SQA3DWithLLMBlockModel`].
        attentions (`tuple[torch.Tensor]`, *optional*): see [`SQA3DWithLLMBlockModel`].
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    situation: torch.Tensor | None = None
    answer_loss: torch.Tensor | None = None
    situation_loss: torch.Tensor | None = None
    vote_loss: torch.Tensor | None = None
    objectness_loss: torch.Tensor | None = None
    box_loss: torch.Tensor | None = None
    class_loss: torch.Tensor | None = None
    vote_xyz: torch.Tensor | None = None
    object_mask: torch.Tensor | None = None
    object_weights: torch.Tensor | None = None
    objectness_logits: torch.Tensor | None = None
    class_logits: torch.Tensor | None = None
    box_centers: torch.Tensor | None = None
    box_sizes: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class SQA3DWithLLMBlockPreTrainedModel(PreTrainedModelWithLLMBlock):
    config: SQA3DWithLLMBlockConfig
    base_model_prefix = "sqa3d"
    main_input_name = "points"
    input_modalities = ["points", "text"]
    _supports_flash_attn = False  # objects and words are padded
    _supports_flex_attn = False
    _can_record_outputs = {
        "hidden_states": _HIDDEN_STATES,
        "attentions": OutputRecorder(SQA3DAttention, index=1, layer_name=OBJECT_ATTENTION),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_sqa3d_weights(module)

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Return valid inputs of one example, on the default device: 64 points, texts of 8 words."""
        config, inputs = self.config, {}
        if config.use_points:
            inputs["points"] = torch.zeros(1, 64, 3 + config.num_point_features)
        for name in ("situation", "question"):
            if config.vocab_size is None:
                inputs[f"{name}_embeds"] = torch.zeros(1, 8, config.word_embedding_size)
            else:
                inputs[f"{name}_ids"] = torch.zeros(1, 8, dtype=torch.long)
        if config.use_points and config.object_tokens == "annotated":
            inputs |= {"object_centers": torch.zeros(1, 4, 3), "object_mask": torch.ones(1, 4)}
        return inputs

    def _build(self, config: SQA3DWithLLMBlockConfig) -> None:
        config.complete_llm_block()
        self.sqa3d = SQA3DModel(config)
        self.llm_block = None if config.llm_block is None else LLMBlock(cast(LLMBlockConfig, config.llm_block))

    def get_input_embeddings(self) -> nn.Module:
        return self.sqa3d.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.sqa3d.set_input_embeddings(value)

    def _encode(
        self, inputs: dict[str, torch.Tensor | None], **kwargs: Any
    ) -> tuple[SQA3DModelOutput, torch.Tensor | None, Detection | None]:
        """Run the host and, among its layers of visual tokens, the block; then the poolers."""
        host = self.sqa3d
        situation, question = (
            tuple(inputs[f"{name}_{kind}"] for kind in ("embeds", "mask", "ids")) for name in ("situation", "question")
        )
        texts = host.encode_texts(situation, question)
        detection = objects = mask = None
        if self.config.use_points:
            detection = host.detect(inputs["points"], inputs["object_centers"], inputs["object_mask"])
            mask, objects = detection.proposal_mask, host.project_objects(detection.proposal_features)
            if (scenes := inputs["scene_index"]) is not None:
                mask, objects = mask[scenes], objects[scenes]
            # Of a scene without objects the block sees all proposals, as the host does.
            seen = (mask | ~mask.any(dim=1, keepdim=True)).to(objects.dtype)
            objects = self._run_layers(host.fusion_layers(texts, mask), objects, seen, **kwargs)
        pooled, weights = host.pool(texts, objects, mask)
        outputs = SQA3DModelOutput(last_hidden_state=objects, pooler_output=pooled, object_mask=mask)
        return outputs, weights, detection


class SQA3DWithLLMBlockModel(SQA3DWithLLMBlockPreTrainedModel):
    r"""
    The SQA3D model with an LLM block on the visual tokens, without its heads.

    Args:
        config ([`SQA3DWithLLMBlockConfig`]): the model's configuration.
    """

    def __init__(self, config: SQA3DWithLLMBlockConfig):
        super().__init__(config)
        self._build(config)
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        points: torch.Tensor | None = None,
        situation_embeds: torch.Tensor | None = None,
        situation_mask: torch.Tensor | None = None,
        question_embeds: torch.Tensor | None = None,
        question_mask: torch.Tensor | None = None,
        situation_ids: torch.Tensor | None = None,
        question_ids: torch.Tensor | None = None,
        object_centers: torch.Tensor | None = None,
        object_mask: torch.Tensor | None = None,
        scene_index: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SQA3DModelOutput:
        r"""
        Args:
            points (`torch.Tensor` of shape `(batch, points, 3 + num_point_features)`): x, y, z and the features.
            situation_embeds (`torch.Tensor` of shape `(batch, words, word_embedding_size)`): vectors of words. A model
                without `use_situation` leaves situations out.
            situation_mask (`torch.Tensor` of shape `(batch, words)`, *optional*): 1 = word, 0 = padding at the end.
            question_embeds (`torch.Tensor` of shape `(batch, words, word_embedding_size)`): vectors of words.
            question_mask (`torch.Tensor` of shape `(batch, words)`, *optional*): 1 = word, 0 = padding at the end.
            situation_ids (`torch.LongTensor` of shape `(batch, words)`, *optional*): numbers of words, in place of
                `situation_embeds`, where the model holds their vectors (`vocab_size`).
            question_ids (`torch.LongTensor` of shape `(batch, words)`, *optional*): in place of `question_embeds`.
            object_centers (`torch.Tensor` of shape `(batch, objects, 3)`, *optional*): with
                `object_tokens="annotated"`, the centres of the objects.
            object_mask (`torch.Tensor` of shape `(batch, objects)`, *optional*): 1 = object, 0 = padding.
            scene_index (`torch.LongTensor` of shape `(batch,)`, *optional*): the scene of each question. `points` and
                all that belongs to objects then has a row for each scene, which is encoded once for all its questions.
                By default, each question has its own.

        Returns:
            `SQA3DModelOutput`: with `output_hidden_states=True`, the block adds one hidden state at its position; with
            `output_attentions=True` (and eager attention), the LLM layer adds one attention.
        """
        inputs = {
            "points": points,
            "situation_embeds": situation_embeds,
            "situation_mask": situation_mask,
            "question_embeds": question_embeds,
            "question_mask": question_mask,
            "situation_ids": situation_ids,
            "question_ids": question_ids,
            "object_centers": object_centers,
            "object_mask": object_mask,
            "scene_index": scene_index,
        }
        return self._encode(inputs, **kwargs)[0]


class SQA3DWithLLMBlockForQuestionAnswering(SQA3DWithLLMBlockPreTrainedModel):
    r"""
    The SQA3D model with an LLM block, a classifier of answers and, with `predict_situation`, a head that finds the
    agent.

    Args:
        config ([`SQA3DWithLLMBlockConfig`]): the model's configuration; `num_labels` is the number of answers, and
            `id2label` their text.
    """

    def __init__(self, config: SQA3DWithLLMBlockConfig):
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)
        self._build(config)
        width, hidden = config.pooler_output_size, config.hidden_size
        parts = 2 + config.use_points if config.use_situation else 1
        self.classifier = SQA3DMLP(parts * width, hidden, self.num_labels, config.classifier_dropout)
        self.situation_head = None
        if config.predict_situation:
            self.situation_head = SQA3DMLP((parts - 1) * width, hidden, 7, config.hidden_dropout_prob)
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        points: torch.Tensor | None = None,
        situation_embeds: torch.Tensor | None = None,
        situation_mask: torch.Tensor | None = None,
        question_embeds: torch.Tensor | None = None,
        question_mask: torch.Tensor | None = None,
        situation_ids: torch.Tensor | None = None,
        question_ids: torch.Tensor | None = None,
        object_centers: torch.Tensor | None = None,
        object_mask: torch.Tensor | None = None,
        scene_index: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        situation_labels: torch.Tensor | None = None,
        object_classes: torch.Tensor | None = None,
        object_size_classes: torch.Tensor | None = None,
        object_size_residuals: torch.Tensor | None = None,
        object_heading_classes: torch.Tensor | None = None,
        object_heading_residuals: torch.Tensor | None = None,
        vote_labels: torch.Tensor | None = None,
        vote_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SQA3DQuestionAnsweringOutput:
        r"""
        Args:
            points (`torch.Tensor` of shape `(batch, points, 3 + num_point_features)`): x, y, z and the features.
            situation_embeds (`torch.Tensor` of shape `(batch, words, word_embedding_size)`): vectors of words. A model
                without `use_situation` leaves situations out.
            situation_mask (`torch.Tensor` of shape `(batch, words)`, *optional*): 1 = word, 0 = padding at the end.
            question_embeds (`torch.Tensor` of shape `(batch, words, word_embedding_size)`): vectors of words.
            question_mask (`torch.Tensor` of shape `(batch, words)`, *optional*): 1 = word, 0 = padding at the end.
            situation_ids (`torch.LongTensor` of shape `(batch, words)`, *optional*): numbers of words, in place of
                `situation_embeds`, where the model holds their vectors (`vocab_size`).
            question_ids (`torch.LongTensor` of shape `(batch, words)`, *optional*): in place of `question_embeds`.
            object_centers (`torch.Tensor` of shape `(batch, objects, 3)`, *optional*): the annotated centres; labels
                of the detector and, with `object_tokens="annotated"`, inputs.
            object_mask (`torch.Tensor` of shape `(batch, objects)`, *optional*): 1 = object, 0 = padding.
            scene_index (`torch.LongTensor` of shape `(batch,)`, *optional*): the scene of each question. `points` and
                all that belongs to objects then has a row for each scene, which is encoded once for all its questions.
                By default, each question has its own.
            labels (`torch.Tensor` of shape `(batch, num_labels)` or `(batch,)`, *optional*): the score of each answer,
                0 to 1, or the number of the answer, for plain cross entropy.
            situation_labels (`torch.Tensor` of shape `(batch, 7)`, *optional*): position, and rotation as a quaternion
                x, y, z, w.
            object_classes (`torch.LongTensor` of shape `(batch, objects)`, *optional*): the objects' classes.
            object_size_classes (`torch.LongTensor` of shape `(batch, objects)`, *optional*): the size classes; by
                default the objects' classes.
            object_size_residuals (`torch.Tensor` of shape `(batch, objects, 3)`, *optional*): size less mean size.
            object_heading_classes (`torch.LongTensor` of shape `(batch, objects)`, *optional*): bins; by default 0.
            object_heading_residuals (`torch.Tensor` of shape `(batch, objects)`, *optional*): by default 0.
            vote_labels (`torch.Tensor` of shape `(batch, points, 9)`, *optional*): from each point to the centres of
                up to three objects. With them, the detector's losses are computed.
            vote_mask (`torch.Tensor` of shape `(batch, points)`, *optional*): 1 = the point belongs to an object.

        Returns:
            [`SQA3DQuestionAnsweringOutput`]: with `loss` if any labels are given.
        """
        inputs = {
            "points": points,
            "situation_embeds": situation_embeds,
            "situation_mask": situation_mask,
            "question_embeds": question_embeds,
            "question_mask": question_mask,
            "situation_ids": situation_ids,
            "question_ids": question_ids,
            "object_centers": object_centers,
            "object_mask": object_mask,
            "scene_index": scene_index,
        }
        outputs, weights, detection = self._encode(inputs, **kwargs)
        logits, situation = self.answer(cast(torch.Tensor, outputs.pooler_output))
        losses: dict[str, torch.Tensor] = {}
        if labels is not None:
            losses["answer"] = self._answer_loss(logits, labels)
        if situation_labels is not None and situation is not None:
            losses["situation"] = self._situation_loss(situation, situation_labels)
        found: dict[str, torch.Tensor] = {}
        if detection is not None:
            mean_sizes = torch.tensor(self.config.mean_sizes, dtype=logits.dtype, device=logits.device)
            found = {
                "vote_xyz": detection.vote_xyz,
                "objectness_logits": detection.objectness_logits,
                "class_logits": detection.class_logits,
                "box_centers": detection.box_centers,
                "box_sizes": box_sizes(detection, mean_sizes),
            }
            if vote_labels is not None:
                required = {
                    "object_centers": object_centers,
                    "object_mask": object_mask,
                    "object_classes": object_classes,
                    "object_size_residuals": object_size_residuals,
                    "vote_labels": vote_labels,
                    "vote_mask": vote_mask,
                }
                annotations = make_object_labels(
                    required, object_size_classes, object_heading_classes, object_heading_residuals
                )
                losses |= detection_losses(detection, annotations, mean_sizes)
        # Trainer counts the entries of labels, here all answers of all questions.
        count = cast(Any, kwargs).get("num_items_in_batch")
        share = 1.0 if count is None or labels is None else labels.numel() / count
        return SQA3DQuestionAnsweringOutput(
            loss=self._weigh(losses) * share if losses else None,
            logits=logits,
            situation=situation,
            object_mask=outputs.object_mask,
            object_weights=weights,
            **cast(Any, {f"{name}_loss": loss for name, loss in losses.items()}),
            **cast(Any, found),
        )

    def _weigh(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        weighted = [getattr(self.config, f"{name}_loss_weight") * loss for name, loss in losses.items()]
        return self.config.loss_scale * torch.stack(weighted).sum()

    def answer(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the answers, and the agent's pose, for the pooled situation, question and objects."""
        situation = None
        if self.situation_head is not None:
            situation_part, _, *objects = pooled.split(self.config.pooler_output_size, dim=-1)
            situation = self.situation_head(torch.cat([situation_part, *objects], dim=-1))
        return self.classifier(pooled), situation

    def _answer_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if labels.shape == logits.shape:
            return answer_losses(logits, labels, self.config.problem_type).mean()
        if labels.shape != logits.shape[:1]:
            raise ValueError(
                f"labels has the shape {tuple(labels.shape)}; it must be (batch, num_labels) = {tuple(logits.shape)}, "
                f"with a score of each answer, or ({len(logits)},), with the number of the answer."
            )
        return nn.functional.cross_entropy(logits, labels)

    def _situation_loss(self, situation: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if labels.shape != situation.shape:
            raise ValueError(
                f"situation_labels has the shape {tuple(labels.shape)}; it must be {tuple(situation.shape)}: x, y, z "
                "and a quaternion x, y, z, w."
            )
        labels = labels.to(situation.dtype)
        position = nn.functional.mse_loss(situation[:, :3], labels[:, :3])
        return position + nn.functional.mse_loss(situation[:, 3:], labels[:, 3:])


def answer_losses(logits: torch.Tensor, scores: torch.Tensor, problem_type: str | None) -> torch.Tensor:
    """Return the loss of each question, `(batch,)`, by the scores of its answers, `(batch, num_labels)`."""
    scores = scores.to(logits.dtype)
    if problem_type == "single_label_classification":
        shares = scores / scores.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(logits.dtype).tiny)
        return -(shares * logits.log_softmax(dim=-1)).sum(dim=-1)
    return nn.functional.binary_cross_entropy_with_logits(logits, scores, reduction="none").sum(dim=-1)


def make_object_labels(
    required: dict[str, torch.Tensor | None],
    size_classes: torch.Tensor | None,
    heading_classes: torch.Tensor | None,
    heading_residuals: torch.Tensor | None,
) -> ObjectLabels:
    """Return the labels of the detector: the required ones, and the others or their defaults."""
    if missing := [name for name, tensor in required.items() if tensor is None]:
        raise ValueError(f"vote_labels are given, so the detector's losses need {' and '.join(missing)}, too.")
    tensors = cast(dict[str, torch.Tensor], required)
    classes, mask = tensors["object_classes"], tensors["object_mask"]
    return ObjectLabels(
        centers=tensors["object_centers"],
        mask=mask,
        classes=classes,
        size_classes=classes if size_classes is None else size_classes,
        size_residuals=tensors["object_size_residuals"],
        heading_classes=torch.zeros_like(classes) if heading_classes is None else heading_classes,
        heading_residuals=torch.zeros_like(mask) if heading_residuals is None else heading_residuals,
        votes=tensors["vote_labels"],
        vote_mask=tensors["vote_mask"],
    )


__all__ = [
    "SQA3DQuestionAnsweringOutput",
    "SQA3DWithLLMBlockForQuestionAnswering",
    "SQA3DWithLLMBlockModel",
    "SQA3DWithLLMBlockPreTrainedModel",
    "answer_losses",
]
