"""A benchmark of ours against the plain official order.

Both compute the same, which each run checks, in one process and in turns; what is compared are
ratios within a round. The reference is timed twice, against itself: that is the noise.
"""
