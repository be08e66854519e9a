"""Our backbones in other frameworks: one file each, which imports its framework in functions."""
