# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Every type in which a GGUF file can store a tensor: read as `gguf` reads it, or refused by name."""

import numpy as np
import pytest
import torch

from hf_frozen_llm.modeling.checkpoint_files import LocalFile
from hf_frozen_llm.modeling.gguf_file import GGUFFile


gguf = pytest.importorskip("gguf")

KEY = "model.layers.0.mlp.down_proj.weight"
TYPES = list(gguf.GGMLQuantizationType)


def can(function, *arguments):
    try:
        function(*arguments)
    except NotImplementedError:
        return False
    return True


def blocks(kind, shape=(3, 512)):
    """The stored bytes of a tensor: quantised where gguf can, random blocks elsewhere."""
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    if can(gguf.quantize, values, kind):
        return gguf.quantize(values, kind).view(np.uint8)
    block_size, type_size = gguf.GGML_QUANT_SIZES[kind]
    stored = (*shape[:-1], shape[-1] // block_size * type_size)
    return np.random.default_rng(0).integers(0, 256, stored, dtype=np.uint8)


def write(path, data, kind, name="blk.0.ffn_down.weight"):
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GGUFFile(LocalFile(str(path)))


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_gguf_type(kind, tmp_path):
    """Random blocks may hold NaN scales; those compare equal too."""
    data = blocks(kind)
    file = write(tmp_path / "llm.gguf", data, kind)
    if not can(gguf.dequantize, data, kind):
        with pytest.raises(ValueError, match=rf"llm\.gguf stores {KEY} as {kind.name}, .*Use another quantisation"):
            file.read(KEY)
        return
    expected = torch.from_numpy(np.ascontiguousarray(gguf.dequantize(data, kind), dtype=np.float32))
    read = file.read(KEY)
    assert read.dtype == torch.float32 and read.shape == (3, 512)
    torch.testing.assert_close(read, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(64,), (2, 3, 64)])
def test_gguf_blocks_of_vectors_and_experts(shape, tmp_path):
    kind = gguf.GGMLQuantizationType.Q8_0
    data = blocks(kind, shape)
    read = write(tmp_path / "llm.gguf", data, kind).read(KEY)
    torch.testing.assert_close(read, torch.from_numpy(gguf.dequantize(data, kind)), rtol=0, atol=0)
