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
from mmlska.ops.depthwise_cascade.schedule import plan, plan_back

MAPS = ('x', 'y', 'g', 'gx')
PARAMETERS = ('w1', 'b1', 'w2', 'b2', 'wa', 'ba', 'wa_again', 'ba_again')
# Those that a march without a convolution along the other axis has not.
ABSENT = PARAMETERS[3:]


def constants_of(kernel, step, dtype):
    """What is known when a march over a map of 64 channels is compiled."""
    march = step.march
    back = 'g' in kernel.arg_names
    kept = march.kept_backward(True, True) if back else march.kept_forward()
    lines, channels = triton_kernels.tile_shape(64, kept, dtype, 'cuda')
    k1, d1, k2, d2 = triton_kernels._sizes(march)
    across = march.across
    biased, _, _, before, own, after = step.constants
    return dict(
        K1=k1,
        D1=d1,
        K2=k2,
        D2=d2,
        KA=across.size if across else 0,
        DA=across.dilation if across else 1,
        B2=biased,
        FOR_INPUT=True,
        FOR_WEIGHTS=True,
        BEFORE=before,
        COLUMNS=own,
        AFTER=after,
        LINES=lines,
        CHANNELS=channels,
        AHEAD=triton_kernels.AHEAD_BACK if back else triton_kernels.AHEAD,
        DTYPE=triton_kernels.SUMS[torch.float32],
        **({} if across else dict.fromkeys(ABSENT)),
    )


def compile_march(kernel, step, dtype, capability):
    types = dict.fromkeys((*PARAMETERS, 'partial'), torch.float32) | dict.fromkeys(MAPS, dtype)
    options = triton_kernels.OPTIONS
    if 'g' in kernel.arg_names:
        options = triton_kernels.options_back(step.march.kept_backward(True, True), dtype)
    constants = constants_of(kernel, step, dtype)
    return compile_kernel(kernel, types, constants, capability, options)


def steps_of(kernel_size):
    """One for each march of LSKA with all gradients, in the order of the marches."""
    marches = plan(*shapes('LSKA', kernel_size))
    back = plan_back(marches, (True,) * 4, (True,) * 9)
    return {step.map: step for step in reversed(back.steps) if step.for_weights}


def narrow_loads(compiled):
    """Number of loads of a single value of half precision."""
    return len(re.findall(r'ld\.global\S*[a-z]16\b', compiled.asm['ptx']))


def main(kernel_sizes):
    for capability, some in ((90, kernel_sizes), (80, kernel_sizes[:2])):
        for dtype in (torch.bfloat16, torch.float32):
            for kernel_size in some:
                for i, step in steps_of(kernel_size).items():
                    for name in ('_march_kernel', '_march_back_kernel'):
                        kernel = getattr(triton_kernels, name)
                        compiled = compile_march(kernel, step, dtype, capability)
                        labels = capability, NAMES[dtype], kernel_size, i, name
                        found = *resources(compiled), narrow_loads(compiled)
                        print(*labels, *found, sep='\t')


if __name__ == '__main__':
    main([int(argument) for argument in sys.argv[1:]])
