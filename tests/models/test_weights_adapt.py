"""Adaptation of a state dict, value by value, and the choice of a file in a checkpoint folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from neuscale.config import compose_config
from neuscale.errors import CheckpointError
from neuscale.models import weights
from neuscale.models.registry import create_model
from neuscale.models.vit import VisionTransformer
from neuscale.models.weights import load_starting_weights, load_weights
from neuscale.models.weights_file import read_weights

Scrambler = Callable[[nn.Module], nn.Module]
VIT = {"patch_size": 2, "hidden_dim": 8, "num_layers": 1, "num_heads": 2}


class Net(nn.Module):
    """Model with a convolution, a depthwise convolution, a norm and a head."""

    def __init__(self, channels: int = 3, classes: int = 4) -> None:
        super().__init__()
        self.conv, self.depthwise = nn.Conv2d(channels, 2, 2), nn.Conv2d(2, 2, 2, groups=2)
        self.norm, self.head = nn.BatchNorm2d(2), nn.Linear(2, classes)


def filled(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict with other values, all of them different."""
    count = iter(range(1, 10**6))
    return {
        name: torch.tensor([next(count) for _ in range(value.numel())]).view(value.shape).to(value)
        for name, value in model.state_dict().items()
    }


def test_a_vits_head_for_other_classes_stays_as_initialised_and_all_else_arrives(
    scramble: Scrambler,
) -> None:
    state = scramble(VisionTransformer(8, 9, **VIT)).state_dict()
    model = VisionTransformer(8, 5, **VIT)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert load_weights(model, state, "w.pth", adapt=True) == ["heads.head.weight", "heads.head.bias"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] if name.startswith("heads.") else state[name]), name


@pytest.mark.parametrize("head", ["head", "heads", "fc", "classifier"])
def test_every_usual_name_of_a_head_is_one(head: str) -> None:
    def build(classes: int) -> nn.ModuleDict:
        return nn.ModuleDict({"body": nn.Linear(2, 2), head: nn.Linear(2, classes)})

    assert load_weights(build(3), filled(build(4)), "w", adapt=True) == [f"{head}.weight", f"{head}.bias"]


@pytest.mark.parametrize("name", ["header", "subhead", "fc1", "neck"])
def test_no_other_layer_of_another_shape_is_left_out(name: str) -> None:
    def build(width: int) -> nn.ModuleDict:
        return nn.ModuleDict({"body": nn.Linear(2, 2), name: nn.Linear(2, width)})

    with pytest.raises(CheckpointError, match=rf"{name}.weight is 4×2 there and 3×2 here, and 1 more"):
        load_weights(build(3), filled(build(4)), "w", adapt=True)


def test_a_gray_filter_is_the_sum_of_those_for_the_three_colours() -> None:
    gray = Net(channels=1)
    state = filled(Net())
    state["conv.weight"] = torch.tensor([[1.0, 20.0, 300.0], [4.0, 50.0, 600.0]])[:, :, None, None].expand(
        2, 3, 2, 2
    )
    assert load_weights(gray, state, "w", adapt=True) == []
    expected = torch.tensor([321.0, 654.0])[:, None, None, None].expand(2, 1, 2, 2)
    assert torch.equal(gray.conv.weight, expected)
    assert torch.equal(gray.depthwise.weight, state["depthwise.weight"])


