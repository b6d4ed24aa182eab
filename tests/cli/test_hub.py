"""The Hugging Face Hub: data sets, weights and models, with the real client and a fake Hub on loopback."""

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

from conftest import Said

from .stand_in_hub import COMMIT, StandInHub, stand_in_hub

Command = Callable[..., Said]
CLASSES = ["ant", "bee"]


@pytest.fixture
def hub(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    """A fake Hub without repositories and an empty cache; data and runs folders are temporary."""
    del runs
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("NEUSCALE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    with stand_in_hub() as started:
        monkeypatch.setenv("HF_ENDPOINT", started.address)
        started.token = "hf_right"
        yield started


@pytest.fixture
def no_network(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


SPLITS = ("train", "test")


def table(count: int, first: int = 0) -> Any:
    pa = pytest.importorskip("pyarrow")
    rows = []
    for i in range(first, first + count):
        stream = io.BytesIO()
        Image.fromarray(np.full((16, 16, 3), 10 * i, np.uint8)).save(stream, "PNG")
        rows.append({"bytes": stream.getvalue(), "path": f"{i}.png"})
    features = {"info": {"features": {"label": {"names": CLASSES, "_type": "ClassLabel"}}}}
    columns = {"image": rows, "label": [i % 2 for i in range(count)]}
    return pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(features)})


def as_bytes(content: Any) -> bytes:
    parquet = pytest.importorskip("pyarrow.parquet")
    stream = io.BytesIO()
    parquet.write_table(content, stream)
    return stream.getvalue()


def insects() -> dict[str, bytes]:
    return {
        "README.md": b"# Insects",
        "data/train-00000-of-00002.parquet": as_bytes(table(6)),
        "data/train-00001-of-00002.parquet": as_bytes(table(4, 6)),
        "data/test-00000-of-00001.parquet": as_bytes(table(4, 10)),
        "script.py": b"raise SystemExit",
    }


def meta_of(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "data" / "packed" / name / "meta.json").read_text())


def test_a_data_set_is_prepared_by_its_name_and_again_without_a_network(
    hub: StandInHub, no_network: Callable[[], None], neuscale: Command, tmp_path: Path
) -> None:
    hub.add("datasets", "zoo/insects", insects())
    said = neuscale("data", "prepare", "hf:zoo/insects", "--json")
    assert said.code == 0, said.err
    assert (said.json["name"], said.json["classes"]) == ("insects", CLASSES)
    assert said.json["counts"] == {"train": 10, "val": 4}
    assert not [asked for asked in hub.asked if "script.py" in asked or "README" in asked]
    assert meta_of(tmp_path, "insects")["source"]["given"] == f"hf:zoo/insects@{COMMIT}"
    no_network()
    said = neuscale("data", "prepare", "hf:zoo/insects", "--save-as", "again")
    assert said.code == 0, said.err
    assert f"no network; as it was fetched before, commit {COMMIT[:12]}" in said.words
    assert meta_of(tmp_path, "again")["fingerprint"] == meta_of(tmp_path, "insects")["fingerprint"]
    said = neuscale("data", "prepare", "hf:zoo/beetles")
    assert said.code == 1 and "hf:zoo/beetles: cannot be had" in said.words
    assert "not foreseen" not in said.words


def test_a_run_begins_with_a_data_set_of_the_hub_and_goes_on_without_it(
    hub: StandInHub, no_network: Callable[[], None], neuscale: Command, tiny_words: list[str]
) -> None:
    hub.add("datasets", "zoo/insects", insects())
    words = [word for word in tiny_words if not word.startswith("data.name")]
    words += ["data.name=bugs", "data.source=hf:zoo/insects", "train.global_batch_size=5"]
    assert neuscale("train", *words, "train.epochs=1", "run.name=a").code == 0
    hub.asked.clear()
    said = neuscale("train", "a", "--resume", "train.epochs=2")
    assert said.code == 0, said.err
    assert neuscale("train", *words, "train.max_steps=1", "run.name=b").code == 0
    assert neuscale("eval", "a").code == 0
    assert hub.asked == []
    no_network()
    assert neuscale("train", *words, "train.max_steps=1", "run.name=c").code == 0


