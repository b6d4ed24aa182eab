"""Training written out by hand, for comparison: nothing here imports what it is compared with."""
