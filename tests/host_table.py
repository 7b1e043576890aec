# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
The table of hosts in docs/use_your_own_host.md: the results of the marked tests for each host.

A test counts for one host and one column. The host is the marker's, the value of the test's parameter
`host`, or the class attribute `host` of a unittest class: a key of `rows`, which are `tiny_hosts.HOSTS` and
`"vit_class"`.

```python
@pytest.mark.host_table("loads")
@pytest.mark.parametrize("host", HOSTS)
def test_published_checkpoint_loads(host, save_weights): ...


@pytest.mark.host_table("loads", host="vit_class")
def test_from_a_published_vit(): ...


@pytest.mark.host_table("upstream tests")
class Dinov2Test(VisionWithLLMBlockSuite, unittest.TestCase):
    host = "dinov2"
```
"""

from result_table import ResultTable


HOST_TABLE = ResultTable(
    "host",
    columns=["loads", "equals AutoModel", "upstream tests", "compile", "export", "ONNX", "LoRA", "DDP"],
    rows={
        "vit_class": "ViT, by `ViTWithLLMBlockForImageClassification`",
        "vit": "ViT (`ViTModel`)",
        "deit": "DeiT (`DeiTModel`)",
        "dinov2": "DINOv2 (`Dinov2Model`)",
        "dinov2_with_registers": "DINOv2 with registers (`Dinov2WithRegistersModel`)",
        "dinov3_vit": "DINOv3 (`DINOv3ViTModel`)",
        "beit": "BEiT (`BeitModel`)",
        "beit_cls": "BEiT with `use_mean_pooling=False` (`BeitModel`)",
        "swin": "Swin (`SwinModel`)",
        "siglip": "SigLIP (`SiglipVisionModel`)",
        "clip": "CLIP (`CLIPVisionModel`)",
        "ijepa": "I-JEPA (`IJepaModel`)",
        "data2vec_vision": "Data2Vec with `use_mean_pooling=False` (`Data2VecVisionModel`)",
        "data2vec_vision_mean": "Data2Vec (`Data2VecVisionModel`)",
        "vit_msn": "ViT-MSN (`ViTMSNModel`)",
        "vivit": "ViViT (`VivitModel`)",
        "videomae": "VideoMAE with `use_mean_pooling=False` (`VideoMAEModel`)",
    },
)
