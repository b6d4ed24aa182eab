"""Training uses the values of a user's own optimizers, schedules, losses and augmentations."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import Said
from neuscale.config import compose_config
from neuscale.config.schema import AugmentConfig
from neuscale.data.augment.pipeline import draw_own
from neuscale.data.loaders.loader import Batch
from neuscale.data.sampling import uniform_draws
from neuscale.errors import UsageError
from neuscale.runs.metrics import read_metrics
from neuscale.training.loss import TrainingLoss

from .foreign_models import CONVOLUTIONAL

Command = Callable[..., Said]
Project = Callable[[dict[str, str]], Path]

CPU = torch.device("cpu")
WORDS = ["data=image_folder", "data.name=photos", "model=mine", "train.global_batch_size=16"]
WORDS += ["run.device=cpu", "train.epochs=2", "checkpoint.every_steps=1", "checkpoint.keep_last=9"]
MODEL = {"mynet.py": CONVOLUTIONAL, "conf/model/mine.yaml": "_target_: mynet.Net\n"}

SIGN = """
import torch

class SignDescent(torch.optim.Optimizer):
    def __init__(self, params, lr, momentum=0.9):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - group["momentum"])
                p.sub_(mean.sign(), alpha=group["lr"])
"""

OPTIMIZERS = {
    "radam": "_target_: torch.optim.RAdam\nlr: 1e-3\nweight_decay: 0.01\nbetas: [0.8, 0.95]\n",
    "rmsprop": "_target_: torch.optim.RMSprop\nlr: 1e-3\nmomentum: 0.9\n",
    "adagrad": "_target_: torch.optim.Adagrad\nlr: 1e-2\n",
    "asgd": "_target_: torch.optim.ASGD\nlr: 1e-2\n",
    "own": "_target_: sign.SignDescent\nlr: 1e-3\nmomentum: 0.5\n",
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_trains_and_goes_on_to_the_same_bits(
    name: str, project: Project, command: Command, tmp_path: Path
) -> None:
    project({**MODEL, "sign.py": SIGN, "conf/optim/own.yaml": OPTIMIZERS[name]})
    said = command("train", *WORDS, "optim=own", "run.name=a")
    assert said.code == 0, said.err
    manifest = tmp_path / "runs" / "a" / "manifest.json"
    before = json.loads(manifest.read_text())["result"]["weights_sha256"]
    said = command("train", "--resume", "a", "--checkpoint", "step-00000002")
    assert said.code == 0, said.err
    assert json.loads(manifest.read_text())["result"]["weights_sha256"] == before


def test_settings_of_an_optimizer_reach_it(project: Project) -> None:
    from neuscale.training.optim import create_optimizer

    project({"conf/optim/own.yaml": OPTIMIZERS["radam"]})
    config = compose_config(["optim=own", "optim.betas=[0.5,0.6]", "optim.lr=0.25"])
    optimizer = create_optimizer(
        config.optim, torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    )
    assert type(optimizer) is torch.optim.RAdam
    assert [group["betas"] for group in optimizer.param_groups] == [[0.5, 0.6]] * 2
    assert [group["lr"] for group in optimizer.param_groups] == [0.25] * 2
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0.0, 0.01]


SCHEDULE = """
def triangle(step, total_steps, steps_per_epoch, low):
    return low + (1 - low) * abs(1 - 2 * step / total_steps)

def bad(step, total_steps, steps_per_epoch):
    return float("nan")
"""


def test_a_schedule_is_followed_step_by_step(project: Project, command: Command, tmp_path: Path) -> None:
    recipe = "# @package _global_\ndefaults:\n  - override /model: mine\noptim:\n  lr: 0.5\n"
    recipe += "  function: {_target_: rates.triangle, _partial_: true, low: 0.25}\n"
    project({**MODEL, "rates.py": SCHEDULE, "conf/experiment/own.yaml": recipe})
    words = [word for word in WORDS if word != "model=mine"]
    said = command("train", "experiment=own", *words, "train.log_every_steps=1", "run.name=a")
    assert said.code == 0, said.err
    lines = [
        line for line in read_metrics(tmp_path / "runs" / "a" / "metrics.jsonl") if line["split"] == "train"
    ]
    assert [line["lr"] for line in lines] == pytest.approx(
        [0.5 * (0.25 + 0.75 * abs(1 - 2 * step / 6)) for step in range(6)]
    )
    said = command("train", "experiment=own", *words, "optim.function._target_=rates.bad")
    assert (
        said.code == 2
        and "optim.function: TypeError: bad() got an unexpected keyword argument 'low'" in said.err
    )
    assert "not foreseen" not in said.err
    bad = ["optim.function._target_=rates.bad", "optim.function._partial_=true", "optim.lr=0.1"]
    said = command("train", *WORDS, *bad)
    assert said.code == 2 and "optim.function: at step 0 it gives nan" in said.err


LOSS = """
import torch

class Poly1:
    def __init__(self, epsilon):
        self.epsilon = epsilon

    def __call__(self, logits, targets):
        logs = logits.log_softmax(1)
        return -(targets * logs).sum(1) + self.epsilon * (1 - (targets * logs.exp()).sum(1))

def wrong(logits, targets):
    return logits
