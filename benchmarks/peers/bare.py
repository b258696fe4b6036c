"""What the bare drivers have in common."""

from __future__ import annotations

import secrets
import time


def event_id() -> str:
    """Unique, and in the order of time, as is good for an index."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"
