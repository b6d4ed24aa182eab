"""Invalid files of weights give one message with path and fix, and no code in them is run."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from neuscale.config import compose_config
from neuscale.errors import CheckpointError
from neuscale.models.weights import load_starting_weights, load_weights
from neuscale.models.weights_file import read_weights

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2)}
SUFFIXES = [".pth", ".safetensors"]


def write_weights(path: Path) -> bytes:
    (save_file if path.suffix == ".safetensors" else torch.save)(STATE, path)
    return path.read_bytes()


def refused(path: Path, where: str | None = None) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    assert caught.value.problem.startswith(where or f"{path}: ")
    assert caught.value.fix, "says nothing of what to do"
    assert len(str(caught.value).splitlines()) == 2
    return caught.value


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"<html>404</html>", bytes(range(256)) * 4])
def test_a_file_of_something_else_is_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    assert "not a readable file of weights" in str(refused(path))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(SUFFIXES), st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_anywhere_is_named(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"w{suffix}"
    whole = write_weights(path)
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(SUFFIXES), st.data())
def test_flipped_bytes_never_raise_anything_else(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    """Neither format has a checksum of its values, so damaged ones may load; no other error may be raised."""
    path = tmp_path / f"w{suffix}"
    whole = bytearray(write_weights(path))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(whole))
    try:
        load_weights(torch.nn.Linear(3, 2), read_weights(path), str(path), adapt=True)
    except CheckpointError as error:
        assert str(path) in error.problem and error.fix


class Touch:
    """Object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def pickled(value: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(value, protocol=2))


@pytest.mark.parametrize("save", [torch.save, pickled])
def test_code_in_a_file_is_not_run(tmp_path: Path, save: Callable[[object, Path], None]) -> None:
    path = tmp_path / "w.pth"
    save({"weight": Touch(tmp_path / "ran")}, path)
    pickle.loads(pickle.dumps(Touch(tmp_path / "works")))
    assert (tmp_path / "works").exists()  # unpickling would run it
    error = refused(path)
    assert not (tmp_path / "ran").exists()
    # torch's own message advises to switch the protection off
    assert "damaged, or more in it than tensors" in error.problem


@pytest.mark.parametrize(
    "content", [[1], torch.zeros(2), {0: torch.zeros(1)}, {"a": 1}, {"model": {"a": {}}}, "text", None]
)
def test_a_torch_file_of_something_else_holds_no_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert "holds no state dict" in str(refused(tmp_path / "w.pth"))


def test_a_whole_pickled_model_is_refused_with_the_way_to_save_it(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pth")
    assert "torch.save(model.state_dict(), PATH)" in refused(tmp_path / "w.pth").fix


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    assert "no such file" in str(refused(tmp_path / "none.pth"))
    (tmp_path / "folder").mkdir()
    assert "no such file" in str(refused(tmp_path / "folder", f"{tmp_path}/folder/model.safetensors: "))
    assert "too long" in str(refused(tmp_path / ("x" * 300)))
    assert "no such file" in str(refused(tmp_path / "nul\0byte"))
    write_weights(tmp_path / "w.pth")
    assert refused(tmp_path / "w.pth" / "below")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    write_weights(path)
    path.chmod(0)
    assert "ermission denied" in str(refused(path))


def test_the_home_folder_is_found_and_a_strangers_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_weights(tmp_path / "w.pth")
    config = compose_config(["model.weights=~/w.pth"]).model
    assert str(tmp_path / "w.pth") in load_starting_weights(torch.nn.Linear(3, 2), config, 8, 3, 2)
    config = compose_config(["model.weights=~nobody-of-that-name/w.pth"]).model
    with pytest.raises(CheckpointError, match="no such file"):
        load_starting_weights(torch.nn.Linear(3, 2), config, 8, 3, 2)
