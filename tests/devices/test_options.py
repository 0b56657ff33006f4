from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.devices.nvme.controller import Nvme
from vfio_user.devices.options import DeviceOption, convert, device_options, make_device
from vfio_user.errors import DefinitionError, DeviceOptionError, InvalidAccess
from vfio_user.server.device import Device

if TYPE_CHECKING:
    from fractions import Fraction


class Speed(enum.Enum):
    SLOW = 1
    VERY_FAST = 2


class Lamp(Device):
    def __init__(
        self,
        *,
        size: int = 0x0FFF_FFFF,
        watts: float = 0.5,
        lit: bool = True,
        label: str = "",
        image: Path | None = None,
        speed: Speed = Speed.VERY_FAST,
        colour: Literal["red", "green"] = "red",
        later: Fraction | None = None,
        callback: Any = None,
    ) -> None:
        super().__init__()
        self.values = (size, watts, lit, label, image, speed, colour)


class Bright(Lamp):
    def __init__(self, *, size: int = 5, **rest: Any) -> None:
        super().__init__(size=size, **rest)


class Explained(Bright):
    """Has a text.

    Args:
        size: bytes of it.
    """

    def __init__(self, *, size: int = 5, **rest: Any) -> None:
        super().__init__(size=size, **rest)


class Needy(Device):
    def __init__(self, *, image: Path) -> None:
        super().__init__()
        self.image = image


class Stern(Device):
    def __init__(self, *, size: int = 3) -> None:
        super().__init__()
        if size % 2:
            raise ValueError(f"size {size} is odd")


class Plain(Device):
    pass


def message(cls: type[Device], settings: dict[str, str], **kwargs: Any) -> str:
    with pytest.raises(DeviceOptionError) as caught:
        make_device(cls, settings, **kwargs)
    return str(caught.value)


def test_options_are_the_parameters_of_the_constructor() -> None:
    lines = [str(option) for option in device_options(Lamp)]
    assert lines[:7] == [
        "size (integer, default 0xfffffff)",
        "watts (number, default 0.5)",
        "lit (on|off, default on)",
        "label (text, default '')",
        "image (path or none, default none)",
        "speed (slow|very-fast, default very-fast)",
        "colour (red|green, default red)",
    ]


def test_options_of_a_base_class_come_along_with_keywords() -> None:
    options = device_options(Bright)
    assert options[0] == DeviceOption("size", int, False, 5)
    assert [option.name for option in options].count("size") == 1
    assert "speed" in [option.name for option in options]


def test_an_option_has_the_text_of_the_class_whose_parameter_it_is() -> None:
    docs = {option.name: option.doc for option in device_options(Explained)}
    assert docs["size"] == "bytes of it."
    assert docs["watts"] == ""


def test_a_device_without_a_constructor_has_no_options() -> None:
    assert device_options(Plain) == []


def test_every_kind_is_converted() -> None:
    device = make_device(
        Lamp,
        {
            "size": "64K",
            "watts": "1.5",
            "lit": "off",
            "label": "a b",
            "image": "/tmp/x",
            "speed": "Slow",
            "colour": "green",
        },
    )
    assert device.values == (65536, 1.5, False, "a b", Path("/tmp/x"), Speed.SLOW, "green")


def test_dashes_stand_for_underscores() -> None:
    class Dashed(Device):
        def __init__(self, *, dma_mask: int = 0) -> None:
            super().__init__()
            self.dma_mask = dma_mask

    assert make_device(Dashed, {"dma-mask": "0x10"}).dma_mask == 16


def test_unknown_option_offers_the_nearest_and_all() -> None:
    assert message(Stern, {"sice": "1"}, name="stern") == (
        "stern has no option 'sice'; did you mean 'size'? Options of stern: size (integer, default 3)"
    )
    assert message(Plain, {"x": "1"}) == "Plain has no option 'x'. Plain has no options at all"


def test_wrong_value_names_option_value_and_rule() -> None:
    assert message(Lamp, {"size": "big"}) == (
        "Lamp: option size cannot be 'big': it must be an integer, as in 42, 0x2a or 64K"
    )
    assert message(Lamp, {"lit": "maybe"}) == "Lamp: option lit cannot be 'maybe': it must be on or off"
    assert message(Lamp, {"speed": "warp"}) == "Lamp: option speed cannot be 'warp': it must be one of slow, very-fast"
    assert message(Lamp, {"colour": "blue"}).endswith("it must be one of red, green")
    assert message(Lamp, {"watts": "x"}).endswith("it must be a number, as in 0.5")


def test_missing_option() -> None:
    assert message(Needy, {}) == "Needy needs image (path, required): give it as image=VALUE"


def test_a_constructor_that_raises_is_shown_at_its_own_frames() -> None:
    with pytest.raises(DefinitionError) as caught:
        make_device(Stern, name="stern")
    assert str(caught.value) == "stern could not be made: ValueError: size 3 is odd"
    (note,) = caught.value.__notes__
    assert note.count("File ") == 1
    assert "test_options.py" in note
    assert 'raise ValueError(f"size {size} is odd")' in note


def test_a_file_that_cannot_be_opened_is_told_of_in_the_systems_words(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError) as caught:
        make_device(Nvme, {"image": str(tmp_path / "nothing")})
    assert str(caught.value) == f"Nvme could not be made: {tmp_path / 'nothing'}: No such file or directory"


def test_our_own_errors_keep_their_words() -> None:
    class Refusing(Device):
        def __init__(self) -> None:
            raise InvalidAccess("no such thing")

    with pytest.raises(DefinitionError, match=r"Refusing could not be made: .*no such thing"):
        make_device(Refusing)


def test_a_required_parameter_without_text_form_is_a_definition_error() -> None:
    class Strange(Device):
        def __init__(self, *, backend: Device) -> None:
            super().__init__()

    with pytest.raises(DefinitionError, match="Strange needs backend, a Device, which cannot be given as text"):
        device_options(Strange)


@pytest.mark.parametrize(
    ("text", "wanted", "value"),
    [
        ("0x1F", int, 31),
        ("-5", int, -5),
        ("1_000", int, 1000),
        ("2k", int, 2048),
        ("4MiB", int, 4 << 20),
        ("1G", int, 1 << 30),
        ("0x1B", int, 27),
        ("none", int | None, None),
        ("7", int | None, 7),
        ("7", int | str, 7),
        ("seven", int | str, "seven"),
        ("none", str, "none"),
        ("5", Literal[5, 6], 5),
    ],
)
def test_convert(text: str, wanted: Any, value: object) -> None:
    assert convert(text, wanted) == value


@pytest.mark.parametrize("text", ["", "K", "1B", "KiB", "1.5K", "0x", "1KB"])
def test_no_integers(text: str) -> None:
    with pytest.raises(ValueError, match="it must be an integer"):
        convert(text, int)


def test_a_union_that_fits_nothing() -> None:
    with pytest.raises(ValueError, match="it must be integer or none"):
        convert("x", int | None)


@given(st.integers(min_value=-(1 << 70), max_value=1 << 70))
def test_a_default_is_shown_in_a_form_that_can_be_given(value: int) -> None:
    assert convert(DeviceOption("x", int, False, value).default_text, int) == value


def refusal(text: str, wanted: Any) -> str:
    try:
        convert(text, wanted)
    except ValueError as exc:
        return str(exc)
    return ""


@given(st.text(max_size=12))
@pytest.mark.parametrize("wanted", [int, float, bool, Speed, int | None, Literal["a"]])
def test_any_text_converts_or_says_what_would(wanted: Any, text: str) -> None:
    why = refusal(text, wanted)
    assert not why or why.startswith("it must be ")
