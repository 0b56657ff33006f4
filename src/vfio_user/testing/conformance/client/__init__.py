"""Observing a client: a server that does as it is told, and an eye on what the client does about it.

==============  ===================================================================================
``rules``       what a client has to keep to
``observation`` watches, and notes which rule was kept and which broken
``script``      how the server is to misbehave
``rogue``       the server: a real device behind it, the script between
``observe``     listens, and serves clients so
==============  ===================================================================================
"""

from vfio_user.testing.conformance.client.observation import Observation
from vfio_user.testing.conformance.client.observe import observe_clients
from vfio_user.testing.conformance.client.rogue import RogueServer
from vfio_user.testing.conformance.client.rules import RULES
from vfio_user.testing.conformance.client.script import MISBEHAVIOURS, Script, ScriptError, Step

__all__ = [
    "MISBEHAVIOURS",
    "RULES",
    "Observation",
    "RogueServer",
    "Script",
    "ScriptError",
    "Step",
    "observe_clients",
]
