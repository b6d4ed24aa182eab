"""The configuration of a run: typed schemas, presets in groups, and their composition."""

from neuscale.config.compose import compose_config, config_from_yaml, config_to_yaml, preset_overrides
from neuscale.config.schema import Config

__all__ = ["Config", "compose_config", "config_from_yaml", "config_to_yaml", "preset_overrides"]
