"""Data sets: where they come from, and how they lie on disk as arrays of bytes."""
