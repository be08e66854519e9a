"""Initial weights of convolutions.

VAN: github.com/Visual-Attention-Network/VAN-Classification at e19779b, Apache-2.0. "XavierFill":
"Understanding the difficulty of training deep feedforward neural networks" (Glorot and Bengio,
AISTATS 2010). Written from the formulas.
"""

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


def init_xavier(*convs: nn.Conv2d) -> None:
    """Initialise convolutions as Caffe2's "XavierFill" does, which CATNet uses.

    Weights are drawn uniformly from ``(-b, b)`` with ``b = sqrt(3 / fan_in)``; biases start at
    zero.
    """
    for conv in convs:
        nn.init.kaiming_uniform_(conv.weight, a=1)
        nn.init.zeros_(conv.bias)


def init_zero(conv: nn.Conv2d) -> None:
    """Let a convolution start as zero, whatever its input."""
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
