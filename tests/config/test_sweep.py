"""Overrides of a sweep, in Hydra's grammar, are expanded to the overrides of single runs."""

import math

import pytest

from neuscale.errors import UsageError
from neuscale.sweep.grid import sampled_overrides, sweep_overrides, swept_fields


def test_lists_and_ranges_make_a_grid_in_the_order_of_the_words() -> None:
    words = ["experiment=quickstart", "optim.lr=1e-3,3e-4", "run.seed=range(0,3)"]
    assert sweep_overrides(words) == [
        ["experiment=quickstart", f"optim.lr={lr}", f"run.seed={seed}"]
        for lr in ("0.001", "0.0003")
        for seed in range(3)
    ]
    assert swept_fields(words) == ["optim.lr", "run.seed"]


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("model.depths=[2,2],[1,1]", ["[2,2]", "[1,1]"]),
        ("model=swin_t,vit_s4", ["swin_t", "vit_s4"]),
        ("optim.lr=choice(1,2)", ["1", "2"]),
        ("train.label_smoothing=range(0,0.3,0.1)", ["0.0", "0.1", "0.2"]),
        ("run.seed=1,1,2", ["1", "2"]),
        ("data.source='/a,b'", ["'/a,b'"]),
        ("data.source=/my pets (old)/x", ["/my pets (old)/x"]),
        ("model.depths=[2,2]", ["[2,2]"]),
    ],
)
def test_a_word_with_several_values_or_with_one(word: str, values: list[str]) -> None:
    field = word.partition("=")[0]
    assert sweep_overrides([word]) == [[f"{field}={value}"] for value in values]
    assert swept_fields([word]) == ([field] if len(values) > 1 else [])


def test_draws_are_a_function_of_the_seed_and_different_from_each_other() -> None:
    words = [
        "optim.lr=tag(log,interval(1e-4,1e-2))",
        "run.seed=range(0,2)",
        "train.epochs=int(interval(5,20))",
    ]
    drawn = sampled_overrides(words, 200, seed=1)
    assert sampled_overrides(words, 20, seed=1) == drawn[:20]
    assert sampled_overrides(words, 20, seed=2) != drawn[:20]
    assert len({tuple(draw) for draw in drawn}) == 200
    rates = sorted(math.log10(float(draw[0].partition("=")[2])) for draw in drawn)
    assert -4 <= rates[0] < rates[-1] <= -2
    assert rates[100] == pytest.approx(-3, abs=0.2), "each order of magnitude as likely"
    assert {draw[1] for draw in drawn} == {"run.seed=0", "run.seed=1"}
    epochs = {int(draw[2].partition("=")[2]) for draw in drawn}
    assert min(epochs) == 5 and max(epochs) == 20
    every = sampled_overrides(["run.seed=range(0,5)"], 5, seed=0)
    assert sorted(every) == [[f"run.seed={i}"] for i in range(5)]


def test_from_an_interval_each_number_is_as_likely_and_from_a_list_each_value() -> None:
    words = ["train.label_smoothing=interval(0.1,0.5)", "model=swin_t,swin_s,vit_s4"]
    drawn = sampled_overrides(words, 600, seed=3)
    numbers = [float(draw[0].partition("=")[2]) for draw in drawn]
    assert 0.1 <= min(numbers) < 0.11 and 0.49 < max(numbers) <= 0.5
    for low in (0.1, 0.2, 0.3, 0.4):
        share = sum(low <= number < low + 0.1 for number in numbers) / 600
        assert share == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 600) ** 0.5)
    for name in ("swin_t", "swin_s", "vit_s4"):
        share = sum(draw[1] == f"model={name}" for draw in drawn) / 600
        assert share == pytest.approx(1 / 3, abs=5 * (2 / 9 / 600) ** 0.5)


def test_a_thousand_runs_are_the_most() -> None:
    words = ["run.seed=range(0,40)", "train.epochs=range(1,26)"]
    assert len(sweep_overrides(words)) == 1000
    assert len(sampled_overrides(["run.seed=range(0,2000)"], 1000, 0)) == 1000
    with pytest.raises(UsageError, match="more than 1,000"):
        sampled_overrides(["run.seed=range(0,2000)"], 1001, 0)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["optim.lr=interval(1e-4,1e-2)"], "is an interval"),
        (["run.seed=range(3,0)"], "has no value"),
        (["run.seed=range(0,40)", "optim.lr=1,2", "train.epochs=range(1,21)"], "make 1,600 runs"),
        (["run.seed=range(a,3)"], "range"),
        (["model=glob(swin*)"], "glob is not understood"),
    ],
)
def test_what_is_no_grid(words: list[str], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        sweep_overrides(words)


@pytest.mark.parametrize(
    ("words", "count", "problem"),
    [
        (["run.seed=1,2"], 3, "there are 2 combinations"),
        (["optim.lr=interval(1,1)"], 2, "from a smaller to a larger"),
        (["optim.lr=tag(log,interval(0,1))"], 2, "above 0"),
        (["run.seed=int(interval(1,3))"], 50, "there are only 3 combinations"),
        (["optim.lr=interval(0,1)"], 5000, "more than 1,000"),
    ],
)
def test_what_cannot_be_drawn(words: list[str], count: int, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        sampled_overrides(words, count, 0)
