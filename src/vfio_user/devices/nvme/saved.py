"""The state of a controller that is not in its registers: queues, features, logs, and the commands in flight.

A command in flight is saved as its entry, and carried out again from the start where the state is loaded: when a device
is stopped its backends come to rest first, and then only commands that read are still in flight, or that have not
begun. What namespaces hold is the backends'; both sides are started with the same images, and the same doorbells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vfio_user.devices.nvme.queues import CompletionQueue, SubmissionQueue
from vfio_user.errors import InvalidAccess
from vfio_user.hardware.nvme.entries import SubmissionEntry
from vfio_user.hardware.nvme.registers import ShutdownStatus

if TYPE_CHECKING:
    from vfio_user.devices.nvme.controller import Nvme

__all__ = ["check_controller", "load_controller", "resume_controller", "save_controller"]


def save_controller(controller: Nvme) -> dict[str, Any]:
    """Everything, as plain data."""
    return {
        "page_size": controller.data.page_size,
        "completion_queues": [_save_completion_queue(queue) for queue in controller.completion_queues.values()],
        "submission_queues": [_save_submission_queue(queue) for queue in controller.submission_queues.values()],
        "doorbells": {"mode": controller.doorbells.mode.value, "state": controller.doorbells.save()},
        "namespaces": controller.namespaces.save(),
        "features": controller.features.save(),
        "events": controller.events.save(),
        "health": controller.health.save(),
        "firmware": controller.firmware.save(),
        "self_test": controller.self_test.save(),
    }


def _save_completion_queue(queue: CompletionQueue) -> dict[str, Any]:
    ring = queue.ring
    return {
        "qid": queue.qid,
        "iova": ring.iova,
        "length": ring.length,
        "vector": queue.vector,
        "head": ring.head,
        "tail": ring.tail,
        "phase": ring.phase,
        "ready": bytes(queue.ready),
    }


def _save_submission_queue(queue: SubmissionQueue) -> dict[str, Any]:
    ring = queue.ring
    return {
        "qid": queue.qid,
        "iova": ring.iova,
        "length": ring.length,
        "completions": queue.completions.qid,
        "priority": queue.priority,
        "head": ring.head,
        "tail": ring.tail,
        "fused": None if queue.fused is None else queue.fused.pack(),
        "in_flight": [
            entry.pack()
            for command in queue.in_flight.values()
            for entry in (command.first, command.entry)
            if entry is not None
        ],
    }


def check_controller(controller: Nvme, state: Any) -> None:
    """Says whether a state can be loaded into this controller, without changing anything.

    Raises:
        InvalidAccess: its doorbells or its namespaces are not those this controller was made with, or it is no state of
            a controller at all.
    """
    try:
        mode = state["doorbells"]["mode"]
        if mode != controller.doorbells.mode.value:
            raise InvalidAccess(
                f"saved state of a controller with doorbells={mode}, and this one has "
                f"doorbells={controller.doorbells.mode.value}: its driver relies on that; start both with the same"
            )
        controller.namespaces.check(state["namespaces"])
    except (LookupError, TypeError, ValueError) as exc:
        raise InvalidAccess(f"saved state of a controller: it is none: {exc!r}") from exc


def load_controller(controller: Nvme, state: dict[str, Any]) -> None:
    """Puts everything back, and has the commands in flight carried out. It was checked."""
    controller.namespaces.load(state["namespaces"])
    controller.life.abandon()
    controller.data.page_size = state["page_size"]
    for saved in state["completion_queues"]:
        completions = CompletionQueue(controller.dma, saved["qid"], saved["iova"], saved["length"], saved["vector"])
        ring = completions.ring
        ring.head, ring.tail, ring.phase = saved["head"], saved["tail"], saved["phase"]
        completions.ready += saved["ready"]
        controller.completion_queues[completions.qid] = completions
    in_flight: list[tuple[SubmissionQueue, bytes]] = []
    for saved in state["submission_queues"]:
        completions = controller.completion_queues[saved["completions"]]
        queue = SubmissionQueue(
            controller.dma, saved["qid"], saved["iova"], saved["length"], completions, saved["priority"]
        )
        queue.ring.head, queue.ring.tail = saved["head"], saved["tail"]
        queue.fused = None if saved["fused"] is None else SubmissionEntry.unpack(saved["fused"])
        in_flight += [(queue, entry) for entry in saved["in_flight"]]
        controller.submission_queues[queue.qid] = queue
    controller.doorbells.load(state["doorbells"]["state"])
    controller.health.load(state["health"])
    controller.features.load(state["features"])
    controller.firmware.load(state["firmware"])
    controller.self_test.load(state["self_test"])
    controller.events.load(state["events"])
    controller.admin.restart_keep_alive()
    # Queues that are being deleted were still there when their commands began: the admin queue comes last.
    in_flight.sort(key=lambda item: item[0].qid == 0)
    controller.call_soon(resume_controller, controller, in_flight)


def resume_controller(controller: Nvme, in_flight: list[tuple[SubmissionQueue, bytes]]) -> None:
    """Goes on after a state was loaded, with the commands that were under way then."""
    # First commands of fused operations whose second had not come are not to meet those that are carried out again.
    halves = [(queue, queue.fused) for queue in controller.submission_queues.values()]
    for queue, _ in halves:
        queue.fused = None
    for queue, data in in_flight:
        if queue.alive:
            engine = controller.engine if queue.qid else controller.admin_engine
            engine.execute(queue, SubmissionEntry.unpack(data))
    for queue, half in halves:
        queue.fused = half
    for queue in list(controller.submission_queues.values()):
        controller.turns.flush_soon(queue.completions)
        controller.turns.fetch_soon(queue)
    csts = controller.bar0.csts
    if csts.shst == ShutdownStatus.OCCURRING:
        controller.life.shut_down()
    if not controller.submission_queues and not csts.cfs:  # a reset was to end with the last write, which has ended
        csts.rdy = 0
        if controller.bar0.cc.en:
            controller.life.enable()
    controller.vectors.restart()
    controller.settings.adopt()
