"""Fetch data sets and weights from the Hugging Face Hub, and upload models, with huggingface_hub.

Names have the form `hf:OWNER/NAME[@REVISION][/FILE-OR-FOLDER]`. Without a network, files that were fetched
before are taken from the client's cache, which is below `$HF_HOME`.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from neuscale.errors import DataError, UsageError
from neuscale.progress import Progress, Task

_REPO, _REVISION, _PATH = r"(?P<repo>\w[\w.-]*(?:/\w[\w.-]*)?)", r"(?P<revision>[\w.-]+)", r"(?P<path>.+)"
_NAME = re.compile(rf"(?:hf|hub):{_REPO}(?:@{_REVISION})?(?:/{_PATH})?", re.ASCII)
# Path of a revision of a repository in huggingface_hub's cache.
_CACHED = re.compile(
    r"(?P<kind>models|datasets)--(?P<repo>[^/]+)/snapshots/(?P<commit>[0-9a-f]+)(?:/(?P<path>.*))?$"
)
_CONVERTED = "refs/convert/parquet"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_OF_MANY = re.compile(r"-(\d{5})-of-(\d{5})\.\w+$")


@dataclass(frozen=True)
class HubName:
    """A repository on the Hub; `revision` None: the newest; `path`: a file or folder in it, or ""."""

    repo: str
    revision: str | None = None
    path: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.repo}{revision}{f'/{self.path}' if self.path else ''}"

    @property
    def slug(self) -> str:
        """Name for a data set made from this repository."""
        return re.sub(r"[^a-z0-9_-]+", "_", self.repo.rpartition("/")[2].lower()).strip("_-") or "images"


def hub_name(text: str) -> HubName | None:
    """Parse a name on the Hub; None for a text without the prefix. Raises UsageError for an invalid name."""
    if not text.startswith(("hf:", "hub:")):
        return None
    found = _NAME.fullmatch(text)
    path = (found["path"] or "").strip("/") if found else ""
    if found is None or ".." in path.split("/"):
        raise UsageError(
            f"'{text}' is not a name on the Hub.", "For example: hf:google/vit-base-patch16-224."
        )
    return HubName(found["repo"], found["revision"], path)


def origin_of(path: Path) -> HubName | None:
    """Repository, commit and path of a file or folder in huggingface_hub's cache; None for other paths."""
    found = _CACHED.search(path.as_posix())
    if found is None:
        return None
    return HubName(found["repo"].replace("--", "/"), found["commit"], found["path"] or "")


def fetch_weights(name: HubName) -> Path:
    """Fetch a model's weights: the file `name.path`, else model.safetensors or pytorch_model.bin.

    Without `name.path`, a model.json, which models exported by NeuScale have, is fetched as well. Raises
    UsageError.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def fetch(file: str) -> Path | None:
        try:
            found = hf_hub_download(name.repo, file, revision=name.revision, **_places())
        except LocalEntryNotFoundError as error:  # also raised without a network
            raise _missing(name, error) from None
        except EntryNotFoundError:
            return None
        except Exception as error:
            raise _missing(name, error) from None
        return Path(found)

    wanted = [name.path] if name.path else list(_WEIGHTS)
    for file in wanted:
        if (path := fetch(file)) is not None:
            if not name.path:
                fetch("model.json")
            return path
    raise UsageError(
        f"{name}: has no {' or '.join(wanted)}.",
        f"Name the file of weights: {replace(name, path='FILE')}.",
    )


def pinned(name: HubName, path: Path) -> HubName:
    """`name` with the commit that was fetched to `path` as its revision, for reproducibility."""
    origin = origin_of(path)
    return replace(name, revision=origin.revision) if origin is not None else name


def fetch_dataset(name: HubName, progress: Progress) -> Path:
    """Fetch a data set and return its folder: only the Parquet files if there are any, else all files.

    Without a network, the folder is one fetched before, or the cache of the library `datasets`. Raises
    DataError.
    """
    from huggingface_hub import HfApi

    revision: str | None = name.revision
    try:
        files, revision = _list_files(HfApi(endpoint=_places()["endpoint"]), name)
    except UsageError:
        raise
    except Exception as error:  # no network, no such repository, no right to see it
        files, problem = None, error
    patterns = None
    if files is not None:
        inside = [file for file in files if file.startswith(f"{name.path}/" if name.path else "")]
        patterns = [file for file in inside if file.endswith(".parquet")] or inside
        if not patterns:
            raise DataError(f"{name}: holds no files.", "Look at its page, or name a folder of it.")
    try:
        if files is None:
            folder = _fetched_before(name)
        else:
            with progress.task(f"fetching {name.repo}", len(patterns or []), "file") as task:
                folder = _snapshot(name, revision, task, allow_patterns=patterns)
    except Exception as error:
        if files is None and (kept := _kept_by_datasets(name)) is not None:
            progress.message(f"{name}: from the cache of `datasets`, {kept}")
            return kept
        raise DataError(
            f"{name}: cannot be had ({_reason(problem if files is None else error)}).", _ADVICE
        ) from None
    path = Path(folder) / name.path
    if files is None:
        _check_whole(name, path)
        progress.message(f"{name}: no network; as it was fetched before, commit {Path(folder).name[:12]}")
    return path


def upload_model(folder: Path, name: HubName, progress: Progress) -> str:
    """Upload an exported model to the repository `name`, created if missing; return its URL.

    Raises UsageError if that is not possible: no network, no token or no write permission.
    """
    from huggingface_hub import HfApi

    if name.path:
        raise UsageError(f"{name}: a model is a whole repository.", f"Remove /{name.path}.")
    api = HfApi(endpoint=_places()["endpoint"])
    try:
        with progress.task(f"uploading to {name.repo}", None, "file"):
            address = api.create_repo(name.repo, exist_ok=True)
            api.upload_folder(
                repo_id=name.repo,
                folder_path=folder,
                revision=name.revision,
                commit_message="Export of a NeuScale run",
            )
    except Exception as error:
        raise UsageError(
            f"{name}: cannot be uploaded ({_reason(error)}). The export is whole, in {folder}.",
            "Check the network and 'hf auth login' (or $HF_TOKEN), and export it again.",
        ) from None
    return str(address)


def _fetched_before(name: HubName) -> str:
    """Cached folder of a data set: its Parquet files, else all files, else the Hub's Parquet conversion."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    # The same patterns as for fetching: newer clients raise an error if a matching file is missing.
    parquet = [f"{name.path}/*.parquet" if name.path else "*.parquet"]
    ways = [(name.revision, parquet), (name.revision, None)]
    ways += [(_CONVERTED, parquet)] if name.revision is None else []
    for revision, patterns in ways:
        try:
            folder = _snapshot(name, revision, None, allow_patterns=patterns, local_files_only=True)
        except LocalEntryNotFoundError as error:
            missing = error
            continue
        if any(path.is_file() for path in Path(folder).rglob("*")):
            return folder
    raise missing


