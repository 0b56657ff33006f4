"""The shape of the house: imports point down only, the core needs the standard library alone, every module is tested.

``LAYERS`` is the whole truth about who may know whom. When the code teaches something better, change the table, the
code and the documentation together.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.source import PACKAGE, SRC, TESTS, imports, modules

BELOW = "errors protocol regions memory interrupts pci hardware backends rings"
EVERYTHING_ELSE = f"{BELOW} transport server client devices drivers trace"

#: Layer -> what else of the package it may import; its own modules always. A name means the module or package and all
#: in it; the longest name that fits decides, so ``pci.registers`` is stricter than ``pci``.
LAYERS = {
    # The parts of a device: they know nothing of messages (only their numbers), and nothing of sockets.
    "errors": "",
    "protocol": "errors",
    "regions": "errors",
    "memory": "errors protocol.constants",
    "interrupts": "errors protocol.constants",
    "pci.registers": "errors regions _lazy",
    "pci": "errors regions protocol.constants _lazy",
    "hardware": "errors regions protocol.constants pci.registers",
    # What a storage or network device is made of besides: what holds its data, and queues in guest memory.
    "backends": "errors _lazy",
    "rings": "errors memory protocol.constants",
    # What moves the bytes; and the two ends of a connection, which never know each other.
    "transport": "errors protocol",
    "server": "errors protocol regions memory interrupts pci transport",
    "client": "errors protocol regions memory interrupts pci transport hardware",
    # What is made of them.
    "devices": "errors protocol.constants protocol.migration regions memory interrupts pci hardware backends rings "
    "server _lazy",
    "drivers": "errors protocol.constants regions memory pci hardware rings client _lazy",
    "trace": "errors protocol regions pci hardware transport server client",
    "vm": "errors transport _lazy",
    "testing": f"{EVERYTHING_ELSE} vm _lazy",
    # What users type, and what they import.
    "cli": f"{EVERYTHING_ELSE} vm testing.conformance _version",
    "__main__": "cli",
    "_lazy": "",
    "_version": "",
    "": f"{EVERYTHING_ELSE} _version _lazy",
}

#: What a device in production runs on.
CORE = ["errors", "protocol", "regions", "memory", "interrupts", "pci", "transport", "server"]

#: Modules that are one half of what another one does, and are tested with it: each by the file that tests both.
TESTED_WITH = {
    "cli/test_common.py": "cli/test_main.py",
    "cli/test_demo_in_python.py": "cli/test_demo.py",
    "cli/test_demo_report.py": "cli/test_demo.py",
    "cli/test_kit.py": "cli/test_guest_commands.py",
    "cli/test_plugged.py": "cli/test_boot.py",
    "client/test_exchanges.py": "client/test_device.py",
    "devices/lsi53c8xx/test_register_window.py": "devices/lsi53c8xx/test_controller.py",
    "devices/lsi53c8xx/test_run_writer.py": "devices/lsi53c8xx/test_runs.py",
    "devices/lsi53c8xx/test_waiting.py": "devices/lsi53c8xx/test_processor.py",
    "devices/nvme/test_command.py": "devices/nvme/test_nvm_commands.py",
    "devices/nvme/test_events.py": "devices/nvme/test_illegal_commands.py",
    "devices/nvme/test_features.py": "devices/nvme/test_admin.py",
    "devices/nvme/test_firmware.py": "devices/nvme/test_admin.py",
    "devices/nvme/test_gate.py": "devices/nvme/test_namespaces.py",
    "devices/nvme/test_health.py": "devices/nvme/test_admin.py",
    "devices/nvme/test_identify.py": "devices/nvme/test_admin.py",
    "devices/nvme/test_io_queues.py": "devices/nvme/test_controller.py",
    "devices/nvme/test_jobs.py": "devices/nvme/test_nvm_commands.py",
    "devices/nvme/test_log_pages.py": "devices/nvme/test_admin.py",
    "devices/nvme/test_management.py": "devices/nvme/test_admin.py",
    "devices/nvme/test_queues.py": "devices/nvme/test_controller.py",
    "devices/nvme/test_saved.py": "devices/nvme/test_controller.py",
    "devices/nvme/test_self_test.py": "devices/nvme/test_admin.py",
    "devices/nvme/test_turns.py": "devices/nvme/test_controller.py",
    "devices/nvme/test_vectors.py": "devices/nvme/test_controller.py",
    "devices/scsi/test_block_unit.py": "devices/scsi/test_disk.py",
    "devices/scsi/test_missing_unit.py": "devices/scsi/test_target.py",
    "devices/test_user_code.py": "devices/test_registry.py",
    "drivers/nvme/test_driver.py": "devices/nvme/test_controller.py",
    "hardware/nvme/test_data_pointers.py": "hardware/nvme/test_entries.py",
    "hardware/nvme/test_features.py": "devices/nvme/test_admin.py",
    "hardware/nvme/test_identify.py": "hardware/nvme/test_structure.py",
    "hardware/nvme/test_logs.py": "hardware/nvme/test_structure.py",
    "hardware/nvme/test_opcodes.py": "hardware/nvme/test_entries.py",
    "hardware/nvme/test_registers.py": "devices/nvme/test_controller.py",
    "hardware/nvme/test_status.py": "hardware/nvme/test_entries.py",
    "hardware/scsi/test_inquiry.py": "devices/scsi/test_primary.py",
    "hardware/scsi/test_log_pages.py": "devices/scsi/test_disk.py",
    "hardware/scsi/test_reservations.py": "devices/scsi/test_reservations.py",
    "hardware/test_pci_idio_16.py": "devices/test_gpio_pci_idio_16.py",
    "pci/capabilities/test_address_translation.py": "pci/capabilities/test_extended.py",
    "pci/capabilities/test_base.py": "pci/capabilities/test_extended.py",
    "pci/capabilities/test_link.py": "pci/capabilities/test_extended.py",
    "pci/capabilities/test_resizable_bar.py": "pci/capabilities/test_extended.py",
    "pci/capabilities/test_routing.py": "pci/capabilities/test_extended.py",
    "pci/capabilities/test_sr_iov.py": "pci/capabilities/test_extended.py",
    "pci/capabilities/test_tph.py": "pci/capabilities/test_extended.py",
    "pci/capabilities/test_vendor.py": "pci/capabilities/test_extended.py",
    "pci/registers/interchange/test_notes.py": "pci/registers/interchange/test_systemrdl.py",
    "pci/registers/interchange/test_remarks.py": "pci/registers/interchange/test_documents.py",
    "pci/registers/test_declaration.py": "pci/registers/test_layout.py",
    "pci/registers/test_paths.py": "pci/registers/test_hooks.py",
    "pci/registers/test_pieces.py": "pci/registers/test_block.py",
    "pci/registers/test_register.py": "pci/registers/test_fields.py",
    "pci/registers/test_reset.py": "pci/registers/test_block.py",
    "pci/registers/test_values.py": "pci/registers/test_block.py",
    "pci/registers/test_views.py": "pci/registers/test_block.py",
    "pci/test_config_registers.py": "pci/test_header.py",
    "pci/test_declaration.py": "pci/test_function.py",
    "pci/test_events.py": "pci/test_function.py",
    "server/test_migration_features.py": "server/test_migration.py",
    "server/test_reception.py": "server/test_session.py",
    "testing/conformance/client/test_observe.py": "cli/test_conform.py",
    "testing/conformance/client/test_rules.py": "testing/conformance/client/test_observation.py",
    "testing/conformance/server/test_access.py": "testing/conformance/test_proofs.py",
    "testing/conformance/server/test_dma.py": "testing/conformance/test_proofs.py",
    "testing/conformance/server/test_feature.py": "testing/conformance/test_proofs.py",
    "testing/conformance/server/test_header.py": "testing/conformance/test_proofs.py",
    "testing/conformance/server/test_info.py": "testing/conformance/test_proofs.py",
    "testing/conformance/server/test_migration.py": "testing/conformance/test_proofs.py",
    "testing/conformance/server/test_migration_region.py": "testing/conformance/test_proofs.py",
    "testing/conformance/server/test_region_info.py": "testing/conformance/test_proofs.py",
    "testing/conformance/server/test_region_read.py": "testing/conformance/test_proofs.py",
    "testing/conformance/server/test_region_write.py": "testing/conformance/test_proofs.py",
    "testing/conformance/server/test_set_irqs.py": "testing/conformance/test_proofs.py",
    "testing/conformance/server/test_stream.py": "testing/conformance/test_proofs.py",
    "testing/conformance/server/test_version.py": "testing/conformance/test_proofs.py",
    "testing/conformance/server/test_write_multi.py": "testing/conformance/test_proofs.py",
    "testing/conformance/test_bench.py": "testing/conformance/test_proofs.py",
    "testing/conformance/test_check.py": "testing/conformance/test_runner.py",
    "testing/conformance/test_endpoint.py": "testing/conformance/test_runner.py",
    "testing/conformance/test_facts.py": "testing/conformance/test_proofs.py",
    "testing/conformance/test_peer.py": "testing/conformance/test_proofs.py",
    "testing/test_guests.py": "guest/test_guests.py",
    "trace/test_payloads.py": "trace/test_decode.py",
    "trace/test_rare_payloads.py": "trace/test_decode.py",
    "vm/test_architecture.py": "vm/test_qemu.py",
    "vm/test_guest.py": "guest/test_boot.py",
    "vm/test_qmp.py": "guest/test_boot.py",
}

#: Folders of tests that mirror no package: of the helpers, of what lies outside the package, of whole systems.
FOLDERS_OF_THEIR_OWN = {"support", "tools", "examples", "bench", "docs", "guest", "interop", "robustness"}

MODULES = modules()


def inside(full_name: str) -> str:
    """``vfio_user.pci.rom`` -> ``pci.rom``; the package itself is nameless."""
    return full_name.removeprefix("vfio_user").removeprefix(".")


def is_within(module: str, name: str) -> bool:
    """The module is that one, or in that package."""
    return module == name or module.startswith(f"{name}.")


def layer_of(module: str) -> str:
    """The longest name of ``LAYERS`` a module falls under; the package itself is the nameless one."""
    fitting = [layer for layer in LAYERS if layer and is_within(module, layer)]
    assert fitting or not module, f"vfio_user.{module} is in no layer: enter it in LAYERS"
    return max(fitting, key=len, default="")


@pytest.mark.parametrize("module", [inside(name) for name in MODULES])
def test_imports_point_down(module: str) -> None:
    layer = layer_of(module)
    allowed = LAYERS[layer].split()
    wrong = []
    for line, full_name in imports(MODULES[f"vfio_user.{module}".rstrip(".")], set(MODULES)):
        if not is_within(full_name, "vfio_user"):
            continue
        imported = inside(full_name)
        own = imported != "" and is_within(imported, layer) if layer else imported == ""
        if not own and not any(is_within(imported, name) for name in allowed):
            wrong.append(f"line {line} imports {full_name}")
    assert not wrong, f"vfio_user.{module} may import its own layer ({layer}) and {allowed}, but {'; '.join(wrong)}"


def test_every_layer_a_layer_may_know_exists_in_the_table() -> None:
    for allowed in LAYERS.values():
        for name in allowed.split():
            layer_of(name)


def test_no_layer_knows_one_that_knows_it() -> None:
    below: dict[str, set[str]] = {layer: {layer_of(name) for name in LAYERS[layer].split()} for layer in LAYERS}

    def reaches(layer: str, target: str) -> bool:
        return any(name == target or reaches(name, target) for name in below[layer])

    # A package and its stricter part (pci, pci.registers) point from the one to the other only.
    assert [layer for layer in LAYERS if reaches(layer, layer)] == []


def test_the_core_runs_on_the_standard_library_alone() -> None:
    core = [name for name in MODULES if any(is_within(name, f"vfio_user.{layer}") for layer in CORE)]
    program = (
        "import importlib, json, sys\n"
        f"sys.path.insert(0, {str(SRC)!r})\n"
        f"for name in {core!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    # -I and -S: no site-packages, no environment, as if nothing at all were installed.
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded: list[str] = json.loads(done.stdout)
    assert set(core) <= set(loaded)
    foreign = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names - {"vfio_user", "__main__"}
    assert foreign == set()
    above = {layer_of(inside(name)) for name in loaded if is_within(name, "vfio_user")} - {*CORE, "pci.registers"}
    assert above <= {"", "_lazy", "_version"}


def test_only_what_is_declared_is_imported_from_outside() -> None:
    # The machine protocol is an extra of vfio_user.vm; who uses vfio_user.testing runs it under pytest. Arrays are an
    # extra of rings and what works on them; libnbd has a Python binding of its own, which no package index has.
    allowed = {
        "vfio_user.vm": {"qemu"},
        "vfio_user.testing": {"pytest"},
        "vfio_user.rings.arrays": {"numpy"},
        "vfio_user.rings.pages": {"numpy"},
        "vfio_user.devices.nvme.vector": {"numpy"},
        "vfio_user.backends.nbd": {"nbd"},
    }
    for name, path in MODULES.items():
        for line, imported in imports(path, set(MODULES)):
            top = imported.partition(".")[0]
            if top != "vfio_user" and top not in sys.stdlib_module_names:
                extras = set().union(*(tops for layer, tops in allowed.items() if is_within(name, layer)))
                assert top in extras, (
                    f"{path}:{line} imports {imported}, which pyproject.toml does not declare for {name}"
                )


# Every module has its test file, and every folder of tests its package.


def mirrored(path: Path) -> str:
    """``src/vfio_user/pci/rom.py`` -> ``pci/test_rom.py``."""
    relative = path.relative_to(PACKAGE)
    return (relative.parent / f"test_{relative.name}").as_posix()


def test_every_module_has_its_test_file() -> None:
    # A private module is tested through those that use it; what a package offers, by test_exports.
    public = [path for name, path in MODULES.items() if path.name != "__init__.py" and "._" not in name]
    missing = [mirrored(path) for path in public if not (TESTS / mirrored(path)).exists()]
    assert [name for name in missing if name not in TESTED_WITH] == []
    assert [name for name in TESTED_WITH if name not in missing] == []
    assert [name for name in TESTED_WITH.values() if not (TESTS / name).exists()] == []


def test_every_folder_of_tests_has_its_package() -> None:
    folders = {path.parent.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    mirrors = [folder for folder in folders if folder.parts and folder.parts[0] not in FOLDERS_OF_THEIR_OWN]
    assert [folder for folder in mirrors if not (PACKAGE / folder).is_dir()] == []
