import pytest

from mmlska.analysis import timing


@pytest.fixture
def small_copies(monkeypatch):
    """Measure the bandwidth of a copy with a megabyte."""
    monkeypatch.setitem(timing.COPY_MEGABYTES, 'cpu', 1)
    timing.copy_bandwidth.cache_clear()
    yield
    timing.copy_bandwidth.cache_clear()
