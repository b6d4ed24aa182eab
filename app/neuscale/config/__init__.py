"""What a run is made of: typed schemas, presets in groups, and how they are composed."""

from neuscale.config.compose import compose_config, config_from_yaml, config_to_yaml, preset_words
from neuscale.config.schema import Config

__all__ = ["Config", "compose_config", "config_from_yaml", "config_to_yaml", "preset_words"]
