"""Compile the kernels of the cascade for GPUs, without one; run as a script.

The arguments are kernel sizes of LSKA; the older GPU gets two of them. Prints a line for each:
capability, dtype, kernel size, march, kernel, registers, bytes of the stack, where values lie that
found no register, and the number of loads of 16 bits.
"""

import re
import sys

import torch
from cascades import shapes
from compiling import NAMES, compile_kernel, resources

from mmlska.ops.depthwise_cascade import triton_kernels
from mmlska.ops.depthwise_cascade.schedule import plan

MAPS = ('x', 'y', 'g', 'gx')
PARAMETERS = ('w1', 'b1', 'w2', 'b2', 'wa', 'ba')


def constants_of(kernel, march, dtype):
    """What is known when a march over a map of 64 channels is compiled."""
    back = 'g' in kernel.arg_names
    kept = march.kept_backward(True, True) if back else march.kept_forward()
    lines, channels = triton_kernels.tile_shape(64, kept, dtype, 'cuda')
    k1, d1, k2, d2 = triton_kernels._sizes(march)
    across = march.across
    return dict(
        K1=k1,
        D1=d1,
        K2=k2,
        D2=d2,
        KA=across.size if across else 0,
        DA=across.dilation if across else 1,
        FOR_INPUT=True,
        FOR_WEIGHTS=True,
        LINES=lines,
        CHANNELS=channels,
        AHEAD=triton_kernels.AHEAD_BACK if back else triton_kernels.AHEAD,
        DTYPE=triton_kernels.SUMS[torch.float32],
        **({} if across else dict(wa=None, ba=None, b2=None)),
    )


def compile_march(kernel, march, dtype, capability):
    types = dict.fromkeys((*PARAMETERS, 'partial'), torch.float32) | dict.fromkeys(MAPS, dtype)
    options = triton_kernels.OPTIONS
    if 'g' in kernel.arg_names:
        options = triton_kernels.options_back(march.kept_backward(True, True), dtype)
    return compile_kernel(kernel, types, constants_of(kernel, march, dtype), capability, options)


def narrow_loads(compiled):
    """Number of loads of a single value of half precision."""
    return len(re.findall(r'ld\.global\S*[a-z]16\b', compiled.asm['ptx']))


def main(kernel_sizes):
    for capability, some in ((90, kernel_sizes), (80, kernel_sizes[:2])):
        for dtype in (torch.bfloat16, torch.float32):
            for kernel_size in some:
                for i, march in enumerate(plan(*shapes('LSKA', kernel_size))):
                    for name in ('_march_kernel', '_march_back_kernel'):
                        kernel = getattr(triton_kernels, name)
                        compiled = compile_march(kernel, march, dtype, capability)
                        labels = capability, NAMES[dtype], kernel_size, i, name
                        found = *resources(compiled), narrow_loads(compiled)
                        print(*labels, *found, sep='\t')


if __name__ == '__main__':
    main([int(argument) for argument in sys.argv[1:]])
