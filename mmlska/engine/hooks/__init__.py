"""Hooks, one a file, each named by its class."""
