"""The projector: read models that follow the log, are built anew, and tell how far they are."""

from eventmeta.projector.parking import ParkedStream
from eventmeta.projector.progress import RebuildProgress, Rebuilt
from eventmeta.projector.status import OpenAppend, ProjectionStatus, Status, SubscriptionStatus
from eventmeta.projector.worker import Projector

__all__ = [
    "OpenAppend",
    "ParkedStream",
    "ProjectionStatus",
    "Projector",
    "RebuildProgress",
    "Rebuilt",
    "Status",
    "SubscriptionStatus",
]
