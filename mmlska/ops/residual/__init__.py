"""The forms of ``x + branch * (scale * mask)``: layer scale, drop path and residual sum in one.

- ``reference.py``: PyTorch's own operations; the truth that the other form equals.
- ``triton_op.py``: the GPU form for training, by the kernels in ``triton_kernels.py``.
- ``operation.py``: the operation, and which of the forms computes it.

The result has the dtype that PyTorch's sums give it. Under autocast the branch is of half
precision and the layer scale of float32, so that the sum, and with it the residual stream of a
network, is of float32, as in the official code. It stays so: a layer scale starts at 1e-2, and what
it lets through of a branch is below the last of the eight bits of a bfloat16 stream.

A drop path is drawn by whoever draws it, as a mask of ``(N, 1, 1, 1)``: no random number is drawn
here. Multiplied into the scale, it costs no pass over a map.
"""
