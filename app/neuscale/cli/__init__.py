"""The `neuscale` command. Commands import heavy modules such as torch only when they need them."""

from neuscale.cli.app import run

__all__ = ["run"]
