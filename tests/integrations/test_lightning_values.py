"""Batches, losses, learning rates and metrics under Lightning; Lightning need not be installed."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from conftest import TINY_RECIPE
from neuscale.config import compose_config
from neuscale.data.loaders.loader import Batch
from neuscale.data.sampling import derived_seed, uniform_draws
from neuscale.distributed.rank import Rank
from neuscale.errors import UsageError
from neuscale.models.layers import DropPath
from neuscale.models.registry import create_model

WORDS = [*TINY_RECIPE, "run.seed=3", "train.epochs=4", "model.ops=eager", "train.label_smoothing=0.2"]
SIZES = (8, 3, 7)
COUNT = 60  # 5 steps of 12


class Loader:
    """Fake loader: batches are named by their positions, and calls are recorded in `asked`."""

    def __init__(self, count: int = COUNT, rank: Rank = Rank(1, 2)) -> None:  # noqa: B008
        self.count, self.rank = count, rank
        self.asked: list[tuple[Any, ...]] = []

    def __len__(self) -> int:
        return self.count

    def training(self, augment: Any, *asked: Any) -> Iterator[list[str]]:
        self.asked.append((augment, *asked))
        *_, first, steps, _size, parts = asked
        for step in range(first, steps):
            yield [f"{step}.{part}" for part in range(parts)]

    def evaluation(self, size: int) -> Iterator[str]:
        first = self.count * self.rank.rank // self.rank.world_size
        last = self.count * (self.rank.rank + 1) // self.rank.world_size
        for i in range(first, last, size):
            yield f"{i}-{min(i + size, last)}"


def fit_trainer(ready: int, parts: int = 3, epoch: int = 6) -> Any:
    progress = SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(ready=ready)))
    fit_loop = SimpleNamespace(epoch_loop=progress)
    return SimpleNamespace(accumulate_grad_batches=parts, current_epoch=epoch, fit_loop=fit_loop)


@pytest.mark.parametrize(("ready", "first", "begun"), [(0, 0, 0), (7, 2, 1), (14, 4, 2)])
def test_an_epoch_goes_on_with_the_part_that_comes_next(
    under_stand_ins: Any, ready: int, first: int, begun: int
) -> None:
    config, loader = compose_config(WORDS), Loader()
    batches = under_stand_ins.data.TrainingBatches(loader, config, "print", fit_trainer(ready))
    assert len(batches) == 15
    found = list(batches)
    assert loader.asked == [(config.augment, 3, 6, first, 5, 12, 3)]
    assert found == [f"{step}.{part}" for step in range(5) for part in range(3)][3 * first + begun :]


def test_a_run_that_goes_on_keeps_the_order_of_its_images(under_stand_ins: Any) -> None:
    batches = under_stand_ins.data.TrainingBatches(Loader(), compose_config(WORDS), "print", fit_trainer(0))
    state = batches.state_dict()
    assert state == {"run.seed": 3, "train.global_batch_size": 12, "data fingerprint": "print"}
    batches.load_state_dict(state)
    for name, other in (("run.seed", 4), ("train.global_batch_size", 6), ("data fingerprint", "another")):
        with pytest.raises(UsageError, match=f"^{name} cannot change .*was {other}, now {state[name]}"):
            batches.load_state_dict({**state, name: other})


@pytest.mark.parametrize(
    ("rank", "seen"),
    [
        (0, [("0-2", True), ("0-1", False)]),  # 2 of 7 images, then an uncounted image of the whole split
        (1, [("2-4", True), ("0-1", False)]),
        (2, [("4-6", True), ("6-7", True)]),
    ],
)
def test_each_validation_image_is_counted_once_in_equally_many_batches(
    under_stand_ins: Any, rank: int, seen: list[tuple[str, bool]]
) -> None:
    own, whole = Loader(7, Rank(rank, 3)), Loader(7, Rank())
    batches = under_stand_ins.data.ValidationBatches(own, whole, 2)
    assert len(batches) == 2
    assert [(batch.content, batch.counted) for batch in batches] == seen


def classifier(modules: Any, *words: str, steps: float = 20, rank: int = 0) -> Any:
    """An ImageClassifier after the Trainer's setup."""
    module = modules.classifier.ImageClassifier([*WORDS, *words], SIZES)
    data = modules.data.ImageDataModule([*WORDS, *words])
    data._training = Loader()
    module.device = torch.device("cpu")
    module.trainer = SimpleNamespace(
        datamodule=data,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        estimated_stepping_batches=steps,
        global_rank=rank,
        world_size=2,
        precision_plugin=None,
    )
    module.setup("fit")
    return module


