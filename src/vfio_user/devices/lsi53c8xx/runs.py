"""Runs: stretches of a program in the chip's RAM, each made into one function that needs neither fetch nor decode.

Theory of operation. Drivers load their program once, and a chip carries the same instructions out for every command. An
address that is reached often becomes the head of a run: the instructions from there on, across jumps whose targets are
known, as the text of a Python function (``run_writer``). Whatever is not simple is left to the processor: a run ends
before it, or calls its function, or - where an instruction turns out not to be simple this time, because it faults, or
waits, or stops the processor - gives up in front of it, with nothing of it done.

A run lasts until somebody writes to the words it was made of. What the program writes comes by ``ChipMemory``, which
asks at each write to the RAM; what the driver writes is found by comparing before each slice. Words that are patched
again and again are left out of runs, and a driver that changes its program all the time is given up on by degrees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from vfio_user.devices.lsi53c8xx.run_writer import write_run

if TYPE_CHECKING:
    from vfio_user.devices.lsi53c8xx.processor import ScriptsProcessor

__all__ = ["NO_RUN", "Run", "Runs"]

#: How often an address is reached before a run is made there. Making one takes as long as some hundred instructions.
_OFTEN = 16

#: Runs at most. A driver's program has some dozens.
_MOST_RUNS = 256

#: How often a word is written before it is never made part of a run again.
_PATCHES = 3

#: How far ``_OFTEN`` is doubled, once for each time the driver changed the program.
_MOST_DOUBLINGS = 16


class Run(NamedTuple):
    """A run.

    Attributes:
        function: carries it out. None: go on at DSP; True: the processor waits, or was stopped; False: go on at DSP,
            but carry the instruction there out by itself.
        length: instructions it has at most; 0 for an address that has no run.
        words: of the chip's RAM it was made of, by their number.
        ended: not empty once it is not to be gone on with.
    """

    function: Callable[[], bool | None]
    length: int
    words: frozenset[int]
    ended: list[bool]


#: At that address instructions are carried out one by one.
NO_RUN = Run(lambda: False, 0, frozenset(), [])


class Runs:
    """The runs of one processor.

    Args:
        processor: whose.

    Attributes:
        by_address: the runs there are, by the address they begin at.
    """

    def __init__(self, processor: ScriptsProcessor) -> None:
        self.by_address: dict[int, Run] = {}
        self._processor = processor
        self._memory = processor.memory
        self._memory.code_written = self._code_written
        self._reached: dict[int, int] = {}
        self._patches: dict[int, int] = {}
        self._often = _OFTEN
        self._bases = self._memory.ram_base, self._memory.registers_base
        #: Stretches of the RAM that runs were made of, in bytes, and what is there.
        self._made_of: list[tuple[int, int, bytearray]] = []

    def check(self) -> None:
        """Before a slice: forgets all runs if the driver has changed the program, or moved the RAM."""
        memory, ram = self._memory, self._memory.ram
        bases = memory.ram_base, memory.registers_base
        if bases != self._bases:
            self._bases = bases
            self.forget()
        for start, end, content in self._made_of:
            if ram[start:end] != content:
                self.forget()
                self._often = min(self._often * 2, _OFTEN << _MOST_DOUBLINGS)
                return

    def forget(self) -> None:
        """Forgets all runs, and begins to count anew."""
        for run in self.by_address.values():
            run.ended.append(True)
        self.by_address.clear()
        self._reached.clear()
        self._patches.clear()
        self._made_of.clear()
        self._memory.code[:] = bytes(len(self._memory.code))

    def reached(self, address: int) -> Run:
        """An address in the RAM that has no run yet is reached; returns a run if it has one from now on."""
        count = self._reached[address] = self._reached.get(address, 0) + 1
        if count < self._often or len(self.by_address) >= _MOST_RUNS:
            return NO_RUN
        processor, memory = self._processor, self._memory
        patched = {word for word, times in self._patches.items() if times >= _PATCHES}
        function, length, words, ended = write_run(processor, address, patched)
        run = self.by_address[address] = Run(function or NO_RUN.function, length, words, ended)
        for word in run.words:
            memory.code[word] = 1
        self._remember()
        return run

    def _code_written(self, first: int, last: int) -> None:
        """The program writes to words of which some are part of a run."""
        memory = self._memory
        written = {word for word in range(first, last + 1) if memory.code[word]}
        for word in written:
            self._patches[word] = self._patches.get(word, 0) + 1
        for address, run in list(self.by_address.items()):
            if not written.isdisjoint(run.words):
                run.ended.append(True)
                del self.by_address[address]
                self._reached[address] = 0
        used = set[int]().union(*(run.words for run in self.by_address.values()))
        memory.code[:] = bytes(len(memory.code))
        for word in used:
            memory.code[word] = 1
        self._remember()

    def _remember(self) -> None:
        code, ram = self._memory.code, self._memory.ram
        self._made_of.clear()
        start = code.find(1)
        while start >= 0:
            end = code.find(0, start)
            end = len(code) if end < 0 else end
            self._made_of.append((4 * start, 4 * end, ram[4 * start : 4 * end]))
            start = code.find(1, end)
