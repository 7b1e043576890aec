# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""transformers' own model and configuration tests on the VideoMAE classes, with one LLM layer."""

import unittest

import torch
from upstream_suite import COMPOSITE, ConfigTester, ImageModelSuite, tiny_llm, with_reason

from hf_frozen_llm import (
    LLMBlockConfig,
    VideoMAEWithLLMBlockConfig,
    VideoMAEWithLLMBlockForVideoClassification,
    VideoMAEWithLLMBlockModel,
)


class VideoMAEWithLLMBlockModelTester:
    def __init__(self, parent: unittest.TestCase):
        self.parent = parent
        self.save_weights = True
        self.batch_size = 3
        self.num_frames = 4
        self.image_size = 16
        self.num_channels = 3
        self.hidden_size = 24
        self.num_attention_heads = 2
        # Upstream counts hidden states and attentions by it, and the block adds one of each.
        self.num_hidden_layers = 2
        self.seq_length = (self.num_frames // 2) * (self.image_size // 8) ** 2
        self.is_training = True

    def get_config(self) -> VideoMAEWithLLMBlockConfig:
        return VideoMAEWithLLMBlockConfig(
            image_size=self.image_size,
            patch_size=8,
            num_channels=self.num_channels,
            num_frames=self.num_frames,
            tubelet_size=2,
            hidden_size=self.hidden_size,
            intermediate_size=37,
            num_hidden_layers=self.num_hidden_layers - 1,
            num_attention_heads=self.num_attention_heads,
            num_labels=5,
            llm_block=LLMBlockConfig(llm_name_or_path=tiny_llm().name, save_weights=self.save_weights),
        )

    def prepare_config_and_inputs_for_common(self):
        size = (self.batch_size, self.num_frames, self.num_channels, self.image_size, self.image_size)
        return self.get_config(), {"pixel_values": torch.rand(size)}


class VideoMAEWithLLMBlockTest(ImageModelSuite, unittest.TestCase):
    all_model_classes = (VideoMAEWithLLMBlockModel, VideoMAEWithLLMBlockForVideoClassification)
    skipped = {
        **ImageModelSuite.skipped,
        **COMPOSITE,
        **with_reason(
            "transformers has no conversion for this model type",
            "test_can_load_from_already_mapped_keys test_reverse_loading_mapping",
        ),
    }

    def setUp(self):
        super().setUp()
        self.model_tester = VideoMAEWithLLMBlockModelTester(self)
        self.config_tester = ConfigTester(
            self,
            config_class=VideoMAEWithLLMBlockConfig,
            has_text_modality=False,
            common_properties=["hidden_size", "num_attention_heads", "num_hidden_layers"],
            hidden_size=24,
            num_attention_heads=2,
        )
