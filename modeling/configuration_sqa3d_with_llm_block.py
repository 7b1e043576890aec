# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the SQA3D model with an LLM block."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_llm_block import LLMBlockConfig, WithLLMBlockConfigMixin, with_value_errors


# The mean size of each of ScanNet's 18 classes (`scannet_reference_means.npz` of the published code), in metres.
SCANNET_MEAN_SIZES = [
    [0.7750491, 0.94897728, 0.96542059],  # cabinet
    [1.86903267, 1.83214712, 1.19222992],  # bed
    [0.61214778, 0.61928731, 0.70480848],  # chair
    [1.44113898, 1.60452036, 0.83652295],  # sofa
    [1.04780726, 1.20164188, 0.63457007],  # table
    [0.56101232, 0.60847217, 1.71950401],  # door
    [1.07894895, 0.82033996, 1.16921199],  # window
    [0.84171092, 1.35047945, 1.6898925],  # bookshelf
    [0.23051737, 0.47640499, 0.56569256],  # picture
    [1.45484899, 1.97119895, 0.2864328],  # counter
    [1.07858031, 1.53705113, 0.86501906],  # desk
    [1.43119644, 0.76923111, 1.64982673],  # curtain
    [0.62969194, 0.70871287, 1.31433587],  # refrigerator
    [0.43925034, 0.41569594, 1.70002748],  # shower curtain
    [0.58504462, 0.57878438, 0.72029611],  # toilet
    [0.51158693, 0.50960673, 0.3128736],  # sink
    [1.17320759, 1.0598714, 0.51812528],  # bathtub
    [0.43294385, 0.51933507, 0.48437456],  # others
]
LEVELS = ("num_samples", "num_neighbors", "radii", "point_channels")


