"""The forms of a cascade of depth-wise convolutions that keep the size of the map.

- ``reference.py``: PyTorch's own convolutions, one by one; the truth that the others equal.
- ``onednn.py``: the CPU form, which meets only the fast cases of oneDNN.
- ``triton_op.py``: the GPU form and the operator that compilers see. It computes by marches along
  the axes of the map: ``schedule.py`` plans them, ``triton_kernels.py`` holds their kernels.

A form is chosen in ``mmlska/ops/dispatch.py``; what it must offer stands in ``mmlska/ops/form.py``.
"""
