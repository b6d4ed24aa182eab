"""Packages of the server, which only `neuscale[serve]` installs."""

from importlib.util import find_spec

from neuscale.errors import UsageError


def check_serving_packages() -> None:
    """Raise UsageError where a package that the server needs is missing."""
    missing = [name for name in ("starlette", "uvicorn", "python_multipart") if find_spec(name) is None]
    if missing:
        verb = "are" if len(missing) > 1 else "is"
        raise UsageError(
            f"serve: {' and '.join(missing)} {verb} not installed.",
            "Install what it needs: pip install 'neuscale[serve]'",
        )
