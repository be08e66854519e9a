import math

from torch import nn


def init_convs(*convs: nn.Conv2d) -> None:
    """Initialise convolutions as the official VAN and LSKA classification code does.

    Weights are drawn from ``N(0, 2 / fan_out)`` with ``fan_out = kernel_h * kernel_w *
    out_channels / groups``; biases start at zero.
    """
    for conv in convs:
        fan_out = math.prod(conv.kernel_size) * conv.out_channels // conv.groups
        nn.init.normal_(conv.weight, 0.0, math.sqrt(2.0 / fan_out))
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
