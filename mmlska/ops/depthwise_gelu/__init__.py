"""The forms of a 3x3 depth-wise convolution that keeps the size of the map, followed by GELU.

- ``reference.py``: PyTorch's own operations; the truth that the other form equals.
- ``triton_op.py``: the GPU form and the operator that compilers see, by the kernels in
  ``triton_kernels.py``.

A form is chosen in ``mmlska/ops/dispatch.py``; what it must offer stands in ``mmlska/ops/form.py``.
"""
