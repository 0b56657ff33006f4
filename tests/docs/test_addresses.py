"""docs/addresses.md: its example, and the addresses it writes."""

from __future__ import annotations

import argparse
import re

import pytest

from tests.support.doc_examples import DOCS, examples, run_all
from vfio_user.cli import serve
from vfio_user.transport.address import FdAddress, SystemdAddress, TcpAddress, UnixAddress, VsockAddress, parse_address

PAGE = DOCS / "addresses.md"


def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    run_all(examples(PAGE))
    assert re.fullmatch(r"tcp:127\.0\.0\.1:\d+\n", capsys.readouterr().out)


def test_every_form_in_the_table_is_one() -> None:
    forms = re.findall(r"`((?:unix|fd|systemd|tcp|vsock):[^`]*)`", PAGE.read_text().partition("## ")[0])
    filled_in = [
        re.sub("IPV6", "::1", re.sub("HOST", "localhost", re.sub("PORT|CID|N$", "5", form.replace("NAME", "edu"))))
        for form in forms
    ]
    kinds = {type(parse_address(form)) for form in filled_in}
    assert len(forms) >= 9
    assert kinds == {UnixAddress, FdAddress, SystemdAddress, TcpAddress, VsockAddress}


def test_what_systemd_runs() -> None:
    (command,) = re.findall(r"ExecStart=/usr/bin/vfio-user serve (.*)", PAGE.read_text())
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    arguments = parser.parse_args(command.split())
    assert parse_address(arguments.address) == SystemdAddress()
