"""NeuScale inside other frameworks; each module needs its package, an extra of pyproject.toml."""
