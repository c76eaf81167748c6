"""Reading and writing the files of torch.distributed.checkpoint: without running code, and with the system's errors."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata

from srattn.errors import SrattnError

# All that the index of a checkpoint of tensors is made of. Entries of arbitrary bytes are not among them: torch would
# unpickle those.
_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"},
    "pathlib": {"Path", "PosixPath", "WindowsPath"},
    "pathlib._local": {"Path", "PosixPath", "WindowsPath"},
}  # fmt: skip
_MOST = 256 << 20


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise SrattnError(f"the checkpoint's index holds {module}.{name}, which has no place there")
        return super().find_class(module, name)


class SafeReader(FileSystemReader):
    """Reads an index of tensors and nothing else, and files of the checkpoint's own folder alone."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / ".metadata"
        if path.stat().st_size > _MOST:
            raise SrattnError(f"{path} has {path.stat().st_size} bytes, more than the {_MOST} that are accepted")
        with open(path, "rb") as file:
            metadata = _Unpickler(file).load()
        if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
            raise SrattnError(f"{path} is no index of a checkpoint")
        for info in metadata.storage_data.values():
            name = str(info.relative_path)
            if Path(name).name != name:
                raise SrattnError(f"{path} points out of its folder, to {name}")
            if info.transform_descriptors:
                raise SrattnError(f"{path}: {name} is encoded, which no checkpoint of ours is")
        return metadata


class Writer(FileSystemWriter):
    """Writes one file a process, flushed to the disk; `error` is the first that the system gave."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, sync_files=True)
        self.fs = self._disk = _Disk()

    @property
    def error(self) -> OSError | None:
        return self._disk.error


class _Disk(FileSystem):
    error: OSError | None = None

    @contextlib.contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[io.IOBase, None, None]:
        if mode != "wb":
            with super().create_stream(path, mode) as stream:
                yield stream
            return
        try:
            with _Watched(self, path) as file:
                yield file
        except OSError as error:
            self.error = self.error or error
            raise


class _Watched(io.FileIO):
    """An unbuffered file: torch writes whole tensors. It tells of a failed write, and writes all that it is given."""

    def __init__(self, disk: _Disk, path: str | os.PathLike[str]) -> None:
        super().__init__(path, "wb")
        self._disk = disk

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view):
                done += self.put(view[done:])
        except OSError as error:
            error.filename = error.filename or self.name
            self._disk.error = self._disk.error or error
            raise
        return done

    def put(self, data: memoryview) -> int:
        """As many of the bytes as the system takes at once."""
        return super().write(data) or 0


def cause(error: BaseException) -> BaseException:
    """What a process met, out of torch's account of all processes."""
    if isinstance(error, CheckpointException):
        failures = cast("dict[int, Any]", error.failures)
        for _, wrapped in sorted(failures.items()):
            return wrapped[0]
    return error
