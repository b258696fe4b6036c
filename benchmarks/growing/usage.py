"""Usage: how many requests there were."""

from __future__ import annotations

from collections.abc import Awaitable

from benchmarks.growing.base import NAME, Call, gather, talk, the_session
from eventmeta import MetadataStore, new_event_id
from eventmeta.core.events import StreamKey
from eventmeta.log.commands import Append, EventData
from eventmeta.queries.usage import UsageGroup
from projections import USAGE_RECORDED


async def _use(store: MetadataStore, n: int) -> None:
    """As many requests in one session, for a turn each."""
    added = await the_session(store).add_items([*talk(4 * n)])
    details = dict.fromkeys(("input_tokens_details", "output_tokens_details"), "{}")
    numbers = {"requests": 1, "input_tokens": 7, "output_tokens": 3, "total_tokens": 10}
    names = ("response_id", "model", "agent", "user_id", "trace_id", "span_id")

    def use(number: int) -> Awaitable[object]:
        facts = {
            **dict.fromkeys(names),
            **details,
            **numbers,
            "run_id": f"run-{number}",
            "user_message_id": added.data["item_ids"][4 * number],
        }
        stream, event_id = StreamKey(NAME), new_event_id()
        command = Append(stream=stream, event_id=event_id, fact=EventData(USAGE_RECORDED, facts))
        return store.log.submit(command)

    await gather(use(number) for number in range(n))


def _grouped(group: UsageGroup | None) -> Call:
    return lambda store, _: store.get_usage(group)


USAGE: dict[str, Call] = {
    "usage of n turns": _use,
    "session.get_usage()": lambda store, _: the_session(store).get_usage(),
    "session.get_usage(turn=1)": lambda store, _: the_session(store).get_usage(turn=1),
    "session.get_usage(run_id=…)": lambda store, _: the_session(store).get_usage(run_id="run-1"),
    "session.get_turn_usage()": lambda store, _: the_session(store).get_turn_usage(),
    "get_usage()": _grouped(None),
    "get_usage(user)": _grouped("user"),
    "get_usage(agent)": _grouped("agent"),
    "get_usage(day)": _grouped("day"),
    "get_usage(session)": _grouped("session"),
    "rebuild(usage)": lambda store, _: store.rebuild("usage"),
}
