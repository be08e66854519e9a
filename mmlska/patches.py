import functools
from importlib.util import find_spec


def make_roi_align_read_any_layout() -> None:
    """Let mmcv's RoIAlign take maps of any memory layout.

    Its kernels index the memory as if it were contiguous. Of a channels_last map they return wrong
    features, without an error, and a detector that was put into that layout for speed learns
    nothing. A contiguous map passes as it is.
    """
    if find_spec('mmcv._ext') is None:
        return
    from mmcv.ops import RoIAlign

    read_contiguous = RoIAlign.forward
    if hasattr(read_contiguous, '__wrapped__'):
        return

    @functools.wraps(read_contiguous)
    def forward(self, input, rois):
        return read_contiguous(self, input.contiguous(), rois)

    RoIAlign.forward = forward