@with_value_errors
@strict
class SQA3DWithLLMBlockConfig(WithLLMBlockConfigMixin, PreTrainedConfig):
    r"""
    Configuration of a [`SQA3DWithLLMBlockModel`]: a VoteNet, whose object proposals attend to the words of a situation
    and of a question. The defaults are those of the code of "SQA3D: Situated Question Answering in 3D Scenes" (ICLR
    2023, its "ScanQA" model); the frozen-LLM paper has `hidden_size=768`. `use_situation=False` is the model of
    "ScanQA: 3D Question Answering for Spatial Scene Understanding" (CVPR 2022).

    Args:
        num_point_features (`int`, *optional*, defaults to 4):
            Features of a point besides x, y and z: colour (3) and height.
        num_samples (`list[int]`, *optional*, defaults to `[2048, 1024, 512, 256]`):
            Number of points that each level of the PointNet++ samples from the level before.
        num_neighbors (`list[int]`, *optional*, defaults to `[64, 32, 16, 16]`):
            Number of neighbours of a point in each level.
        radii (`list[float]`, *optional*, defaults to `[0.2, 0.4, 0.8, 1.2]`):
            Radius of the neighbourhoods in each level, in metres.
        point_channels (`list[list[int]]`, *optional*):
            Widths of the layers of each level; by default `[64, 64, 128]`, then `[128, 128, 256]` three times.
        propagation_channels (`list[list[int]]`, *optional*):
            Widths of the layers that propagate features back to the third and to the second level; by default `[256,
            256]` for both. The last one is the width of a seed.
        vote_factor (`int`, *optional*, defaults to 1):
            Number of votes of a seed.
        num_proposals (`int`, *optional*, defaults to 256):
            Number of proposals, which are the visual tokens.
        vote_radius (`float`, *optional*, defaults to 0.3):
            Radius in which votes are aggregated to a proposal, in metres.
        vote_num_neighbors (`int`, *optional*, defaults to 16):
            Number of votes of a proposal.
        proposal_size (`int`, *optional*, defaults to 128):
            Number of features of a proposal.
        normalize_proposals (`bool`, *optional*, defaults to `False`):
            Whether a batch norm standardises the features of proposals before they become visual tokens (ours: the
            published network projects the maxima of the votes as they are).
        num_object_classes (`int`, *optional*, defaults to 18):
            Number of object classes.
        num_heading_bins (`int`, *optional*, defaults to 1):
            Number of bins of a box's heading; ScanNet's boxes have none.
        mean_sizes (`list[list[float]]`, *optional*):
            The mean size of the boxes of each size class; by default those of ScanNet's 18 classes.
        object_tokens (`"predicted"` or `"annotated"`, *optional*, defaults to `"predicted"`):
            Where the visual tokens come from: the proposals of the detector, or votes aggregated at the annotated
            centres of objects (`object_centers`), in training and in evaluation. Results of the two are not
            comparable.
        use_points (`bool`, *optional*, defaults to `True`):
            Whether the model sees the scene; without it, it answers by the texts alone.
        use_situation (`bool`, *optional*, defaults to `True`):
            Whether the model reads a situation. Without it, it is ScanQA's model: all layers of the visual tokens
            attend to the question, and the answer depends on the sum of the pooled question and objects, normalised.
        vocab_size (`int`, *optional*):
            Number of words whose vectors the model holds; by default it is given the vectors of words.
        word_embedding_size (`int`, *optional*, defaults to 300):
            Size of the vectors of words.
        num_lstm_layers (`int`, *optional*, defaults to 1):
            Number of layers of the LSTM that encodes both texts.
        bidirectional_lstm (`bool`, *optional*, defaults to `False`):
            Whether the LSTM runs in both directions.
        hidden_size (`int`, *optional*, defaults to 256):
            Width of the tokens of texts and objects, and of the LSTM in each direction.
        num_hidden_layers (`int`, *optional*, defaults to 4):
            Number of layers of the visual tokens: the first half attends to the situation, the second half to the
            question. Each text has half as many layers of its own. Without a situation, all attend to the question,
            which has as many layers of its own.
        num_attention_heads (`int`, *optional*, defaults to 8):
            Number of attention heads.
        intermediate_size (`int`, *optional*):
            Width of the feed-forward networks; by default four times `hidden_size`.
        pooler_hidden_size (`int`, *optional*, defaults to 256):
            Hidden width of the networks that weigh tokens when they are pooled.
        num_glimpses (`int`, *optional*, defaults to 1):
            Number of weighted sums of tokens.
        pooler_output_size (`int`, *optional*, defaults to 512):
            Width of the pooled situation, question and objects.
        predict_situation (`bool`, *optional*, defaults to `True`):
            Whether a second head predicts the agent's position and rotation.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.1):
            Dropout of the layers, their attention and the situation head.
        word_dropout_prob (`float`, *optional*, defaults to 0.3):
            Dropout of the vectors of words.
        classifier_dropout (`float`, *optional*, defaults to 0.3):
            Dropout of the answer head.
        vote_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the loss of the votes.
        objectness_loss_weight (`float`, *optional*, defaults to 0.5):
            Weight of the loss of the objectness of proposals.
        box_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the loss of boxes.
        class_loss_weight (`float`, *optional*, defaults to 0.1):
            Weight of the loss of the objects' classes.
        situation_loss_weight (`float`, *optional*, defaults to 0.1):
            Weight of the loss of the agent's pose.
        answer_loss_weight (`float`, *optional*, defaults to 0.1):
            Weight of the loss of the answers.
        loss_scale (`float`, *optional*, defaults to 10.0):
            Factor of the sum of the losses.
        layer_norm_eps (`float`, *optional*, defaults to 1e-06):
            Epsilon of the norms, which is added to the standard deviation.
        problem_type (`str`, *optional*):
            With `"single_label_classification"`, the loss is the cross entropy of all answers, of which the right ones
            have shares by their scores; otherwise, as published, the binary cross entropy of each answer.
        llm_block (`LLMBlockConfig` or `dict`, *optional*):
            The LLM block on the visual tokens; by default after they have attended to the question. `None` is the
            plain model, the baseline of every comparison.

    Raises:
        `ValueError`: for lists of another length, if `llm_block.position` is not one of -1, 0, …,
            `num_hidden_layers`, if `num_hidden_layers` is odd with a situation, `hidden_size` is not a multiple of
            `num_attention_heads`, for a block without `use_points`, or for a model without a situation that predicts
            one, or without `use_points`.

    Example:

    ```python
    >>> from hf_frozen_llm import LLMBlockConfig, SQA3DWithLLMBlockConfig, SQA3DWithLLMBlockForQuestionAnswering

    >>> config = SQA3DWithLLMBlockConfig(
    ...     num_labels=707, llm_block=LLMBlockConfig(llm_name_or_path="HuggingFaceTB/SmolLM2-135M", layer_index=-1)
    ... )
    >>> model = SQA3DWithLLMBlockForQuestionAnswering(config)
    ```"""

    model_type = "sqa3d_with_llm_block"

    num_point_features: int = 4
    num_samples: list[int] | None = None
    num_neighbors: list[int] | None = None
    radii: list[float] | list[int] | None = None
    point_channels: list[list[int]] | None = None
    propagation_channels: list[list[int]] | None = None
    vote_factor: int = 1
    num_proposals: int = 256
    vote_radius: float | int = 0.3
    vote_num_neighbors: int = 16
    proposal_size: int = 128
    normalize_proposals: bool = False
    num_object_classes: int = 18
    num_heading_bins: int = 1
    mean_sizes: list[list[float]] | None = None
    object_tokens: Literal["predicted", "annotated"] = "predicted"
    use_points: bool = True
    use_situation: bool = True
    vocab_size: int | None = None
    word_embedding_size: int = 300
    num_lstm_layers: int = 1
    bidirectional_lstm: bool = False
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    intermediate_size: int | None = None
    pooler_hidden_size: int = 256
    num_glimpses: int = 1
    pooler_output_size: int = 512
    predict_situation: bool = True
    hidden_dropout_prob: float = 0.1
    word_dropout_prob: float = 0.3
    classifier_dropout: float = 0.3
    vote_loss_weight: float = 1.0
    objectness_loss_weight: float = 0.5
    box_loss_weight: float = 1.0
    class_loss_weight: float = 0.1
    situation_loss_weight: float = 0.1
    answer_loss_weight: float = 0.1
    loss_scale: float = 10.0
    layer_norm_eps: float = 1e-6
    llm_block: LLMBlockConfig | dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        defaults: dict[str, Any] = {
            "num_samples": [2048, 1024, 512, 256],
            "num_neighbors": [64, 32, 16, 16],
            "radii": [0.2, 0.4, 0.8, 1.2],
            "point_channels": [[64, 64, 128], [128, 128, 256], [128, 128, 256], [128, 128, 256]],
            "propagation_channels": [[256, 256], [256, 256]],
            "mean_sizes": [list(size) for size in SCANNET_MEAN_SIZES],
            "intermediate_size": 4 * self.hidden_size,
        }
        for name, default in defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, default)
        super().__post_init__(**kwargs)

    def complete_llm_block(self) -> None:
        super().complete_llm_block()
        self.check_position()
        for name in LEVELS:
            if len(getattr(self, name)) != 4:
                raise ValueError(f"{name} is {getattr(self, name)}; the PointNet++ has four levels: give 4 entries.")
        if not self.use_situation and (self.predict_situation or not self.use_points):
            raise ValueError(
                "use_situation is False: set predict_situation to False, too, and use_points to True, as ScanQA's "
                "model has them."
            )
        if self.use_situation and (self.num_hidden_layers < 2 or self.num_hidden_layers % 2):
            raise ValueError(
                f"num_hidden_layers is {self.num_hidden_layers}; it must be even: half of the layers attend to the "
                "situation, half to the question."
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) is not a multiple of num_attention_heads "
                f"({self.num_attention_heads})."
            )
        if self.llm_block is not None and not self.use_points:
            raise ValueError(
                "use_points is False, and the LLM block stands on the visual tokens: set llm_block to None."
            )


__all__ = ["SQA3DWithLLMBlockConfig"]
