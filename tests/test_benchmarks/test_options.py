import pytest
from torch_versions import since

from benchmarks.options import peak_memory, step_times

SHAPE = (1, 3, 256, 256)


@pytest.mark.slow
def test_recomputation_saves_memory():
    plain, saving = (peak_memory('VAN-LSKA-tiny', with_cp, SHAPE) for with_cp in (False, True))
    # What is kept of one image of 800 x 1333 is 1.84 GiB, a figure of another count.
    expected = 1.84 * 2**30 * 256**2 / (800 * 1333)
    assert 0.7 * expected < plain < 2 * expected
    assert saving < 0.7 * plain


@since('2.4', 'its fused optimizers need a GPU')
def test_recomputation_takes_another_forward_pass():
    with_cp, *others = step_times('GhostNetV2 1.0x', (1, 3, 64, 64), 3)
    # Wide bounds, for other processes disturb the times.
    assert 0.9 < with_cp < 5
    assert len(others) == 3 and all(ratio > 0 for ratio in others)
