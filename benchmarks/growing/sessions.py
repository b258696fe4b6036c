"""Sessions and users: how many there are, and how often they changed hands."""

from __future__ import annotations

from typing import Any

from benchmarks.growing.base import NAME, Call, count, gather, talk, the_session
from eventmeta import MetadataStore, SessionEntry, backfill_conversations, verify_projection


async def _make_sessions(store: MetadataStore, n: int) -> None:
    await gather(
        store.session(f"s{number}", user_id="ann").set_metadata({"state": 1}) for number in range(n)
    )


async def _talk_in_each(store: MetadataStore, n: int) -> None:
    await gather(store.session(f"s{number}").add_items([*talk(4)]) for number in range(n))


async def _read_each(store: MetadataStore, n: int) -> None:
    await gather(store.session(f"s{number}").get_metadata() for number in range(n))
    await gather(store.session(f"s{number}").get_items(2) for number in range(n))


async def _page(store: Any, _: int) -> None:
    last: SessionEntry | None = None
    while page := await store.list_sessions(limit=100, after=last):
        last = page[-1]


async def _transfer_each(store: MetadataStore, n: int) -> None:
    await gather(store.session(f"s{number}").transfer("bob") for number in range(n))


SESSIONS: dict[str, Call] = {
    "set_metadata, n sessions": _make_sessions,
    "add_items, n sessions": _talk_in_each,
    "get_metadata, get_items(2), n sessions": _read_each,
    "list_sessions()": lambda store, _: store.list_sessions(limit=None),
    "list_sessions(), by page": _page,
    "list_sessions(user)": lambda store, _: store.list_sessions("ann", limit=None),
    "as_user().list_sessions(), by page": lambda store, n: _page(store.as_user("ann"), n),
    "get_sessions_for_user()": lambda store, _: store.get_sessions_for_user("ann"),
    "get_sessions()": lambda store, _: store.get_sessions("ann"),
    "get_session()": lambda store, _: store.get_session("ann", "s0"),
    "create_session()": lambda store, _: store.create_session("ann"),
    "find_sessions_by_metadata()": lambda store, _: store.find_sessions_by_metadata(
        "state", 1, limit=None
    ),
    "as_user().find_sessions_by_metadata()": lambda store, _: store.as_user(
        "ann"
    ).find_sessions_by_metadata("state", 1, limit=None),
    "find_sessions_by_metadata(as_of=…)": lambda store, n: store.as_user(
        "ann"
    ).find_sessions_by_metadata("state", 1, limit=None, as_of=10 * n),
    "as_user().events()": lambda store, _: count(store.as_user("ann").events()),
    "events()": lambda store, _: count(store.events()),
    "catch_up()": lambda store, _: store.catch_up(),
    "rebuild()": lambda store, _: store.rebuild("metadata"),
    "rebuild(users)": lambda store, _: store.rebuild("users"),
    "backfill_conversations()": lambda store, _: backfill_conversations(store),
    "verify_projection()": lambda store, _: verify_projection(store),
    "transfer, n sessions": _transfer_each,
    "as_user().events(), handed over": lambda store, _: count(store.as_user("bob").events()),
    "find(as_of=…), handed over": lambda store, n: store.as_user("bob").find_sessions_by_metadata(
        "state", 1, limit=None, as_of=10 * n
    ),
    "get_usage(user), handed over": lambda store, _: store.as_user("bob").get_usage("session"),
    "delete_user()": lambda store, _: store.delete_user("bob"),
}


async def _pass_on(store: MetadataStore, n: int) -> None:
    await the_session(store).set_metadata({"state": 1})
    await gather(the_session(store).transfer(("ann", "bob")[number % 2]) for number in range(n))


HANDED_ON: dict[str, Call] = {
    "transfer, n times": _pass_on,
    "history()": lambda store, _: the_session(store).history(),
    "as_user().history()": lambda store, _: store.as_user("bob").session(NAME).history(),
    "as_user().get_metadata(as_of=…)": lambda store, n: (
        store.as_user("bob").session(NAME).get_metadata(as_of=n)
    ),
    "verify_projection()": lambda store, _: verify_projection(store),
}


async def _make_users(store: MetadataStore, n: int) -> None:
    await gather(store.user(f"u{number}").set_metadata({"plan": "pro"}) for number in range(n))


USERS: dict[str, Call] = {
    "user.set_metadata, n users": _make_users,
    "rebuild(users)": lambda store, _: store.rebuild("users"),
    "verify_projection()": lambda store, _: verify_projection(store),
    "delete_user()": lambda store, _: store.delete_user("u0"),
}
