"""Compile the kernels of the residual sum for GPUs, without one; run as a script.

Prints a line for each: capability, dtype of the branch, layout, kernel, registers and bytes of the
stack, where values lie that found no register.
"""

import torch
from compiling import NAMES, compile_kernel, resources

from mmlska.ops.residual import triton_kernels

# The memory format, and the stride that is 1.
LAYOUTS = {
    'channels_last': (torch.channels_last, 's_channel'),
    'contiguous': (torch.contiguous_format, 's_position'),
}


def main():
    for capability in (90, 80):
        for dtype in (torch.bfloat16, torch.float32):
            for layout, (memory_format, dense) in LAYOUTS.items():
                branch = torch.empty(2, 256, 64, 64, dtype=dtype, memory_format=memory_format)
                positions, channels = triton_kernels.tile_of(branch)
                constants = {dense: 1, 'POSITIONS': positions, 'CHANNELS': channels}
                constants['DTYPE'] = triton_kernels.SUMS[torch.float32]
                types = dict.fromkeys(('x', 'out', 'grad', 'scale', 'mask', 'partial'), torch.float)
                types.update(branch=dtype, for_branch=dtype)
                for name in ('_add_kernel', '_differentiate_kernel'):
                    kernel = getattr(triton_kernels, name)
                    options = triton_kernels.OPTIONS
                    compiled = compile_kernel(kernel, types, constants, capability, options)
                    print(capability, NAMES[dtype], layout, name, *resources(compiled), sep='\t')


if __name__ == '__main__':
    main()