@pytest.mark.parametrize(
    ("here", "there", "says"),
    [
        (3, 1, "conv.weight is 2×1×2×2 there and 2×3×2×2 here"),  # gray filters hold no colour
        (1, 4, "conv.weight is 2×4×2×2 there and 2×1×2×2 here"),
        (2, 3, "conv.weight is 2×3×2×2 there and 2×2×2×2 here"),
    ],
)
def test_other_numbers_of_channels_are_refused(here: int, there: int, says: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_weights(Net(channels=here), filled(Net(channels=there)), "my/w", adapt=True)
    assert caught.value.problem == f"my/w: weights of another model ({says})."


def test_counters_of_batches_may_be_missing_and_are_then_left_alone() -> None:
    model = Net()
    model.norm.num_batches_tracked.fill_(17)
    state = filled(Net())
    without = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    load_weights(model, without, "w", adapt=True)
    assert model.norm.num_batches_tracked == 17
    assert torch.equal(model.norm.running_var, state["norm.running_var"])
    load_weights(model, state, "w", adapt=True)
    assert model.norm.num_batches_tracked == state["norm.num_batches_tracked"]
    with pytest.raises(CheckpointError, match=r"norm.num_batches_tracked is missing there"):
        load_weights(model, without, "w")  # a resumed run must find all of its tensors


def test_a_resumed_run_sums_no_colours() -> None:
    with pytest.raises(CheckpointError, match=r"conv.weight is 2×3×2×2 there and 2×1×2×2 here"):
        load_weights(Net(channels=1), filled(Net()), "w")


def test_all_that_does_not_fit_is_counted_and_the_first_is_shown() -> None:
    state = filled(Net())
    state["norm.weight"] = torch.ones(5)
    del state["norm.bias"], state["head.bias"]
    state["extra"] = torch.ones(1)
    with pytest.raises(CheckpointError) as caught:
        load_weights(Net(), state, "w", adapt=True)
    assert "(norm.weight is 5 there and 2 here, and 3 more)" in caught.value.problem


def test_only_leading_prefixes_of_wrappers_are_stripped() -> None:
    model = nn.ModuleDict({"module": nn.Linear(2, 2), "inner": nn.ModuleDict({"module": nn.Linear(2, 2)})})
    state = filled(model["inner"])
    assert list(state) == ["module.weight", "module.bias"]
    load_weights(nn.Linear(2, 2), state, "w")
    load_weights(model["inner"]["module"], {"_orig_mod.module." + n[7:]: v for n, v in state.items()}, "w")
    assert torch.equal(model["inner"]["module"].weight, state["module.weight"])
    wrapped = nn.ModuleDict({"inner": nn.ModuleDict({"module": nn.Linear(2, 2)})})
    load_weights(wrapped, filled(wrapped), "w")  # inside a name, `module` belongs to the model


def test_nothing_in_the_state_that_was_given_is_changed() -> None:
    state = filled(Net(classes=9))
    before = {name: value.clone() for name, value in state.items()}
    load_weights(Net(channels=1), state, "w", adapt=True)
    assert state.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in state.items())


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Checkpoint folder whose weights are 1 and whose averaged weights are 2."""
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    save_file({"w": torch.full((2,), 2.0)}, tmp_path / "ema.safetensors")
    return tmp_path


@pytest.mark.parametrize(("averaged", "value"), [(None, 2.0), (True, 2.0), (False, 1.0)])
def test_of_a_checkpoint_the_average_or_the_weights_are_read(
    checkpoint: Path, averaged: bool | None, value: float
) -> None:
    assert read_weights(checkpoint, averaged)["w"].tolist() == [value, value]
    # `averaged` has no effect on a single file
    assert read_weights(checkpoint / "model.safetensors", averaged)["w"].tolist() == [1.0, 1.0]


def test_without_an_average_the_weights_are_read_unless_it_was_asked_for(checkpoint: Path) -> None:
    (checkpoint / "ema.safetensors").unlink()
    for averaged in (None, False):
        assert read_weights(checkpoint, averaged)["w"].tolist() == [1.0, 1.0]
    with pytest.raises(CheckpointError, match="holds no average of the weights") as caught:
        read_weights(checkpoint, True)
    assert str(checkpoint) in caught.value.problem
    assert "train.ema_decay" in caught.value.fix


def test_a_run_starts_from_the_average_of_another(tmp_path: Path) -> None:
    words = ["model=vit_ti4", "model.hidden_dim=8", "model.num_layers=1", "model.num_heads=2"]
    config: Any = compose_config([*words, f"model.weights={tmp_path}"]).model
    raw, average = (create_model(config, 8, 3, 5, seed).state_dict() for seed in (1, 2))
    save_file(raw, tmp_path / "model.safetensors")
    save_file(average, tmp_path / "ema.safetensors")
    model = create_model(config, 8, 3, 5, 0)
    load_starting_weights(model, config, 8, 3, 5)
    assert all(torch.equal(value, average[name]) for name, value in model.state_dict().items())


def test_a_tensor_of_any_type_in_a_file_arrives_in_the_models_own(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    state = {name: value.to(torch.float16) for name, value in filled(model).items()}
    torch.save(state, tmp_path / "w.pth")
    load_weights(model, read_weights(tmp_path / "w.pth"), "w", adapt=True)
    assert model.weight.dtype == torch.float32
    assert model.weight.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_a_download_is_checked_and_read_as_tensors_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch checks the hash in the file's name only with check_hash=True."""
    asked: list[dict[str, Any]] = []
    words = ["model=torchvision", "model.arch=squeezenet1_1", "model.weights=imagenet"]
    config = compose_config(words).model
    theirs = create_model(config, 32, 3, 5, 1)

    def load(url: str, **options: Any) -> dict[str, Tensor]:
        asked.append({"url": url, **options})
        return theirs.state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)
    model = create_model(config, 32, 3, 5, 0)
    said = load_starting_weights(model, config, 32, 3, 5)
    assert said == "weights from torchvision SqueezeNet1_1_Weights.IMAGENET1K_V1, head included"
    url = "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth"
    assert asked == [{"url": url, "progress": False, "check_hash": True, "weights_only": True}]
    assert torch.equal(model.state_dict()["classifier.1.weight"], theirs.state_dict()["classifier.1.weight"])


def test_each_published_swin_is_told_by_its_width_and_depths() -> None:
    assert weights._TORCHVISION_SWIN == {
        (96, (2, 2, 6, 2)): "Swin_T_Weights",
        (96, (2, 2, 18, 2)): "Swin_S_Weights",
        (128, (2, 2, 18, 2)): "Swin_B_Weights",
    }