"""


@pytest.mark.parametrize("mixed", [False, True])
def test_a_loss_gets_soft_targets(mixed: bool, project: Project) -> None:
    project({"losses.py": LOSS})
    words = ["train.loss._target_=losses.Poly1", "train.loss.epsilon=2", "train.label_smoothing=0.3"]
    train = compose_config(words).train
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, generator=generator)
    labels, partners = (torch.randint(0, 3, (5,), generator=generator) for _ in range(2))
    own = torch.rand(5, generator=generator)
    both = (partners, own) if mixed else (None, None)
    batch = Batch(torch.empty(5, 1, 1, 1), labels, torch.arange(5), 0, slice(0, 5), *both)
    total = 0.0
    for i in range(5):
        p = [math.exp(float(x)) for x in logits[i]]
        p = [x / sum(p) for x in p]
        share = float(own[i]) if mixed else 1.0
        targets = [
            0.7 * (share * (c == labels[i]) + (1 - share) * (c == partners[i])) + 0.1 for c in range(3)
        ]
        total += sum(-float(t) * math.log(x) for t, x in zip(targets, p, strict=True))
        total += 2 * (1 - sum(float(t) * x for t, x in zip(targets, p, strict=True)))
    found = TrainingLoss(train, [2, 2, 1], 5, CPU)(logits, batch)
    assert float(found) == pytest.approx(total / 5, rel=1e-5)


def test_a_loss_that_is_none_is_refused(project: Project) -> None:
    project({"losses.py": LOSS})
    labels = torch.zeros(5, dtype=torch.long)
    batch = Batch(torch.empty(5, 1, 1, 1), labels, torch.arange(5), 0, slice(0, 5))
    words = ["train.loss._target_=losses.wrong", "train.loss._partial_=true"]
    with pytest.raises(UsageError, match=r"train.loss: gives shape \(5, 3\)"):
        TrainingLoss(compose_config(words).train, [], 5, CPU)(torch.zeros(5, 3), batch)
    with pytest.raises(UsageError) as caught:
        TrainingLoss(compose_config(words[:1]).train, [], 5, CPU)
    assert "`_partial_: true`" in caught.value.fix
    weighted = [*words, "train.class_weights=balanced"]
    with pytest.raises(UsageError, match=r"class_weights and train\.focal_gamma are the cross-entropy's"):
        TrainingLoss(compose_config(weighted).train, [1, 1, 1], 5, CPU)


AUGMENT = """
import torch

def darker(images, draws, most):
    return (images * (1 - most * draws[:, :1, None, None])).to(torch.uint8)

def wrong(images, draws):
    return images.float()
"""


def test_an_augmentation_gets_draws_of_seed_epoch_and_position(project: Project) -> None:
    project({"mine.py": AUGMENT})
    spec = {"_target_": "mine.darker", "_partial_": True, "most": 0.5}
    own = draw_own(AugmentConfig(function=spec, function_draws=2), 3, 7, 20, CPU)
    expected = np.stack([uniform_draws(3, 7, f"own {i}", 20) for i in range(2)], 1)
    np.testing.assert_array_equal(own.draws.numpy(), expected)
    images = torch.full((4, 1, 2, 2), 200, dtype=torch.uint8)
    found = own.at(slice(5, 9))(images)
    assert found[:, 0, 0, 0].tolist() == [int(200 * (1 - 0.5 * x)) for x in expected[5:9, 0]]
    spec = {"_target_": "mine.wrong", "_partial_": True}
    wrong = draw_own(AugmentConfig(function=spec), 0, 0, 4, CPU)
    with pytest.raises(UsageError, match=r"augment\.function: gives torch\.float32"):
        wrong(images)


def test_an_augmented_run_is_the_same_from_any_step(
    project: Project, command: Command, tmp_path: Path
) -> None:
    project({**MODEL, "mine.py": AUGMENT})
    words = [
        "augment.function._target_=mine.darker",
        "augment.function._partial_=true",
        "augment.function.most=0.9",
    ]
    said = command("train", *WORDS, *words, "augment.mixup_alpha=0.3", "run.name=a")
    assert said.code == 0, said.err
    assert command("train", *WORDS, "augment.mixup_alpha=0.3", "run.name=plain").code == 0
    manifests = [tmp_path / "runs" / run / "manifest.json" for run in ("a", "plain")]
    read = [json.loads(manifest.read_text()) for manifest in manifests]
    assert read[0]["result"]["weights_sha256"] != read[1]["result"]["weights_sha256"]
    assert {file["file"] for file in read[0]["own_code"]["files"]} == {"mine.py", "mynet.py"}
    assert command("train", "--resume", "a", "--checkpoint", "step-00000001").code == 0
    again = json.loads((tmp_path / "runs" / "a" / "manifest.json").read_text())
    assert again["result"]["weights_sha256"] == read[0]["result"]["weights_sha256"]


def test_a_configuration_that_was_printed_is_taken(
    project: Project, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project(MODEL)
    said = command("train", *WORDS, "model.width=5", "--print-config")
    assert said.code == 2 and "An argument of mynet.Net: model.args.width=5" in said.err
    printed = command("train", *WORDS, "model.args.width=5", "--print-config").out
    (folder / "mine.yaml").write_text(printed.replace("name: null", "name: ${oc.env:RUN_OF_TODAY}"))
    monkeypatch.setenv("RUN_OF_TODAY", "today")
    said = command("train", "--config", "mine.yaml", "optim.lr=0.01")
    assert said.code == 0, said.err
    stored = (tmp_path / "runs" / "today" / "config.yaml").read_text()
    assert "width: 5" in stored and "lr: 0.01" in stored and "${" not in stored
    said = command("train", "--config", "mine.yaml", "model=swin_t")
    assert said.code == 2 and "has a whole configuration" in said.err
    (folder / "mine.yaml").write_text(printed.replace("epochs: 2 ", "epochs: many "))
    said = command("train", "--config", "mine.yaml")
    assert said.code == 2 and "mine.yaml" in said.err and "train.epochs" in said.err