def test_one_folder_of_a_repository_is_not_taken_for_another(
    hub: StandInHub, no_network: Callable[[], None], neuscale: Command, tiny_words: list[str], tmp_path: Path
) -> None:
    files = {"bees": as_bytes(table(6)), "wasps and flies": as_bytes(table(6, 10))}
    hub.add(
        "datasets", "zoo/both", {f"{name}/{part}.parquet": files[name] for name in files for part in SPLITS}
    )
    assert neuscale("data", "prepare", "hf:zoo/both/bees", "--save-as", "bugs").code == 0
    assert meta_of(tmp_path, "bugs")["source"]["given"] == f"hf:zoo/both@{COMMIT}/bees"
    words = [word for word in tiny_words if not word.startswith("data.name")]
    words += ["data.name=bugs", "train.max_steps=1", "train.global_batch_size=5"]
    said = neuscale("train", *words, "data.source=hf:zoo/both/wasps and flies")
    assert said.code == 1, said.err
    assert "data.name=NAME" in said.words
    no_network()
    said = neuscale("train", *words, "data.source=hf:zoo/both/bees")
    assert said.code == 0, said.err


def test_a_part_of_the_files_is_not_taken_for_all(
    hub: StandInHub, no_network: Callable[[], None], neuscale: Command, tmp_path: Path
) -> None:
    hub.add("datasets", "zoo/insects", insects())
    assert neuscale("data", "prepare", "hf:zoo/insects").code == 0
    [part] = (tmp_path / "cache").rglob("snapshots/*/data/train-00001-of-00002.parquet")
    part.unlink()
    no_network()
    said = neuscale("data", "prepare", "hf:zoo/insects", "--save-as", "half")
    assert said.code == 1
    # Older clients do not notice the missing file; NeuScale then does.
    assert "of train, only 1 of 2 files are there" in said.words or "cannot be had" in said.words


def test_the_hubs_own_parquet_is_taken_of_a_set_of_other_files(
    hub: StandInHub, no_network: Callable[[], None], neuscale: Command
) -> None:
    hub.add("datasets", "zoo/insects", {"insects.py": b"", "all.bin": b"x"})
    files = {name: data for name, data in insects().items() if name.endswith(".parquet")}
    hub.add("datasets", "zoo/insects", files, "refs/convert/parquet")
    said = neuscale("data", "prepare", "hf:zoo/insects", "--json")
    assert said.code == 0, said.err
    assert said.json["counts"] == {"train": 10, "val": 4}
    no_network()
    said = neuscale("data", "prepare", "hf:zoo/insects", "--json", "--force")
    assert said.code == 0, said.err


