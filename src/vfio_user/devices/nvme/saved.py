"""The state of a controller that is not in its registers: queues, features, logs, and the commands in flight.

A command in flight is saved as its entry, and carried out again from the start where the state is loaded: when a device
is stopped its backends come to rest first, and then only commands that read are still in flight, or that have not
begun. What namespaces hold is the backends'; both sides are started with the same images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vfio_user.devices.nvme.queues import CompletionQueue, SubmissionQueue
from vfio_user.devices.nvme.shadow import ShadowDoorbells
from vfio_user.hardware.nvme.entries import SubmissionEntry

if TYPE_CHECKING:
    from vfio_user.devices.nvme.controller import Nvme

__all__ = ["load_controller", "save_controller"]


def save_controller(controller: Nvme) -> dict[str, Any]:
    """Everything, as plain data."""
    shadow = controller.shadow
    return {
        "page_size": controller.data.page_size,
        "completion_queues": [_save_completion_queue(queue) for queue in controller.completion_queues.values()],
        "submission_queues": [_save_submission_queue(queue) for queue in controller.submission_queues.values()],
        "shadow": None if shadow is None else [shadow.shadows, shadow.event_indexes],
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
        "in_flight": [command.entry.pack() for command in queue.in_flight.values()],
    }


def load_controller(controller: Nvme, state: dict[str, Any]) -> None:
    """Puts everything back, and has the commands in flight carried out.

    Raises:
        InvalidAccess: the namespaces are not those this controller has the images of.
    """
    controller.namespaces.load(state["namespaces"])
    controller.abandon()
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
    if state["shadow"] is not None:
        controller.shadow = ShadowDoorbells(controller.dma, *state["shadow"])
    controller.health.load(state["health"])
    controller.features.load(state["features"])
    controller.firmware.load(state["firmware"])
    controller.self_test.load(state["self_test"])
    controller.events.load(state["events"])
    controller.admin.restart_keep_alive()
    # Queues that are being deleted were still there when their commands began: the admin queue comes last.
    in_flight.sort(key=lambda item: item[0].qid == 0)
    controller.call_soon(controller.resume, in_flight)
