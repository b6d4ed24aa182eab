"""Lists on the command line become runs: each combination once, with a valid folder name."""

import pytest

from neuscale.errors import UsageError
from neuscale.sweep.folder import name_runs
from neuscale.sweep.grid import sweep_overrides


def expand(overrides: list[str], name: str) -> list[list[str]]:
    """Overrides of each run, followed by its name."""
    return [[*run.words, run.name] for run in name_runs(sweep_overrides(overrides), name)]


def test_every_combination_once_and_a_name_that_says_which() -> None:
    runs = expand(["experiment=quickstart", "optim.lr=1e-3,3e-4", "run.seed=0,1,2"], "x")
    assert len(runs) == 6
    assert runs[0] == ["experiment=quickstart", "optim.lr=0.001", "run.seed=0", "x-lr0.001-seed0"]
    assert runs[-1] == ["experiment=quickstart", "optim.lr=0.0003", "run.seed=2", "x-lr0.0003-seed2"]
    assert len({run[-1] for run in runs}) == 6


@pytest.mark.parametrize(
    "word",
    [
        "model.depths=[1,2]",
        "data.source=/my data/a(b),c",
        "data.source='a,b'",
        "optim.lr=1e-3",
        "run.time_limit=1:00:00",
    ],
)
def test_what_is_no_list_stays_as_it_is(word: str) -> None:
    assert expand([word], "x") == [[word, "x"]]


def test_the_grammar_of_hydra() -> None:
    seeds = [run[0] for run in expand(["run.seed=range(0,3)"], "x")]
    assert seeds == ["run.seed=0", "run.seed=1", "run.seed=2"]
    depths = [run[0] for run in expand(["model.depths=[1,2],[2,2]"], "x")]
    assert depths == ["model.depths=[1,2]", "model.depths=[2,2]"]
    assert [run[1] for run in expand(["model=vit_s4,swin_t"], "x")] == [
        "x-modelvit_s4",
        "x-modelswin_t",
    ]


def test_names_that_would_be_the_same_are_numbered() -> None:
    names = [run[-1] for run in expand(["model.weights='/a b','/a_b'"], "x")]
    assert names == ["x-0", "x-1"]


def test_of_a_field_given_twice_the_last_counts() -> None:
    assert expand(["run.seed=1,2", "run.seed=3"], "x") == [["run.seed=3", "x"]]


def test_more_runs_than_anybody_means_are_refused() -> None:
    with pytest.raises(UsageError, match="10,000 runs"):
        expand(["run.seed=range(0,100)", "optim.lr=range(1,101)"], "x")
