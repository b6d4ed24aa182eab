"""A tree of files in a folder on disk."""

from collections.abc import Collection, Iterator
from pathlib import Path

from neuscale.data.sources.file_tree import check_size, check_text, is_ignored
from neuscale.errors import DataError


class FolderTree:
    """A folder on disk. Links are followed, as everywhere on the user's own disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[str, int] = {}
        self.folders: set[str] = set()
        try:
            self._list(path, "", frozenset())
        except OSError as error:
            raise DataError(
                f"{error.filename}: cannot be read ({error.strerror}).", "Check its permissions and the disk."
            ) from None

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """See FileTree."""
        for name in names:
            path = self.path / name
            check_size(self.path, name, self.files[name])
            try:
                yield name, path.read_bytes()
            except OSError as error:
                raise DataError(
                    f"{path}: cannot be read ({error.strerror}).", "Check its permissions and the disk."
                ) from None

    def check_rest(self, used: Collection[str]) -> None:
        """Files on disk have nothing that could be checked without their content."""

    def _list(self, folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> None:
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:  # a link to a folder that it lies in
            return
        for entry in sorted(folder.iterdir()):
            if is_ignored(entry.name):
                continue
            check_text(self.path, prefix + entry.name)
            if entry.is_dir():
                self.folders.add(prefix + entry.name)
                self._list(entry, f"{prefix}{entry.name}/", above | {here})
            elif entry.is_file():
                self.files[prefix + entry.name] = entry.stat().st_size
            else:
                raise DataError(
                    f"{entry}: a broken link, or no file at all.",
                    "Remove or restore it and run the command again.",
                )