@pytest.mark.parametrize("form", ["stream", "file"])
def test_what_datasets_keeps_is_found_without_a_network(
    hub: StandInHub,
    no_network: Callable[[], None],
    neuscale: Command,
    tmp_path: Path,
    form: str,
) -> None:
    """The cache of `load_dataset` is read: Arrow streams or files, but not its `cache-*.arrow` files."""
    pa = pytest.importorskip("pyarrow")
    folder = tmp_path / "datasets" / "zoo___insects" / "default" / "0.0.0" / "abc123"
    folder.mkdir(parents=True)
    for split, count in (("train", 10), ("test", 4)):
        content = table(count)
        new = pa.ipc.new_stream if form == "stream" else pa.ipc.new_file
        with new(str(folder / f"insects-{split}.arrow"), content.schema) as writer:
            writer.write_table(content, max_chunksize=3)
    (folder / "cache-1234.arrow").write_bytes(b"not arrow")
    no_network()
    said = neuscale("data", "prepare", "hf:zoo/insects", "--json")
    assert said.code == 0, said.err
    assert said.json["counts"] == {"train": 10, "val": 4} and said.json["classes"] == CLASSES
    # The same as written by `save_to_disk`, with a folder for each split, given as the source.
    for split in ("train", "test"):
        (tmp_path / "saved" / split).mkdir(parents=True)
        whole = (folder / f"insects-{split}.arrow").read_bytes()
        (tmp_path / "saved" / split / "data-00000-of-00001.arrow").write_bytes(whole)
        (tmp_path / "saved" / split / "state.json").write_text("{}")
    said = neuscale("data", "prepare", "image_folder", "--source", str(tmp_path / "saved"), "--json")
    assert said.json["counts"] == {"train": 10, "val": 4}
    # A saved data set without splits, next to a `cache-*.arrow` file.
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "data-00000-of-00001.arrow").write_bytes(whole)
    (tmp_path / "one" / "cache-1234.arrow").write_bytes(b"not arrow")
    words = ["--source", str(tmp_path / "one"), "--val-share", "0.5", "--json"]
    said = neuscale("data", "prepare", "image_folder", *words)
    assert said.code == 0 and said.json["counts"] == {"train": 2, "val": 2}, said.err
    for length in (0, 8, 100, len(whole) // 2):
        (tmp_path / "saved" / "test" / "data-00000-of-00001.arrow").write_bytes(whole[:length])
        said = neuscale("data", "prepare", "image_folder", "--source", str(tmp_path / "saved"), "--force")
        assert said.code == 1 and "not foreseen" not in said.words, (length, said.words)


def test_images_that_lie_elsewhere_are_not_taken_for_images(neuscale: Command, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    content = pa.table({"image": [{"bytes": None, "path": "/etc/hostname"}] * 4, "label": [0, 1, 0, 1]})
    (tmp_path / "photos.parquet").write_bytes(as_bytes(content))
    said = neuscale(
        "data", "prepare", "image_folder", "--source", str(tmp_path / "photos.parquet"), "--val-share", "0.5"
    )
    assert said.code == 1
    assert "has no image, at most the name of a file elsewhere" in said.words


def test_a_model_is_uploaded_and_a_run_begins_with_it(
    hub: StandInHub,
    no_network: Callable[[], None],
    neuscale: Command,
    tiny_words: list[str],
    tiny_data: Path,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NEUSCALE_DATA", str(tiny_data))
    assert neuscale("train", *tiny_words, "train.epochs=1", "run.name=first").code == 0
    # In a subprocess, because older clients read the address of the Hub once, at import.
    command = [sys.executable, "-m", "neuscale", "export", "first", "--to", "hub:zoo/swin", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = Said(done.returncode, done.stdout, done.stderr)
    assert said.code == 0, said.err
    assert said.json["address"] == f"{hub.address}/zoo/swin"
    there = hub.files["models", "zoo/swin", "main"]
    assert there.keys() == {"README.md", "model.json", "model.safetensors"}
    front = yaml.safe_load(there["README.md"].decode().split("---")[1])
    assert front["pipeline_tag"] == "image-classification"
    weights = safetensors.torch.load(there["model.safetensors"])

    words = ["model.weights=hf:zoo/swin", "train.max_steps=1", "optim.lr=1e-12", "run.name=second"]
    said = neuscale("train", *tiny_words, *words)
    assert said.code == 0, said.err
    assert f"weights from hf:zoo/swin@{COMMIT}, head included" in said.words
    stored = yaml.safe_load((runs / "second" / "config.yaml").read_text())
    assert stored["model"]["weights"] == f"hf:zoo/swin@{COMMIT}", "it is the same a year later"
    trained = safetensors.torch.load_file(
        next((runs / "second" / "checkpoints").glob("step-*")) / "model.safetensors"
    )
    for name, value in weights.items():
        torch.testing.assert_close(trained[name], value, atol=1e-6, rtol=0)
    no_network()
    said = neuscale("runs", "replay", "second")
    assert said.code == 0, said.err
    said = neuscale("train", *tiny_words, "model.weights=hf:zoo/other")
    assert said.code == 2 and "hf:zoo/other: cannot be had" in said.words
    assert neuscale("export", "first", "--to", "hub:zoo/swin").code == 2


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ("hf:zoo/gone", "hf:zoo/gone: cannot be had"),
        ("hf:zoo/empty", "hf:zoo/empty: has no model.safetensors or pytorch_model.bin"),
        ("hf:zoo/empty/weights.pt", "has no weights.pt"),
        ("hf:zoo/empty@v2", "hf:zoo/empty@v2: cannot be had"),
        ("hf:zoo/../secrets/x", "is not a name on the Hub"),
        ("hf:", "is not a name on the Hub"),
        ("hf:zoo/bad", "not a readable file of weights"),
    ],
)
def test_weights_that_cannot_be_had_are_refused_in_words(
    hub: StandInHub,
    neuscale: Command,
    tiny_words: list[str],
    tiny_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    weights: str,
    problem: str,
) -> None:
    monkeypatch.setenv("NEUSCALE_DATA", str(tiny_data))
    hub.add("models", "zoo/empty", {"README.md": b""})
    hub.add("models", "zoo/bad", {"model.safetensors": b"no tensors"})
    said = neuscale("train", *tiny_words, f"model.weights={weights}")
    assert said.code in (1, 2)
    assert problem in said.words
    assert "not foreseen" not in said.words


def test_an_upload_without_a_right_says_so_and_keeps_the_export(
    hub: StandInHub,
    neuscale: Command,
    tiny_words: list[str],
    tiny_data: Path,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NEUSCALE_DATA", str(tiny_data))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert neuscale("train", *tiny_words, "train.max_steps=1", "run.name=first").code == 0
    said = neuscale("export", "first", "--to", "hub:zoo/swin")
    assert said.code == 2
    assert "hf:zoo/swin: cannot be uploaded" in said.words
    assert (runs / "first" / "export" / "safetensors" / "model.safetensors").exists()
