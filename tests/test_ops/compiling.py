"""Compile kernels for GPUs without one, and count what they take; for the scripts beside."""

import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

NAMES = {
    torch.float32: 'fp32',
    torch.bfloat16: 'bf16',
    torch.float16: 'fp16',
    torch.float64: 'fp64',
}
CUOBJDUMP = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / 'cuobjdump'


def compile_kernel(kernel, types, constants, capability, options):
    """Compile as for a large map whose sizes are divisible by 16.

    ``types`` has the dtypes behind pointers, ``constants`` what is known when it is compiled; all
    other arguments are integers.
    """
    signature, values, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        name = parameter.name
        if name in constants:
            signature[name], values[(place,)] = 'constexpr', constants[name]
            continue
        signature[name] = f'*{NAMES[types[name]]}' if name in types else 'i32'
        if not parameter.do_not_specialize:
            attributes[(place,)] = [['tt.divisibility', 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    return triton.compile(source, target=GPUTarget('cuda', capability, 32), options=options)


def resources(compiled):
    """Registers of a thread, and bytes of its stack."""
    text = _cuobjdump(compiled, '-res-usage')
    registers, stack, local = re.search(r'REG:(\d+) STACK:(\d+).* LOCAL:(\d+)', text).groups()
    return int(registers), int(stack) + int(local)


def instructions(compiled):
    """Number of machine instructions of the kernel."""
    return len(re.findall(r'^\s+/\*[0-9a-f]{4,}\*/\s', _cuobjdump(compiled, '-sass'), re.MULTILINE))


def _cuobjdump(compiled, flag):
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(compiled.asm['cubin'])
        file.flush()
        command = [CUOBJDUMP, flag, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
