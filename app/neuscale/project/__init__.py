"""User-defined parts: the project folder with presets, and the user's own modules."""
