from __future__ import annotations

import pytest

from vfio_user.errors import DefinitionError
from vfio_user.pci import FunctionEvents, PciAttributes, PowerManagement, PowerState, build_function


class Plain(PciAttributes):
    vendor_id, device_id, class_code = 0x1234, 1, 0xFF0000
    pm = PowerManagement()


class Full(Plain):
    pm = PowerManagement(d1=True, d2=True, pme_from=["D0", "D3hot", "D3cold"], aux_current=7, no_soft_reset=False)


PMC, PMCSR = 0x42, 0x44


def test_registers_show_what_was_declared() -> None:
    plain, full = build_function(Plain()).config, build_function(Full()).config
    assert (plain.read(PMC, 2), plain.read(PMCSR, 2)) == (0x0003, 0x0008)
    assert (full.read(PMC, 2), full.read(PMCSR, 2)) == (0xCFC3, 0x0000)


@pytest.mark.parametrize(("device_class", "states"), [(Plain, [0, 0, 0, 3]), (Full, [0, 1, 2, 3])])
def test_states_the_function_lacks_are_not_entered(device_class: type[Plain], states: list[int]) -> None:
    reached = []
    for wanted in range(4):
        device = device_class()
        build_function(device).config.write(PMCSR, 2, wanted)
        reached.append(int(device.pm.state))
    assert reached == states


def test_changes_of_state_are_told_once() -> None:
    seen: list[tuple[int, int]] = []
    config = build_function(Full(), FunctionEvents(on_power_state=lambda old, new: seen.append((old, new)))).config
    config.write(PMCSR, 2, 1)
    config.write(PMCSR, 1, 1)
    config.write(PMCSR, 4, 3)
    assert seen == [(PowerState.D0, PowerState.D1), (PowerState.D1, PowerState.D3HOT)]


def test_only_its_own_bits_are_writable() -> None:
    config = build_function(Full()).config
    config.write(PMCSR, 4, 0xFFFF_FFFF)
    assert config.read(PMCSR, 4) == 0x0103
    config = build_function(Plain()).config
    config.write(PMCSR, 4, 0xFFFF_FFFF)
    assert config.read(PMCSR, 4) == 0x000B  # it sends no PME, so there is nothing to enable


def test_pme_status_is_cleared_by_a_one() -> None:
    device = Full()
    config = build_function(device).config
    assert device.pm.signal_pme() is False
    assert config.read(PMCSR, 2) == 0x8000
    config.write(PMCSR, 2, 0x0100)
    assert config.read(PMCSR, 2) == 0x8100
    assert device.pm.signal_pme() is True
    config.write(PMCSR, 2, 0x8100)
    assert config.read(PMCSR, 2) == 0x0100


@pytest.mark.parametrize("state", ["D1", "D4"])
def test_pme_from_a_state_it_lacks_is_refused(state: str) -> None:
    with pytest.raises(DefinitionError, match=f"names '{state}'"):
        PowerManagement(pme_from=[state])


def test_aux_current_has_three_bits() -> None:
    with pytest.raises(DefinitionError, match="aux_current=8"):
        PowerManagement(aux_current=8)
