"""The claims of the LSKA paper, measured again on digit scenes: ``python -m benchmarks.study``."""
