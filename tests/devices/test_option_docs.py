from __future__ import annotations

from vfio_user.devices.option_docs import described_arguments


class Lamp:
    """Shines.

    Args:
        size: bytes of
            ``memory``, all in one.

            Another paragraph: not an entry.
        watts (float): what it takes.

    Attributes:
        size: something else.
    """

    def __init__(self, size: int, watts: float) -> None:
        """Args:
        watts: not looked at, as the class says it.
        """


class InItsConstructor:
    """Shines."""

    def __init__(self, size: int) -> None:
        """Makes one.

        Args:
            size: of it.
        """


class Derived(Lamp):
    pass


class Silent:
    pass


def test_the_section_of_the_class() -> None:
    assert described_arguments(Lamp) == {
        "size": "bytes of memory, all in one. Another paragraph: not an entry.",
        "watts": "what it takes.",
    }


def test_the_section_of_the_constructor() -> None:
    assert described_arguments(InItsConstructor) == {"size": "of it."}


def test_only_what_the_class_says_itself() -> None:
    assert described_arguments(Derived) == {}
    assert described_arguments(Silent) == {}
