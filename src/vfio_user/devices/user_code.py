"""What to say when the code of a device, rather than ours, raises: his exception, and his frames of the traceback."""

from __future__ import annotations

import os
import traceback
from types import TracebackType
from typing import TypeVar

from vfio_user.errors import VfioUserError

__all__ = ["describe_failure", "user_traceback"]

_ErrorT = TypeVar("_ErrorT", bound=VfioUserError)

#: Frames below here are ours, and those of the import machinery are nobody's.
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep  # noqa: PTH120, PTH100 - compared as text


def describe_failure(exc: BaseException, what: str, kind: type[_ErrorT]) -> _ErrorT:
    """Makes the error to raise for an exception of device code: one sentence, with the trimmed traceback as a note.

    Args:
        exc: what the device's code raised.
        what: what failed, the beginning of the sentence.
        kind: the class of error to make.
    """
    if isinstance(exc, VfioUserError):
        error = kind(f"{what}: {exc}")
    elif isinstance(exc, OSError) and exc.strerror and exc.filename is not None:
        # A file that is not there, most often: whoever named it needs no name of an exception.
        error = kind(f"{what}: {exc.filename}: {exc.strerror}")
    else:
        error = kind(f"{what}: {traceback.format_exception_only(exc)[-1].strip()}")
    note = user_traceback(exc)
    if note:
        error.add_note(note)
    return error


def user_traceback(exc: BaseException) -> str:
    """The traceback of an exception from the first frame that is not this package's, as text; "" if there is none.

    A SyntaxError has its place in it though no frame of the file ever ran.
    """
    trace: TracebackType | None = exc.__traceback__
    frames = [
        frame
        for frame in traceback.extract_tb(trace)
        if not frame.filename.startswith((_OURS, "<frozen ")) and "importlib" not in frame.filename
    ]
    if isinstance(exc, SyntaxError):
        return "".join(traceback.format_exception_only(exc)).rstrip()
    if not frames:
        return ""
    lines = ["Traceback (of the device's code, most recent call last):\n"]
    lines += traceback.format_list(frames)
    lines += traceback.format_exception_only(exc)
    return "".join(lines).rstrip()
