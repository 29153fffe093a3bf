"""Files that are there whole or not at all."""

import os
import shutil
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a kill or a power cut leaves the old state or the new one, nothing between.

    Args:
        path: The file; its folder is made when missing.
        content: Its bytes.

    Raises:
        OSError: If the disk is full or not writable; nothing that was on file is lost.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free // 2**20
        raise OSError(
            error.errno,
            f"could not write {path} ({error.strerror}; {free} MiB free). Nothing on file is lost:"
            " make room and run the same command again",
        ) from error
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
