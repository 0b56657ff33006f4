from __future__ import annotations

import json
import select
import signal
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.support import Outcome, agree, program, receive, serving
from tests.support.systemd import activated
from vfio_user.cli.common import runtime_folder
from vfio_user.protocol.device import DeviceInfo, DeviceInfoRequest
from vfio_user.protocol.header import command_header
from vfio_user.protocol.region import RegionAccess

Run = Callable[..., Outcome]


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def connect_soon(path: Path, process: subprocess.Popen[bytes]) -> socket.socket:
    """Connects to a server that has no way to say when it listens."""
    while True:
        assert process.poll() is None
        try:
            return connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            select.select([], [], [], 0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("with_client", [False, True])
def test_from_the_announcement_to_a_clean_end(folder: Path, number: signal.Signals, with_client: bool) -> None:
    path = folder / "lamp.sock"
    with serving("lamp.py", "--socket-path", str(path), cwd=folder) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"Lamp listening on {path}\n"
        with connect(path) as connection:
            if with_client:
                assert agree(connection).major == 0
            process.send_signal(number)
            output, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (0, "")
    assert f'"path":"{path}"' in output
    assert "memory-backend-memfd" in output
    assert not path.exists()


def test_one_client_after_another(folder: Path) -> None:
    path = folder / "lamp.sock"
    with serving("lamp.py", "--socket-path", str(path), cwd=folder) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(2):
            with connect(path) as connection:
                assert agree(connection).major == 0


def test_an_inherited_connection_is_served_to_its_end(folder: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, serving("lamp.py", "--fd", str(theirs.fileno()), cwd=folder, pass_fds=[theirs.fileno()]) as process:
        number = theirs.fileno()
        theirs.close()
        assert agree(ours).major == 0
        ours.close()
        output, errors = process.communicate(timeout=10)
    assert (process.returncode, output, errors) == (0, f"Lamp on descriptor {number}\n", "")


def test_an_inherited_listener_outlives_clients(folder: Path) -> None:
    path = folder / "inherited.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with serving("lamp.py", "--fd", str(listener.fileno()), cwd=folder, pass_fds=[listener.fileno()]) as process:
            for _ in range(2):
                with connect(path) as connection:
                    assert agree(connection).major == 0
            process.terminate()
            assert process.wait(10) == 0
    assert path.exists()  # it was not ours to remove


def test_an_inherited_listener_is_plugged_by_its_path(folder: Path) -> None:
    path = folder / "inherited.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        number = listener.fileno()
        with serving("lamp.py", f"--address=fd:{number}", cwd=folder, pass_fds=[number]) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == f"Lamp listening on {path}\n"
            process.terminate()
            output = process.stdout.read()
    assert f'"path":"{path}"' in output


@pytest.mark.parametrize("word", ["lamp.sock", "unix:lamp.sock", "./lamp.sock"])
def test_a_socket_file_by_its_address(folder: Path, word: str) -> None:
    with serving("lamp.py", "--address", word, cwd=folder) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "Lamp listening on lamp.sock\n"
        assert process.stdout.readline().startswith("plug it into QEMU >= ")
        with connect(folder / "lamp.sock") as connection:
            assert agree(connection).major == 0


def test_tcp_of_this_machine_alone(folder: Path) -> None:
    with serving("lamp.py", "--address=tcp:0", cwd=folder) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        words = process.stdout.readline().split()
        assert words[:3] == ["Lamp", "listening", "on"]
        host, port = words[3].removeprefix("tcp:").split(":")
        assert host == "127.0.0.1"
        with socket.create_connection((host, int(port))) as connection:
            assert agree(connection).major == 0
        process.terminate()
        assert process.wait(10) == 0
        output, errors = process.stdout.read(), process.stderr.read()
    assert errors == ""
    assert output == (
        "QEMU cannot connect to it: its vfio-user-pci takes UNIX sockets only (--socket-path).\n"
        "Clients that can drive it by messages alone: no mapped memory, no eventfds.\n"
    )


def test_tcp_for_everybody_is_warned_of(folder: Path) -> None:
    with serving("lamp.py", "--address=tcp:0.0.0.0:0", cwd=folder) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        address = process.stdout.readline().split()[3]
        process.terminate()
        assert process.wait(10) == 0
        output, errors = process.stdout.read(), process.stderr.read()
    warning = f"vfio-user has no authentication: whoever can reach {address} can drive the device\n"
    assert output.startswith(f"{warning}QEMU cannot connect")
    assert warning in errors


def test_json_of_a_port(folder: Path) -> None:
    with serving("lamp.py", "--address=tcp:0", "--json", cwd=folder) as process:
        assert process.stdout is not None
        about = json.loads(process.stdout.readline())
    assert about["address"].startswith("tcp:127.0.0.1:")
    assert set(about) == {"device", "pci_id", "pid", "address"}


def test_sockets_of_systemd(folder: Path) -> None:
    path = folder / "lamp.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        words = ("-m", "vfio_user", "serve", "lamp.py", "--address=systemd:lamp")
        with activated([listener], "lamp", *words, cwd=folder) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == f"Lamp listening on {path}\n"
            with connect(path) as connection:
                assert agree(connection).major == 0
            process.terminate()
            assert process.wait(10) == 0
    assert path.exists(), "it is systemd's to remove"


def test_json_is_one_line_for_programs(folder: Path) -> None:
    path = folder / "lamp.sock"
    with serving("lamp.py", "--socket-path=lamp.sock", "--json", cwd=folder) as process:
        assert process.stdout is not None
        about = json.loads(process.stdout.readline())
    assert about["socket_path"] == str(path)
    assert about["address"] == f"unix:{path}"
    assert (about["device"], about["pci_id"], about["pid"]) == ("Lamp", None, process.pid)
    assert about["qemu_arguments"][-2] == "-device"


@pytest.mark.parametrize("redirection", ["</dev/null >/dev/null 2>/dev/null", "<&- >&- 2>&-"], ids=["null", "closed"])
def test_standard_streams_may_be_anything(folder: Path, redirection: str) -> None:
    path = folder / "lamp.sock"
    words = program("serve", "lamp.py", "-v", f"--socket-path={path}")
    with subprocess.Popen(["sh", "-c", f'exec "$@" {redirection}', "sh", *words]) as process:
        try:
            with connect_soon(path, process) as connection:
                assert agree(connection).major == 0
            process.terminate()
            assert process.wait(10) == 0
        finally:
            process.kill()


def test_mode_and_default_path(folder: Path) -> None:
    with serving("lamp.py", "--mode=0600", cwd=folder) as process:
        assert process.stdout is not None
        path = Path(process.stdout.readline().split()[-1])
        assert path == Path(runtime_folder()) / f"vfio-user-Lamp-{process.pid}.sock"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        process.terminate()
        assert process.wait(10) == 0


def test_v_prints_messages_and_suggest_what_was_missed(folder: Path) -> None:
    path = folder / "lamp.sock"
    with serving("lamp.py", f"--socket-path={path}", "-v", "--suggest", cwd=folder) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with connect(path) as connection:
            agree(connection)
            for number, offset in enumerate((4, 0x40), start=2):
                connection.sendall(command_header(number, 9, 16) + RegionAccess(offset, 0, 4).encode())
                receive(connection, 36)
        process.terminate()
        output, errors = process.communicate(timeout=10)
    assert "< #2 REGION_READ BAR0+0x4 status, 4 bytes\n" in errors
    assert "> #2 REGION_READ BAR0+0x4 status = 0x0  " in errors
    assert "> #3 REGION_READ BAR0+0x40 = 0x0  " in errors
    assert "= connection closed\n" in errors
    assert "unknown_40 = Register(0x40, access=RO)  # 1 reads, 0 writes" in output


# What a person sees who asks for something that cannot be.


def test_unknown_device(run: Run) -> None:
    outcome = run("serve", "edo")
    assert (outcome.status, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith("vfio-user: there is no device 'edo'; did you mean 'edu'? Known here: edu, gpio-")
    assert outcome.stderr.endswith(". A class of your own is given as file.py:Class or module:Class\n")


def test_unknown_option(run: Run) -> None:
    outcome = run("serve", "lamp.py", "--set", "sice=5")
    assert outcome == Outcome(
        2,
        "",
        "vfio-user: Lamp has no option 'sice'; did you mean 'size'? Options of Lamp: size (integer, default 4K)\n",
    )


def test_wrong_value(run: Run) -> None:
    outcome = run("serve", "lamp.py", "--set", "size=big")
    assert outcome == Outcome(
        2, "", "vfio-user: Lamp: option size cannot be 'big': it must be an integer, as in 42, 0x2a or 64K\n"
    )


def test_a_setting_without_a_value(run: Run) -> None:
    outcome = run("serve", "lamp.py", "--set", "size")
    assert outcome.status == 2
    assert outcome.stderr.endswith("argument --set: 'size' is not of the form name=value\n")


def test_a_constructor_that_raises_shows_its_own_frames(run: Run, folder: Path) -> None:
    outcome = run("serve", "lamp.py", "--set", "size=5")
    assert outcome.status == 1
    assert outcome.stderr.startswith("vfio-user: Lamp could not be made: ValueError: size 5 is odd\nTraceback")
    assert f'File "{folder}/lamp.py", line 14, in __init__' in outcome.stderr
    assert outcome.stderr.count("File ") == 1


def test_a_file_that_does_not_import_shows_its_line(run: Run, folder: Path) -> None:
    (folder / "broken.py").write_text("import sys\nnonsense\n")
    outcome = run("serve", "broken.py")
    assert outcome.status == 1
    assert outcome.stderr.startswith("vfio-user: broken.py could not be imported: NameError: ")
    assert 'broken.py", line 2, in <module>' in outcome.stderr


def test_a_path_another_server_listens_on(folder: Path) -> None:
    path = folder / "lamp.sock"
    with serving("lamp.py", f"--socket-path={path}", cwd=folder) as process:
        assert process.stdout is not None
        process.stdout.readline()
        second = subprocess.run(
            program("serve", "lamp.py", f"--socket-path={path}"), check=False, capture_output=True, text=True
        )
    assert (second.returncode, second.stdout) == (1, "")
    assert second.stderr == (
        f"vfio-user: {path} is in use: a server listens on it. Stop that one, or choose another path\n"
    )


def test_a_path_that_is_too_long(run: Run) -> None:
    path = "/tmp/" + "x" * 110
    outcome = run("serve", "lamp.py", f"--socket-path={path}")
    assert outcome.status == 2
    assert outcome.stderr.startswith(
        f"vfio-user: the socket path {path} has 115 bytes; a UNIX socket address holds 107. Choose a shorter one"
    )


def test_both_ways_to_listen(run: Run) -> None:
    outcome = run("serve", "lamp.py", "--socket-path=x", "--fd=3")
    assert outcome.status == 2
    assert outcome.stderr.endswith("argument --fd: not allowed with argument --socket-path\n")


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (["--address=udp:1"], 2, "the address 'udp:1' has the unknown scheme 'udp'; write unix:PATH, fd:N, systemd:, "),
        (["--address=tcp:x"], 2, "the address 'tcp:x' names no TCP port; write tcp:PORT, "),
        (["--address=systemd:"], 1, "systemd passed no sockets: LISTEN_PID and LISTEN_FDS are not set. Start "),
        (["--address=tcp:0", "--mode=600"], 1, "tcp:127.0.0.1:0 has neither mode nor group: only a socket file "),
    ],
)
def test_addresses_that_cannot_be(run: Run, words: list[str], status: int, complaint: str) -> None:
    outcome = run("serve", "lamp.py", *words)
    assert (outcome.status, outcome.stdout) == (status, "")
    assert outcome.stderr.startswith(f"vfio-user: {complaint}")


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--fd=x", "'x' is no descriptor: it must be a number, as in 3"),
        ("--fd=-1", "'-1' is no descriptor: it must be a number, as in 3"),
        ("--mode=rw", "'rw' is no mode: it must be an octal number up to 777, as in 0660"),
        ("--mode=7777", "'7777' is no mode: it must be an octal number up to 777, as in 0660"),
    ],
)
def test_malformed_numbers(run: Run, option: str, complaint: str) -> None:
    outcome = run("serve", "lamp.py", option)
    assert outcome.status == 2
    assert outcome.stderr.endswith(f"{complaint}\n")