def a_batch(positions: slice) -> Batch:
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return Batch(images, torch.tensor([0, 6, 2, 2]), torch.arange(4), 2, positions)


def test_the_model_is_the_recipes_of_its_seed(under_stand_ins: Any) -> None:
    module = under_stand_ins.classifier.ImageClassifier(WORDS, SIZES)
    expected = create_model(compose_config(WORDS).model, *SIZES, 3).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in module.model.state_dict().items())
    assert module.saved["sizes"] == [8, 3, 7]
    assert module.saved["config"]["run"]["seed"] == 3
    assert (module.top1.num_classes, module.top1.top_k, module.top1.average) == (7, 1, "micro")
    assert (module.top5.num_classes, module.top5.top_k, module.top5.average) == (7, 5, "micro")
    few = under_stand_ins.classifier.ImageClassifier(WORDS, (8, 3, 4))
    assert few.top5.top_k == 4


def test_its_sizes_are_those_of_the_data(under_stand_ins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = SimpleNamespace(name="some", height=16, width=16, channels=1, num_classes=7)
    monkeypatch.setattr(under_stand_ins.classifier, "open_data", lambda *_given: SimpleNamespace(meta=meta))
    assert under_stand_ins.classifier.ImageClassifier(WORDS).saved["sizes"] == [16, 1, 7]
    module = under_stand_ins.classifier.ImageClassifier([*WORDS, "data.image_size=24"])
    assert module.saved["sizes"] == [24, 1, 7]
    assert module(torch.zeros(2, 1, 24, 24)).shape == (2, 7)


def test_the_loss_is_the_smoothed_cross_entropy_under_the_samples_own_drop_path(under_stand_ins: Any) -> None:
    module = classifier(under_stand_ins, "model.drop_path_rate=0.4")
    batch = a_batch(slice(16, 20))
    loss = module.training_step(batch, 0)
    layers = [m for m in module.model.modules() if isinstance(m, DropPath) and m.rate > 0]
    for i, layer in enumerate(layers):
        for branch in range(2):
            kept = uniform_draws(3, 2, f"drop path {i}.{branch}", COUNT)[16:20] >= layer.rate
            expected = torch.from_numpy(kept).float() / (1 - layer.rate)
            assert layer.scale is not None
            torch.testing.assert_close(layer.scale[branch], expected)
    log_p = module.model(batch.images).log_softmax(1)
    target = 0.8 * F.one_hot(batch.labels, 7) + 0.2 / 7
    assert loss.item() == pytest.approx(-(target * log_p).sum(1).mean().item(), rel=1e-5)
    assert [(name, options["batch_size"]) for name, _, options in module.logged] == [("train/loss", 4)]


def test_dropout_is_seeded_by_the_step_and_the_process_at_its_first_part(under_stand_ins: Any) -> None:
    module = classifier(under_stand_ins, "model.dropout=0.5", rank=1)  # rank 1 has images 6 to 11 of each 12
    module.training_step(a_batch(slice(42, 46)), 0)
    after = torch.get_rng_state()
    torch.manual_seed(99)
    module.training_step(a_batch(slice(42, 46)), 0)
    assert torch.equal(torch.get_rng_state(), after)
    torch.default_generator.manual_seed(derived_seed(3, 2 * 5 + 3, "dropout 1"))
    module.training_step(a_batch(slice(44, 48)), 0)  # continues where the first part ended
    assert torch.equal(torch.get_rng_state(), after)


def test_the_learning_rate_warms_up_and_ends_with_the_trainer_times_each_layers_scale(
    under_stand_ins: Any,
) -> None:
    words = ["optim.lr=0.8", "optim.schedule=linear", "optim.warmup_epochs=0.8", "optim.final_lr_ratio=0"]
    module = classifier(under_stand_ins, *words, "optim.layer_decay=0.5", steps=12)
    configured = module.configure_optimizers()
    schedule = configured["lr_scheduler"]["scheduler"]
    assert configured["lr_scheduler"]["interval"] == "step"
    optimizer = configured["optimizer"]
    seen = []
    for _ in range(12):
        scales = [group["lr"] / group.get("lr_scale", 1.0) for group in optimizer.param_groups]
        assert scales == pytest.approx([scales[0]] * len(scales))
        seen.append(scales[0])
        optimizer.step()
        schedule.step()
    # four warm-up steps up to 0.8, then eight down a line that reaches 0 one step after the last
    assert seen == pytest.approx([0.2, 0.4, 0.6, 0.8, *[0.1 * left for left in range(8, 0, -1)]])
    assert {group.get("lr_scale", 1.0) for group in optimizer.param_groups} >= {1.0, 0.5}


def test_a_trainer_without_an_end_gets_the_recipes_schedule(under_stand_ins: Any) -> None:
    schedule = classifier(under_stand_ins, steps=float("inf")).configure_optimizers()["lr_scheduler"]
    assert schedule["scheduler"]._total_steps == 4 * 5


def test_gradients_are_clipped_to_the_recipes_norm_and_only_then(under_stand_ins: Any) -> None:
    for chosen, norm in (("null", 6.0), ("1.5", 1.5), ("7", 6.0)):
        module = classifier(under_stand_ins, f"optim.clip_grad_norm={chosen}")
        parameters = list(module.model.parameters())
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        for parameter in parameters[:4]:
            assert parameter.grad is not None
            parameter.grad.view(-1)[0] = 3.0  # √(4 · 3²) = 6
        module.configure_gradient_clipping(None)
        total = torch.stack([p.grad.norm() for p in parameters]).norm()
        assert total.item() == pytest.approx(norm, rel=1e-4)


def test_what_is_frozen_stays_in_evaluation_mode(under_stand_ins: Any) -> None:
    module = classifier(under_stand_ins, "train.linear_probe=true", "model.dropout=0.5")
    module.on_train_start()
    assert module.model.head.training and not module.model.features[0].training
    assert [n for n, p in module.model.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]


def evaluation_batch(modules: Any, count: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = 3 * torch.randn(count, 3, 8, 8, generator=generator)
    return Batch(
        images, torch.randint(7, (count,), generator=generator), torch.arange(count), 0, slice(0, count)
    )


@pytest.mark.parametrize(("step", "split"), [("validation_step", "val"), ("test_step", "test")])
def test_each_evaluated_image_counts_once_if_it_is_ours(under_stand_ins: Any, step: str, split: str) -> None:
    """Batches have 30 and 10 images, so that the mean of their means would be a different number."""
    module = classifier(under_stand_ins).eval()
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter.mul_(3.0)
    ours = [evaluation_batch(under_stand_ins, 30, 1), evaluation_batch(under_stand_ins, 10, 2)]
    filling = evaluation_batch(under_stand_ins, 20, 3)
    for content, counted in ((ours[0], True), (filling, False), (ours[1], True)):
        module.logged.clear()
        getattr(module, step)(under_stand_ins.data.ValidationBatch(content, counted), 0)
        assert [name for name, *_ in module.logged] == [f"{split}/{n}" for n in ("loss", "top1", "top5")]
        assert [value for _, value, _ in module.logged] == [module.loss, module.top1, module.top5]
        size = len(content.labels)
        for *_, options in module.logged:
            assert options == {"on_step": False, "on_epoch": True, "batch_size": size}
    labels = torch.cat([batch.labels for batch in ours])
    log_p = torch.cat([module.model(batch.images).log_softmax(1) for batch in ours]).detach()
    rank = (log_p > log_p[torch.arange(40), labels][:, None]).sum(1)
    losses = -log_p[torch.arange(40), labels]  # without label smoothing
    assert losses[:30].mean().item() != pytest.approx(losses[30:].mean().item(), rel=0.01)
    assert module.loss.compute().item() == pytest.approx(losses.mean().item(), rel=1e-5)
    assert module.top1.compute().item() == pytest.approx((rank < 1).float().mean().item())
    assert module.top5.compute().item() == pytest.approx((rank < 5).float().mean().item())
    assert 0 < module.top1.compute() < module.top5.compute() < 1


def test_images_are_normalised_as_for_the_starting_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both the module and its data normalise images like `neuscale train`."""
    from neuscale.integrations.lightning.recipe import recipe_config
    from neuscale.training import build

    numbers = ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    known = {"mean": numbers[0], "std": numbers[1]}
    monkeypatch.setattr(build, "weights_preprocessing", lambda _config: known)
    config = recipe_config([*WORDS, "model.weights=some.pth"])
    assert (config.data.mean, config.data.std) == numbers
    assert recipe_config(config) == config
    assert recipe_config([*WORDS]).data.mean == []
