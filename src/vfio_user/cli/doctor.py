"""``vfio-user doctor``: what this machine has of what guests need, and what to do about the rest."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from vfio_user.cli.output import Style, wrap
from vfio_user.vm.doctor import Finding, examine

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of ``doctor``."""
    parser.epilog = "exit status: 1 when something is missing that guests cannot run without"
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints the findings."""
    findings = examine()
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print("\n".join(_report(findings, Style())))
    return 1 if any(finding.status == "missing" for finding in findings) else 0


def _report(findings: list[Finding], style: Style) -> list[str]:
    marks = {"ok": style.good("ok     "), "warn": style.doubtful("warn   "), "missing": style.bad("missing")}
    width = max(len(finding.name) for finding in findings)
    indent = " " * (7 + 2 + width + 2)
    lines = []
    for finding in findings:
        # Folded first and coloured afterwards: escape sequences have no width.
        text = wrap(finding.detail, indent)
        lines.append(f"{marks[finding.status]}  {finding.name:<{width}}  {text.lstrip()}")
        if finding.remedy:
            lines.append(style.dim(wrap(finding.remedy, indent + "   ", first=indent + "-> ")))
    missing = sum(finding.status == "missing" for finding in findings)
    doubtful = sum(finding.status == "warn" for finding in findings)
    if missing:
        lines.append(f"\nguests cannot run here: {missing} missing, see above")
    elif doubtful:
        lines.append(f"\nnothing is missing; {doubtful} could be better")
    else:
        lines.append("\nall is well")
    return lines
