from importlib.util import find_spec

import pytest
import torch


@pytest.fixture(autouse=True)
def rounding_of_a_gpu(monkeypatch):
    """Triton's interpreter cuts off what bfloat16 does not hold; a GPU rounds to nearest."""
    if torch.cuda.is_available() or find_spec('triton') is None:
        return
    import triton
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def convert_float(values, source, target, mode):
        if target != triton.language.bfloat16:
            return convert(values, source, target, mode)
        return torch.from_numpy(values).bfloat16().view(torch.int16).numpy()

    monkeypatch.setattr(interpreter, '_convert_float', convert_float)
