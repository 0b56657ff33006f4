"""A board for each test, and how to make others."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.devices.lsi53c8xx.board import Board, disk
from tests.devices.scsi.storage import Jobs
from vfio_user.devices.lsi53c8xx.controller import Lsi53c8xx, Lsi53c895a
from vfio_user.devices.scsi import Target

BoardMaker = Callable[..., Board]


@pytest.fixture
def make_board() -> Iterator[BoardMaker]:
    made = []

    def make(targets: dict[int, Target] | None = None, *, chip: type[Lsi53c8xx] = Lsi53c895a) -> Board:
        made.append(Board(chip(targets={0: disk()} if targets is None else targets)))
        return made[-1]

    yield make
    for board in made:
        board.close()


@pytest.fixture
def board(make_board: BoardMaker) -> Board:
    """With a disk of id 0 that is ready at once."""
    return make_board()


@pytest.fixture
def storage() -> Jobs:
    return Jobs()


@pytest.fixture
def slow_board(make_board: BoardMaker, storage: Jobs) -> Board:
    """With a disk of id 0 whose storage is waited for."""
    made = make_board({0: disk(storage=storage)})
    made.make_ready()
    return made