@pytest.mark.parametrize(("words", "regions"), [([], 9), (["--migration=v1"], 10), (["--migration=off"], 9)])
def test_the_first_migration_protocol_makes_a_tenth_region(folder: Path, words: list[str], regions: int) -> None:
    path = folder / "edu.sock"
    with serving("edu", "--socket-path", str(path), *words, cwd=folder) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with connect(path) as connection:
            agree(connection)
            connection.sendall(command_header(2, 4, 16) + DeviceInfoRequest().encode())
            assert DeviceInfo.decode(receive(connection, 32)[16:]).num_regions == regions


def test_a_device_that_cannot_be_migrated_says_so(run: Run, folder: Path) -> None:
    outcome = run("serve", str(folder / "lamp.py"), "--migration=v1", "--socket-path", str(folder / "lamp.sock"))
    assert outcome.status == 1
    assert "a Lamp cannot be migrated: migratable is False in its class" in outcome.stderr


def test_a_descriptor_that_is_not_open(folder: Path) -> None:
    outcome = subprocess.run(
        program("serve", "lamp.py", "--fd=77"), check=False, cwd=folder, capture_output=True, text=True
    )
    assert outcome.returncode == 1
    assert outcome.stderr == (
        "vfio-user: descriptor 77 is no socket this process was started with: Bad file descriptor\n"
        "vfio-user: -v shows the traceback\n"
    )


def test_v_shows_the_traceback(folder: Path) -> None:
    outcome = subprocess.run(
        program("serve", "lamp.py", "--fd=77", "-v"), check=False, cwd=folder, capture_output=True, text=True
    )
    assert outcome.returncode == 1
    assert "OSError: [Errno 9] Bad file descriptor" in outcome.stderr
