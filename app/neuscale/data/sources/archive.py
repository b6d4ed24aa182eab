"""Opens whatever holds a tree of files."""

from pathlib import Path

from neuscale.data.sources.file_tree import GET_ANEW, FileTree
from neuscale.data.sources.folder_tree import FolderTree
from neuscale.data.sources.tar_tree import TarTree
from neuscale.data.sources.zip_tree import ZipTree
from neuscale.errors import DataError


def open_tree(path: Path) -> FileTree:
    """The tree in a folder, .zip, .tar or .tar.gz, told apart by content; DataError where it is none."""
    if path.is_dir():
        return FolderTree(path)
    try:
        with path.open("rb") as stream:
            head = stream.read(512)
    except FileNotFoundError:
        raise DataError(
            f"{path}: there is no such file or folder.", "Give the path of a folder or archive."
        ) from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}).", "Check its permissions and the disk."
        ) from None
    if not head:
        raise DataError(f"{path}: the file is empty.", GET_ANEW)
    if head.startswith(b"PK"):
        return ZipTree(path)
    if head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar":
        return TarTree(path)
    raise DataError(
        f"{path}: neither a folder nor a .zip, .tar or .tar.gz archive (or its beginning is damaged).",
        "Give one of these.",
    )
