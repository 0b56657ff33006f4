"""What every test gets without asking: it may not leave a file descriptor open."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fds import no_leaks


@pytest.fixture(autouse=True)
def _no_fd_leaks() -> Iterator[None]:
    """Fails a test that leaves descriptors open. It is set up first, so everything else has been torn down by then."""
    with no_leaks():
        yield
