"""Compile the kernels of the convolution with GELU for GPUs, without one; run as a script.

Prints a line for each: capability, dtype, layout, kernel, registers and bytes of the stack, where
values lie that found no register.
"""

import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mmlska.ops.depthwise_gelu import triton_kernels

NAMES = {
    torch.float32: 'fp32',
    torch.bfloat16: 'bf16',
    torch.float16: 'fp16',
    torch.float64: 'fp64',
}
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
CUOBJDUMP = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / 'cuobjdump'


def compile_kernel(kernel, dtype, dense, constants, capability):
    """Compile as for a large map whose sizes are divisible by 16."""
    sums = 'fp64' if dtype == torch.float64 else 'fp32'
    signature, values, attributes = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        fixed = {**constants, dense: 1}
        if name in fixed:
            signature[name], values[(place,)] = 'constexpr', fixed[name]
        elif name in ('grad', 'x', 'bias', 'out', 'for_inner', 'taps', 'partial'):
            signature[name] = '*' + (sums if name in ('taps', 'partial') else NAMES[dtype])
        else:
            signature[name] = 'i32'
        if signature[name] != 'constexpr' and name not in ('height', 'width', 'stacked'):
            attributes[(place,)] = [['tt.divisibility', 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    return triton.compile(source, target=GPUTarget('cuda', capability, 32))


def resources(compiled):
    """Registers of a thread, and bytes of its stack."""
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(compiled.asm['cubin'])
        file.flush()
        command = [CUOBJDUMP, '-res-usage', file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    registers, stack, local = re.search(
        r'REG:(\d+) STACK:(\d+).* LOCAL:(\d+)', done.stdout
    ).groups()
    return int(registers), int(stack) + int(local)


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
            'for input': (convolve, dict(tile, GELU=False, bias=None)),
            'backward': (differentiate, dict(tile, ROWS=triton_kernels.GRADIENT_ROWS)),
        }
        for name, (kernel, constants) in kernels.items():
            found = resources(compile_kernel(kernel, dtype, dense, constants, capability))
            print(capability, NAMES[dtype], layout, name, *found, sep='\t')


if __name__ == '__main__':
    main()
