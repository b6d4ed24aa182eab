"""Weights that other programs have wrapped, or that come from another image or window size."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from neuscale.config import compose_config
from neuscale.errors import CheckpointError, UsageError
from neuscale.models.positions import fit_positions
from neuscale.models.registry import check_arch, create_model
from neuscale.models.weights import load_starting_weights, load_weights, weights_preprocessing
from neuscale.models.weights_file import read_weights

VIT = ["model=vit_ti4", "model.hidden_dim=24", "model.num_layers=2", "model.num_heads=2"]
SWIN = [
    "model=swin_nano",
    "model.embed_dim=8",
    "model.depths=[2]",
    "model.num_heads=[2]",
    "model.patch_size=2",
]


def model_of(words: list[str], size: int, classes: int = 5, seed: int = 0) -> nn.Module:
    return create_model(compose_config(words).model, size, 3, classes, seed)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


ARGUMENTS = argparse.Namespace(model="vit", lr=0.1, opt_betas=None, aa="rand-m9", mean=(0.5, 0.5), resume="")
OPTIMIZER = {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}

# Formats of torchvision's references, timm's train.py, plain scripts and Lightning (ours too).
WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "torchvision": lambda s: {"model": s, "optimizer": OPTIMIZER, "epoch": 3, "args": ARGUMENTS},
    "timm": lambda s: {
        "epoch": 3, "arch": "vit", "state_dict": s, "optimizer": OPTIMIZER, "version": 2, "args": ARGUMENTS,
        "metric": np.float64(71.5),
    },
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": OPTIMIZER, "loss": 0.5},
    "net": lambda s: {"net": s, "acc": 93.1, "epoch": 7},
    "parallel": lambda s: prefixed(s, "module."),
    "compiled": lambda s: {"state_dict": prefixed(s, "_orig_mod.")},
    "both": lambda s: {"model": prefixed(s, "module._orig_mod.")},
    "Lightning": lambda s: {
        "state_dict": {**prefixed(s, "model."), "loss.value": torch.tensor(1.0)}, "epoch": 1,
        "pytorch-lightning_version": "2.5", "hyper_parameters": {"lr": 0.1},
    },
    "average only": lambda s: {"state_dict_ema": prefixed(s, "module."), "args": ARGUMENTS},
    "averaged": lambda s: {
        "model": {name: torch.zeros_like(value) for name, value in s.items()},
        "model_ema": {"n_averaged": torch.tensor(5), **prefixed(s, "module.")},
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", WRAPPED)
def test_the_weights_are_found_in(tmp_path: Path, kind: str) -> None:
    there = model_of(VIT, 16, seed=1).state_dict()
    torch.save(WRAPPED[kind](there), tmp_path / "w.pth")
    here = model_of(VIT, 16, seed=2)
    config = compose_config([*VIT, f"model.weights={tmp_path / 'w.pth'}"]).model
    assert "head included" in load_starting_weights(here, config, 16, 3, 5)
    for name, value in here.state_dict().items():
        assert value.equal(there[name]), name


@pytest.mark.parametrize(
    "content",
    [{"args": ARGUMENTS}, {"state_dict": {}}, [torch.zeros(2)], {"epoch": 3, "x": torch.zeros(1)}, 7],
)
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_weights(tmp_path / "w.pth")


class Runs:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def test_nothing_beside_the_arguments_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (
        {"model": {"w": torch.zeros(2)}, "args": argparse.Namespace(x=Runs())},
        {"model": {"w": torch.zeros(2)}, "metric": Runs()},
    ):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match="damaged, or more in it than tensors"):
            read_weights(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_a_vits_positions_are_interpolated_as_torchvision_does() -> None:
    from collections import OrderedDict

    from torchvision.models.vision_transformer import interpolate_embeddings

    there = model_of(VIT, 32, seed=1).state_dict()
    there["encoder.pos_embedding"].normal_()
    here = model_of(VIT, 48)
    fitted, count = fit_positions(there, here)
    expected = interpolate_embeddings(48, 4, OrderedDict(there))
    assert count == 1
    assert fitted["encoder.pos_embedding"].shape == (1, 145, 24)
    torch.testing.assert_close(fitted["encoder.pos_embedding"], expected["encoder.pos_embedding"])
    mean = [*VIT, "model.pool=mean"]
    assert fit_positions(model_of(mean, 32).state_dict(), model_of(mean, 48))[1] == 1
    assert load_weights(here, fitted, "there") == []


def test_swins_tables_are_interpolated_to_another_window() -> None:
    there = model_of([*SWIN, "model.window_size=4"], 32, seed=1).state_dict()
    here = model_of([*SWIN, "model.window_size=8"], 32)
    name = "features.1.0.attn.relative_position_bias_table"
    # A linear table stays linear, but for some hundredths of a step from the bicubic kernel.
    rows, columns = torch.meshgrid(torch.arange(7.0), torch.arange(7.0), indexing="ij")
    there[name] = torch.stack([(rows + 10 * columns).flatten()] * 2, dim=1)
    fitted, count = fit_positions(there, here)
    assert count == 2 and fitted[name].shape == (225, 2)
    grid = fitted[name][:, 0].view(15, 15)
    at = (torch.arange(15) + 0.5) * 7 / 15 - 0.5
    expected = at[:, None] + 10 * at[None]
    torch.testing.assert_close(grid[4:11, 4:11], expected[4:11, 4:11], atol=0.1 * 10 * 7 / 15, rtol=0)
    load_weights(here, fitted, "there")


def test_swins_tables_are_those_of_timms_simple_way() -> None:
    timm = pytest.importorskip("timm")
    from timm.layers import resize_rel_pos_bias_table_simple

    del timm
    there = model_of([*SWIN, "model.window_size=4"], 32, seed=1).state_dict()
    name = "features.1.0.attn.relative_position_bias_table"
    there[name].normal_()
    fitted, _ = fit_positions(there, model_of([*SWIN, "model.window_size=8"], 32))
    expected = resize_rel_pos_bias_table_simple(there[name], (8, 8), (225, 2))
    torch.testing.assert_close(fitted[name], expected)


def test_timms_models_are_fitted_by_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    there = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=7)
    there.pos_embed.data.normal_()
    torch.save({"state_dict": there.state_dict(), "args": ARGUMENTS}, tmp_path / "w.pth")
    words = ["model=timm", "model.arch=vit_tiny_patch16_224", f"model.weights={tmp_path / 'w.pth'}"]
    here = model_of(words, 96, classes=5)
    said = load_starting_weights(here, compose_config(words).model, 96, 3, 5)
    assert "with a new head" in said and "positions interpolated" in said
    from timm.layers import resample_abs_pos_embed

    expected = resample_abs_pos_embed(there.pos_embed, [6, 6], num_prefix_tokens=1)
    torch.testing.assert_close(here.pos_embed, expected)


def test_positions_that_are_no_square_are_refused_as_another_model() -> None:
    there = model_of(VIT, 32).state_dict()
    there["encoder.pos_embedding"] = torch.zeros(1, 60, 24)
    with pytest.raises(CheckpointError, match="pos_embedding is 1×60×24 there"):
        load_weights(model_of(VIT, 48), fit_positions(there, model_of(VIT, 48))[0], "there")


def test_a_model_that_timm_saved_in_a_folder(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from timm.models import save_for_hf
    from timm.models._hub import has_hf_hub

    if not has_hf_hub():
        pytest.skip("timm saves folders with huggingface_hub, which is not here or too old")

    there = timm.create_model("resnet10t", num_classes=7)
    there.pretrained_cfg |= {"mean": [0.25, 0.5, 0.75], "std": [0.5, 0.25, 0.125], "crop_pct": 0.8}
    save_for_hf(there, str(tmp_path / "mine"), model_config={}, safe_serialization="both")
    arch = f"local-dir:{tmp_path / 'mine'}"
    words = ["model=timm", f"model.arch={arch}", "model.weights=imagenet"]
    config = compose_config(words).model
    assert config.title == "mine"
    here = model_of(words, 64, classes=5)
    for suffix in ("safetensors", "bin"):
        assert "with a new head" in load_starting_weights(here, config, 64, 3, 5)
        assert here.conv1[0].weight.equal(there.conv1[0].weight)
        (tmp_path / "mine" / "model.safetensors").unlink(missing_ok=True)
        assert suffix
    assert weights_preprocessing(config) == {
        "mean": [0.25, 0.5, 0.75],
        "std": [0.5, 0.25, 0.125],
        "interpolation": there.pretrained_cfg["interpolation"],
        "crop": 0.8,
    }
    torch.save({"w": Runs()}, tmp_path / "mine" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="damaged, or more in it than tensors"):
        load_starting_weights(here, config, 64, 3, 5)
    with pytest.raises(UsageError, match=r"there is no config\.json in that folder"):
        check_arch(compose_config(["model=timm", f"model.arch=local-dir:{tmp_path}"]).model)


def test_a_model_whose_own_names_begin_like_a_wrappers_keeps_them() -> None:
    model = nn.Sequential()
    model.add_module("model", nn.Linear(2, 2))
    there = {"model.weight": torch.ones(2, 2), "model.bias": torch.ones(2)}
    assert load_weights(model, there, "there") == []
    assert load_weights(model, prefixed(there, "module."), "there") == []
    assert model.get_submodule("model").weight.equal(torch.ones(2, 2))  # type: ignore[arg-type]
