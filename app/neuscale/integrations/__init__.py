"""NeuScale in other frameworks; each module needs its framework, an extra in pyproject.toml."""
