"""How fresh weights are drawn."""

import math

from torch import nn

from srattn.layers.reduction import StridedReduction
from srattn.layers.volume import VolumeReduction


def init_weights(module: nn.Module) -> None:
    """As published: linear maps truncated normal 0.02, convolutions (the reduction is one) normal by fan-out."""
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    else:
        if isinstance(module, StridedReduction | VolumeReduction):
            nn.init.normal_(module.proj.weight, 0.0, math.sqrt(2.0 / module.proj.in_features))
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
