"""A folder of things that are expensive to make, each made once, whole, by one process at a time.

An entry is named after its *recipe*: the parameters it is made from and a version number that its code raises when
it makes the entry differently. A new recipe is a new name, so no entry is ever changed in place. Making happens in
a folder beside, under a file lock, and a rename publishes the result: a reader sees a whole entry or none, and a
process that dies half way leaves nothing but a folder the next one clears away.

The cache lies outside any checkout: ``$VFIO_USER_CACHE``, or ``vfio-user`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vfio_user.errors import VmUnavailableError
from vfio_user.vm.progress import Progress

__all__ = ["Cache", "default_cache_folder"]

_MANIFEST = "manifest.json"


def default_cache_folder() -> Path:
    """Where the cache lies unless told otherwise."""
    if named := os.environ.get("VFIO_USER_CACHE"):
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "vfio-user"


class Cache:
    """The cache in one folder. Any number of processes and threads may use the same folder at once.

    Args:
        folder: where; `default_cache_folder` when left out. Made when missing.

    Raises:
        VmUnavailableError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = (folder or default_cache_folder()).absolute()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from error

    def ensure(
        self,
        name: str,
        recipe: Mapping[str, object],
        build: Callable[[Path], None],
        progress: Progress | None = None,
    ) -> Path:
        """Returns the folder of an entry, building it first when it is missing or incomplete.

        Args:
            name: the beginning of the folder's name, for people.
            recipe: everything that decides what the entry holds, JSON-able; its hash ends the folder's name.
            build: fills the empty folder it is given. What it raises comes through, and nothing is kept.
            progress: told when the entry has to be waited for.

        Threading: any thread, any process.
        """
        text = json.dumps(recipe, sort_keys=True)
        entry = self.folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        if _is_whole(entry):
            return entry
        with self._lock(name, progress or Progress.silent()):
            if _is_whole(entry):  # made while this process waited
                return entry
            for leftover in self.folder.glob(f".{entry.name}.*"):
                shutil.rmtree(leftover, ignore_errors=True)
            beside = Path(tempfile.mkdtemp(prefix=f".{entry.name}.", dir=self.folder))
            try:
                build(beside)
                _write_manifest(beside, recipe)
                beside.chmod(0o755)  # mkdtemp's is private; a cache may be shared
                shutil.rmtree(entry, ignore_errors=True)
                beside.rename(entry)
            except BaseException:
                shutil.rmtree(beside, ignore_errors=True)
                raise
        return entry

    def store(self, name: str, suffix: str, content: bytes, mode: int = 0o644) -> Path:
        """Keeps bytes in a file named after their hash, and returns its path.

        Args:
            name: the folder it goes to.
            suffix: the end of the file's name, with its dot.
            content: the bytes.
            mode: permission bits.
        """
        path = self.folder / name / f"{hashlib.sha256(content).hexdigest()[:20]}{suffix}"
        if path.exists() and path.stat().st_size == len(content):
            return path
        try:
            path.parent.mkdir(exist_ok=True)
            handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(beside).chmod(mode)
            Path(beside).rename(path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
        return path

    @contextmanager
    def _lock(self, name: str, progress: Progress) -> Iterator[None]:
        """Holds the file lock of a name. Each call opens the file anew, so threads exclude each other too."""
        try:
            handle = os.open(self.folder / f".{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress.note(f"waiting for another process that is preparing {name}")
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _unusable(self, error: OSError) -> VmUnavailableError:
        return VmUnavailableError(
            f"the cache folder {self.folder} cannot be used ({error.strerror}): "
            "set VFIO_USER_CACHE to a folder that can be written"
        )


def _files(folder: Path) -> dict[str, int]:
    """The sizes of the regular files below a folder, by relative path, the manifest apart."""
    sizes = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and path.name != _MANIFEST:
            sizes[str(path.relative_to(folder))] = status.st_size
    return sizes


def _write_manifest(folder: Path, recipe: Mapping[str, object]) -> None:
    content = {"recipe": recipe, "files": _files(folder)}
    (folder / _MANIFEST).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def _is_whole(entry: Path) -> bool:
    """Whether every file of the entry is there with its size: a cleaner of old files may have been through it."""
    try:
        files = json.loads((entry / _MANIFEST).read_text())["files"]
        return all((entry / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, LookupError):
        return False
