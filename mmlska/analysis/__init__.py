"""Instruments: what a model costs, and what it does."""
