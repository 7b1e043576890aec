# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Convert checkpoints of the paper's released code (github.com/ziqipang/LM4VisualEncoding) and of its hosts, such as
METER and SQA3D, to our models.
"""

from pathlib import Path
from typing import Any

from hf_frozen_llm.conversion.checkpoint import (
    ConvertedCheckpoint,
    StateDict,
    build_model,
    convert_state_dict,
    load_state_dict,
    split_pretraining,
)
from hf_frozen_llm.conversion.forecast_mae import FORECAST_MAE
from hf_frozen_llm.conversion.meter import METER
from hf_frozen_llm.conversion.mmtransformer import MMTRANSFORMER
from hf_frozen_llm.conversion.point_bert import POINT_BERT
from hf_frozen_llm.conversion.sqa3d import SQA3D
from hf_frozen_llm.conversion.videomae import VIDEOMAE
from hf_frozen_llm.conversion.vit import VIT
from hf_frozen_llm.modeling.pretrained_model import PreTrainedModelWithLLMBlock
from hf_frozen_llm.tasks import MODELS


ARCHITECTURES = (VIT, VIDEOMAE, POINT_BERT, METER, MMTRANSFORMER, FORECAST_MAE, SQA3D)


def convert_released_checkpoint(
    checkpoint: str | Path | StateDict, task: str, use_ema: bool = False, **config: Any
) -> PreTrainedModelWithLLMBlock:
    """
    Convert a checkpoint of the released code, or a published METER, mmTransformer, Forecast-MAE or
    SQA3D, to a model of this package.

    Args:
        checkpoint (`str`, `Path` or `dict`):
            The `.pth` or `.ckpt` file, or its state dictionary. No code in it is executed.
        task (`str`):
            The task that the model is for, by the name that recipes use; `"feature-extraction"` for a METER or an
            SQA3D without a head.
        use_ema (`bool`, *optional*, defaults to `False`):
            Whether to convert the averaged weights (`model_ema`).
        config:
            Fields of the model's configuration that the tensors do not show: `num_attention_heads` of the host;
            `llm_num_attention_heads` if the checkpoint has an LLM layer; `num_frames` and `image_size` of a VideoMAE;
            `num_groups` and `group_size` of a Point-BERT; `vision_num_attention_heads` and `text_num_attention_heads`
            of a METER. An SQA3D's fields have the published values by default: `num_attention_heads`, `num_samples`,
            `num_neighbors`, `radii`, `num_proposals`, `vote_radius`, `vote_num_neighbors`, `num_heading_bins` and
            `mean_sizes`. Other fields are optional, among them `layer_index` (by default that of the released code: 15
            for VideoMAE, otherwise 31), `llm_name_or_path`, `llm_rms_norm_eps` (1e-6) and, of an mmTransformer,
            `num_social_decoder_layers`, without which its social decoder is left out.

    Returns:
        `PreTrainedModelWithLLMBlock`: the model in evaluation mode; saved folders include the LLM layer.

    Raises:
        `FileNotFoundError`: if the file does not exist.
        `ValueError`: if the file cannot be read, belongs to another task, lacks tensors or has unknown ones, or if a
            field must be given.
    """
    return build_model(read_released_checkpoint(checkpoint, task, use_ema, **config))


def convert_to_folder(
    checkpoint: str | Path | StateDict, task: str, output: str | Path, use_ema: bool = False, **config: Any
) -> str:
    """
    Convert a checkpoint like [`convert_released_checkpoint`] and save the model in `output`.

    A conversion that fails writes nothing.

    Returns:
        `str`: a line for every tensor of the checkpoint.

    Raises:
        `FileExistsError`: if `output` is neither new nor an empty folder.
    """
    if Path(output).exists() and (not Path(output).is_dir() or any(Path(output).iterdir())):
        raise FileExistsError(f"{output} exists already; convert into a new or empty folder.")
    converted = read_released_checkpoint(checkpoint, task, use_ema, **config)
    build_model(converted).save_pretrained(output)
    return converted.describe()


def read_released_checkpoint(
    checkpoint: str | Path | StateDict, task: str, use_ema: bool = False, **config: Any
) -> ConvertedCheckpoint:
    """Convert the tensors and the configuration like [`convert_released_checkpoint`], but build no model."""
    state = load_state_dict(checkpoint, use_ema)
    for architecture in ARCHITECTURES:
        name, ndim = architecture.key_tensor
        tensors, left_out = split_pretraining(state, architecture)
        if name in tensors and tensors[name].ndim == ndim:
            model_class = find_model_class(task, architecture.model_type)
            return convert_state_dict(tensors, left_out, architecture, model_class, config)
    known = ", ".join(f"{each.key_tensor[0]} ({each.key_tensor[1]} dimensions, {each.name})" for each in ARCHITECTURES)
    raise ValueError(
        f"The checkpoint belongs to no released model: it has none of {known}. It begins with {list(state)[:3]}."
    )


def find_model_class(task: str, model_type: str) -> type[PreTrainedModelWithLLMBlock]:
    """Return the class of a model type for a task."""
    if task not in MODELS:
        raise ValueError(f"task is {task!r}; it must be one of {tuple(MODELS)}.")
    if model_type not in MODELS[task]:
        fitting = [name for name, models in MODELS.items() if model_type in models]
        raise ValueError(
            f"The checkpoint is of {' or '.join(fitting)}, not of {task}. "
            f"Convert it with task={' or '.join(map(repr, fitting))}."
        )
    return MODELS[task][model_type]
