"""Parse the overrides of `neuscale train` for a new run, or for one to resume."""

import difflib
from functools import partial
from pathlib import Path

from neuscale.config import Config, compose_config, preset_overrides
from neuscale.config.compose import config_of_file
from neuscale.config.preset_files import preset_groups
from neuscale.errors import UsageError, UserError
from neuscale.runs.differences import check_same_run
from neuscale.runs.folder import RunFolder, all_runs, find_run

_NAME = "run.name="


def configure(
    overrides: list[str], resume: bool, file: Path | None = None
) -> tuple[Config, RunFolder | None]:
    """Return the configuration to train, and the run to resume, or None for a new run.

    `file`: a configuration file to start from. Raises UsageError and UserError.
    """
    compose = compose_config if file is None else partial(config_of_file, file)
    names = [word for word in overrides if "=" not in word]
    settings = [word for word in overrides if "=" in word]
    if names and not resume:
        raise _no_setting(names[0])
    if not resume:
        return compose(settings), None
    if len(names) > 1:
        raise UsageError(f"--resume continues one run, not {' and '.join(names)}.")
    presets = preset_overrides(settings)
    wanted = next((word[len(_NAME) :] for word in reversed(settings) if word.startswith(_NAME)), None)
    run = find_run(names[0]) if names else None
    if run is None and wanted is not None:
        run = next((r for r in all_runs() if r.name == wanted), None)
    elif run is None:
        candidates = [r for r in all_runs() if not r.finished and not r.is_held()]
        if presets:
            recipe = compose_config(presets).experiment
            candidates = [r for r in candidates if _is_of(r, recipe)]
        run = next(iter(candidates), None)
    if run is None:
        return compose(settings), None
    if presets:  # the complete command that started the run, as in a requeued job
        check_same_run(compose_config(settings), run)
    config = run.config([word for word in settings if word not in presets])
    if not any(word.startswith("run.device=") for word in settings):
        config.run.device = "auto"  # it may be resumed on another device
    return config, run


def _is_of(run: RunFolder, experiment: str | None) -> bool:
    try:
        return run.config().experiment == experiment
    except UserError:  # ignore a damaged run
        return False


def _no_setting(word: str) -> UsageError:
    """Error for an override without '=', with the closest recipe as a hint."""
    recipe = difflib.get_close_matches(word, preset_groups()["experiment"], n=1)
    hint = f"Did you mean 'experiment={recipe[0]}'?" if recipe else "For example: optim.lr=1e-3."
    if word in [run.name for run in all_runs()]:
        hint = f"To resume that run: neuscale train --resume {word}"
    return UsageError(f"'{word}' is not of the form field=value.", hint)
