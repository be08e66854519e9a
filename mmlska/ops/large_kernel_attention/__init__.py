"""Large-kernel attention: a map times the mix, by a 1x1 convolution, of its depth-wise cascade.

- ``operation.py``: the function that layers call, and the choice of a form.
- ``reference.py``: PyTorch's own operations around the cascade; the truth that the other equals. On
  a GPU it is what runs, with the cascade in whichever form is chosen for that.
- ``onednn.py``: the CPU form, in which cascade, 1x1 and gate share their maps.
"""

from .operation import large_kernel_attention

__all__ = ['large_kernel_attention']
