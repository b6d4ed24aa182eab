"""Sweeps, several runs of one command: their list on disk, and the processes that train them."""
