"""The `neuscale` command. Nothing heavy is imported before a command needs it."""

from neuscale.cli.app import run

__all__ = ["run"]
