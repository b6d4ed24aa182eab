"""NeuScale: reproducible, distributed training of vision transformers.

    import neuscale

    run = neuscale.train("experiment=quickstart", "optim.lr=1e-3")
    model = run.model()

The functions do what the commands do, for scripts and notebooks; see `neuscale.api`. They are imported on
first use, so that the command line starts without torch.
"""

from typing import TYPE_CHECKING

from neuscale.version import __version__ as __version__

__all__ = [
    "Config",
    "Run",
    "UserError",
    "compose_config",
    "create_model",
    "evaluate",
    "load_data",
    "load_run",
    "train",
]

if TYPE_CHECKING:
    from neuscale.api import Run, create_model, evaluate, load_data, load_run, train
    from neuscale.config import Config, compose_config
    from neuscale.errors import UserError
else:
    _HOMES = {"Config": "config", "compose_config": "config", "UserError": "errors"}

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module 'neuscale' has no attribute '{name}'")
        from importlib import import_module

        return getattr(import_module(f"neuscale.{_HOMES.get(name, 'api')}"), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
