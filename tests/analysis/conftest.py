"""Fixtures for run folders written without training, from tests/runs."""

from runs.conftest import TOP1 as TOP1
from runs.conftest import RunWriter as RunWriter
from runs.conftest import config_of as config_of
from runs.conftest import manifest_of as manifest_of
from runs.conftest import neuscale as neuscale
from runs.conftest import train_lines as train_lines
from runs.conftest import val_lines as val_lines
from runs.conftest import write_run as write_run
