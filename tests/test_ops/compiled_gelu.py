"""Compile the kernels of the convolution with GELU for GPUs, without one; run as a script.

Prints a line for each: capability, dtype, layout, kernel, registers and bytes of the stack, where
values lie that found no register.
"""

import torch
from compiling import NAMES, compile_kernel, resources

from mmlska.ops.depthwise_gelu import triton_kernels

# The memory format, and the stride that is 1.
LAYOUTS = {
    'channels_last': (torch.channels_last, 's_channel'),
    'contiguous': (torch.contiguous_format, 's_column'),
}
# float16 takes what bfloat16 does.
CASES = [
    (90, dtype, layout)
    for dtype in (torch.bfloat16, torch.float32, torch.float64)
    for layout in LAYOUTS
]
CASES += [(80, dtype, 'channels_last') for dtype in (torch.bfloat16, torch.float32)]
MAPS = ('grad', 'x', 'bias', 'shift', 'out', 'for_inner')


def main():
    for capability, dtype, layout in CASES:
        memory_format, dense = LAYOUTS[layout]
        x = torch.empty(2, 256, 64, 64, dtype=dtype, memory_format=memory_format)
        columns, channels = triton_kernels.tile_of(x)
        tile = dict(ROWS=triton_kernels.ROWS, COLUMNS=columns, CHANNELS=channels)
        convolve, differentiate = (
            triton_kernels._convolve_kernel,
            triton_kernels._differentiate_kernel,
        )
        kernels = {
            'forward': (convolve, dict(tile, GELU=True)),
            'for input': (convolve, dict(tile, GELU=False, bias=None, shift=None)),
            'backward': (differentiate, dict(tile, ROWS=triton_kernels.GRADIENT_ROWS)),
        }
        sums = torch.float64 if dtype == torch.float64 else torch.float32
        types = {**dict.fromkeys(MAPS, dtype), 'taps': sums, 'partial': sums}
        for name, (kernel, constants) in kernels.items():
            constants = {**constants, dense: 1}
            is_back = kernel is differentiate
            options = triton_kernels.OPTIONS_BACK[dtype] if is_back else triton_kernels.OPTIONS
            compiled = compile_kernel(kernel, types, constants, capability, options)
            print(capability, NAMES[dtype], layout, name, *resources(compiled), sep='\t')


if __name__ == '__main__':
    main()
