"""The parts that users bring beside the package: a folder of presets, and code of their own."""