def _snapshot(name: HubName, revision: str | None, task: Task | None, **options: Any) -> str:
    """Folder of a revision of a data set; missing files are fetched."""
    from huggingface_hub import snapshot_download
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        """Progress bar that reports finished files to `task`; bytes are not shown."""

        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **{**named, "disable": True})

        def __iter__(self) -> Any:
            for item in self.iterable:
                yield item
                if task is not None:
                    task.advance()

    return str(
        snapshot_download(
            name.repo, repo_type="dataset", revision=revision, tqdm_class=Bar, **options, **_places()
        )
    )


_ADVICE = (
    "Check its name and the network ('hf auth login' for one that is not public); what was fetched before,"
    " on this machine, is used without a network."
)


def _places() -> dict[str, Any]:
    """Endpoint and cache folder from the environment, read at each call. Hides the client's warnings."""
    from huggingface_hub import logging

    client: Any = logging
    client.set_verbosity_error()
    return {
        "endpoint": os.environ.get("HF_ENDPOINT") or None,
        "cache_dir": os.environ.get("HF_HUB_CACHE") or None,
    }


def _missing(name: HubName, error: Exception) -> UsageError:
    return UsageError(f"{name}: cannot be had ({_reason(error)}).", _ADVICE)


def _reason(error: Exception) -> str:
    """First line of the innermost error, which describes the network or repository problem."""
    inner: BaseException = error
    while type(error).__module__.startswith("huggingface_hub") and inner.__cause__ is not None:
        inner = inner.__cause__
        error = inner  # type: ignore[assignment]
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()] or [type(inner).__name__]
    return lines[0][:200].rstrip(".")


def _list_files(api: Any, name: HubName) -> tuple[list[str], str | None]:
    """Files and revision of a data set; without Parquet files, those of the Hub's Parquet conversion."""
    info = api.dataset_info(name.repo, revision=name.revision)
    files = [entry.rfilename for entry in info.siblings or []]
    if name.revision is None and not any(file.endswith(".parquet") for file in files):
        try:
            made = api.dataset_info(name.repo, revision=_CONVERTED)
        except Exception:  # there is no conversion
            return files, None
        parquet = [entry.rfilename for entry in made.siblings or [] if entry.rfilename.endswith(".parquet")]
        if parquet:
            return parquet, _CONVERTED
    return files, name.revision


def _check_whole(name: HubName, folder: Path) -> None:
    """Raise DataError if files of a numbered series (`train-00001-of-00005.parquet`) are missing."""
    found: dict[str, set[int]] = {}
    counts: dict[str, int] = {}
    for path in folder.rglob("*"):
        if match := _OF_MANY.search(path.name):
            stem = str(path.parent / path.name[: match.start()])
            found.setdefault(stem, set()).add(int(match[1]))
            counts[stem] = int(match[2])
    for stem, numbers in found.items():
        if len(numbers) < counts[stem]:
            raise DataError(
                f"{name}: of {Path(stem).name}, only {len(numbers)} of {counts[stem]} files are there.",
                "Fetch the rest with a network.",
            )


def _kept_by_datasets(name: HubName) -> Path | None:
    """Folder in the cache of `datasets` to which `load_dataset` wrote this data set. Raises DataError."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets") / name.repo.replace("/", "___")
    folders = sorted({path.parent for path in cache.rglob("*.arrow")})
    if len(folders) > 1:
        raise DataError(
            f"{name}: `datasets` keeps {len(folders)} forms of it in {cache}.",
            f"Give the one that you want as the source, for example {folders[0]}.",
        )
    return folders[0] if folders else None
