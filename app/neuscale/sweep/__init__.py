"""Several runs of one command: their list on disk, the processes that train them, their ranking."""
