"""Data sets: their sources, their formats on disk, augmentation and loaders."""
