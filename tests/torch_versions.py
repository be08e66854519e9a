"""Which PyTorch a law needs beyond the oldest that the package promises."""

import pytest
import torch
from torch.torch_version import TorchVersion


def since(version: str, reason: str) -> pytest.MarkDecorator:
    """Skip under a PyTorch before this version, which itself cannot do it."""
    return pytest.mark.skipif(
        TorchVersion(torch.__version__) < version,
        reason=f'PyTorch {torch.__version__} is older than {version}: {reason}',
    )


compiles = since('2.4', 'its compiler and exporter do not take what layers ask of a call')
half_on_cpu = since('2.4', 'it has no float16 convolutions on the CPU')
