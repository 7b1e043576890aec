# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Grad-CAM by hand, with the interface of pytorch-grad-cam, whose import needs torchvision."""

import torch
from torch.nn import functional as F


class GradCAM:
    """Source: Selvaraju et al., "Grad-CAM" (ICCV 2017), equations 1 and 2, scaled to 0 to 1."""

    def __init__(self, model, target_layers, reshape_transform):
        self.model, (self.layer,), self.reshape = model.eval(), target_layers, reshape_transform

    def __enter__(self):
        self.tokens = []
        self.handle = self.layer.register_forward_hook(lambda module, inputs, output: self.tokens.append(output))
        return self

    def __exit__(self, *error):
        self.handle.remove()

    def __call__(self, input_tensor, targets):
        self.tokens.clear()
        outputs = self.model(input_tensor)
        loss = sum(target(output) for target, output in zip(targets, outputs))
        (gradient,) = torch.autograd.grad(loss, self.tokens[0])
        weights = self.reshape(gradient).mean((2, 3), keepdim=True)
        maps = (weights * self.reshape(self.tokens[0])).sum(1).clamp(min=0).detach()
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        maps = (maps - low) / (high - low + 1e-7)
        return F.interpolate(maps[:, None], input_tensor.shape[2:], mode="bilinear")[:, 0].numpy()
