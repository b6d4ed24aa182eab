"""Open a user's folder, archive or file of images as a source, depending on its content."""

import sys
from collections.abc import Sequence
from pathlib import Path

from neuscale.data.sources.arrays import open_arrays
from neuscale.data.sources.decode import is_image
from neuscale.data.sources.file_tree import GET_ANEW, FileTree
from neuscale.data.sources.folder_tree import FolderTree
from neuscale.data.sources.image_files import ImageFilesSource
from neuscale.data.sources.image_folder import open_image_folder
from neuscale.data.sources.label_table import open_label_table
from neuscale.data.sources.npz import is_array_file
from neuscale.data.sources.options import USUAL, SourceOptions
from neuscale.data.sources.parquet import open_parquet
from neuscale.data.sources.parquet_rows import MAGIC, is_parquet
from neuscale.data.sources.shards import ShardsTree, is_shard, open_shards, shards_in
from neuscale.data.sources.tar_tree import COMPRESSIONS, TarTree
from neuscale.data.sources.zip_tree import ZipTree
from neuscale.errors import DataError, UsageError, is_refused, read_error
from neuscale.progress import Progress, Silent
from neuscale.untrusted import open_regular

_SILENT = Silent()


def open_images(
    path: Path,
    options: SourceOptions = USUAL,
    classes: Sequence[str] | None = None,
    progress: Progress = _SILENT,
) -> ImageFilesSource:
    """Open the images of a folder, an archive, a Parquet file or an array file, with classes and splits.

    A folder of images, or an archive of one, has class folders or the table `options.labels`; a folder of
    Parquet files or of shards contains the classes in these files. With `classes`, the class folders must
    have these names. Raises UsageError for options that do not apply to this form, DataError for an
    unknown form.
    """
    columns = ("image_column", "label_column", "split_column")
    several = ("multi_label", "label_separator", "label_columns")
    if options.labels is None and path.is_file():
        if _begins(path).startswith(MAGIC):
            _refuse(options, "a Parquet file", "nested", "encoding")
            return open_parquet(path, None, options)
        if is_array_file(path):
            _refuse(options, "a file of arrays", "nested", "encoding", *columns, *several[1:])
            return open_arrays(path, options)
    tree = open_tree(path, options.encoding, progress)
    if options.labels is not None:
        return open_label_table(tree, options)
    if isinstance(tree, FolderTree) and not any(map(is_image, tree.files)):
        if any(map(is_parquet, tree.files)):
            _refuse(options, "a folder of Parquet files", "nested")
            return open_parquet(path, tree, options)
        if shards := shards_in(tree):
            _refuse(options, "a folder of shards", "nested", "image_column", "split_column", *several)
            return open_shards(ShardsTree(tree, shards), shards, options)
    if isinstance(tree, TarTree) and is_shard(tree):
        _refuse(options, "a shard", "nested", "image_column", "split_column", *several)
        return open_shards(tree, [], options)
    if any(getattr(options, name) is not None for name in columns):
        raise UsageError("the columns are those of a table, and there is none.", "Set `labels`.")
    _refuse(options, "folders of classes (a table says several labels: `labels`)", *several)
    return open_image_folder(tree, options, classes)


def _refuse(options: SourceOptions, form: str, *names: str) -> None:
    """Raise UsageError if one of the options `names` is given, since they do not apply to the form."""
    for name in names:
        if getattr(options, name) is not None:
            raise UsageError(f"`{name}` means nothing for {form}.", "Remove it.")


def _begins(path: Path) -> bytes:
    """The first bytes of a file. Raises DataError if it is not a file or is empty."""
    try:
        with open_regular(path, limit=sys.maxsize, links=True) as stream:
            head = stream.read(512)
    except FileNotFoundError:
        raise DataError(
            f"{path}: there is no such file or folder.", "Give the path of a folder or archive."
        ) from None
    except OSError as error:
        if is_refused(error):
            raise read_error(error, path) from None
        raise DataError(f"{path}: {error.strerror}.", "Give the path of a folder or archive.") from None
    if not head:
        raise DataError(f"{path}: the file is empty.", GET_ANEW)
    return head


def open_tree(path: Path, encoding: str | None = None, progress: Progress = _SILENT) -> FileTree:
    """Open a folder, a .zip or a .tar (possibly compressed) as a tree; archives are recognised by content.

    `encoding`: encoding of an archive's names, if it does not state one. Raises DataError for anything else.
    """
    if path.is_dir():
        return FolderTree(path, progress)
    head = _begins(path)
    if head.startswith(b"PK"):
        return ZipTree(path, encoding)
    if head.startswith(tuple(COMPRESSIONS)) or head[257:262] == b"ustar":
        return TarTree(path, encoding)
    raise DataError(
        f"{path}: neither a folder nor a .zip, .tar (.gz, .bz2, .xz, .zst), .parquet or .npz file, or damaged"
        " at its beginning.",
        "Give one of these.",
    )
