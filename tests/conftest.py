"""What every test gets without asking: it may not leave a file descriptor open."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.fds import no_leaks

# How long an example takes says nothing on a machine that does other things too. All else stays as it is there: in CI
# Hypothesis takes the same examples every time.
settings.register_profile("without_deadline", settings(), deadline=None)
settings.load_profile("without_deadline")


@pytest.fixture(autouse=True)
def _no_fd_leaks() -> Iterator[None]:
    """Fails a test that leaves descriptors open. It is set up first, so everything else has been torn down by then."""
    with no_leaks():
        yield
