"""How many tokens were used: sums that can be added, compared and taken apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from eventmeta.core.canonical_json import dump_canonical

if TYPE_CHECKING:
    from agents.usage import RequestUsage, Usage


@dataclass(frozen=True)
class UsageTotals:
    """Requests made to models, and tokens, as the SDK's ``Usage`` counts them.

    Attributes:
        requests: How many requests; failed attempts that were retried count.
        input_tokens: Tokens sent, those from the cache included.
        output_tokens: Tokens received, those of reasoning included.
        total_tokens: Both together.
        cached_tokens: Of the tokens sent, those that came from the provider's cache.
        cache_write_tokens: Of the tokens sent, those that were written to it.
        reasoning_tokens: Of the tokens received, those of reasoning.
    """

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0

    @classmethod
    def of(cls, usage: Usage) -> Self:
        """The sums of the SDK's own ``usage``."""
        return cls(_count(usage.requests), *_tokens(usage))

    @classmethod
    def of_request(cls, entry: RequestUsage) -> Self:
        """Those of one entry of ``usage.request_usage_entries``."""
        return cls(1, *_tokens(entry))

    @classmethod
    def read(cls, counts: Mapping[str, int]) -> Self:
        """The sums that ``asdict`` made ``counts`` of; what a later version adds is left out."""
        return cls(**{name: counts.get(name, 0) for name in _NAMES})

    def plus(self, other: UsageTotals) -> UsageTotals:
        """Both together."""
        return UsageTotals(*(a + b for a, b in zip(_counts(self), _counts(other), strict=True)))

    def less(self, other: UsageTotals) -> UsageTotals:
        """What this has more than ``other``; never below zero."""
        pairs = zip(_counts(self), _counts(other), strict=True)
        return UsageTotals(*(max(a - b, 0) for a, b in pairs))

    def covers(self, other: UsageTotals) -> bool:
        """Whether ``other`` can be a part of this."""
        return all(a >= b for a, b in zip(_counts(self), _counts(other), strict=True))

    def __bool__(self) -> bool:
        """Whether anything was used at all."""
        return any(_counts(self))

    @property
    def facts(self) -> dict[str, Any]:
        """As the payload of an event has it."""
        cache = {
            "cached_tokens": self.cached_tokens,
            "cache_write_tokens": self.cache_write_tokens,
        }
        return {
            "requests": self.requests,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "total_tokens": self.total_tokens,
            "input_tokens_details": dump_canonical(cache, "input_tokens_details"),
            "output_tokens_details": dump_canonical(
                {"reasoning_tokens": self.reasoning_tokens}, "output_tokens_details"
            ),
        }


@dataclass(frozen=True)
class GroupedUsage(UsageTotals):
    """The usage of one group.

    Attributes:
        key: The user, agent, model, day (``"2026-01-31"``, in UTC) or session; None for what is
            known of none, and for the whole if there are no groups.
    """

    key: str | None = None


NOTHING = UsageTotals()
_MOST = 2**53
_NAMES = tuple(each.name for each in fields(UsageTotals))


def _counts(totals: UsageTotals) -> tuple[int, ...]:
    return tuple(getattr(totals, name) for name in _NAMES)


def _tokens(usage: Usage | RequestUsage) -> tuple[int, ...]:
    """The details are of the ``openai`` package, of whose versions some lack one or the other."""
    sent, received = usage.input_tokens_details, usage.output_tokens_details
    return (
        _count(usage.input_tokens),
        _count(usage.output_tokens),
        _count(usage.total_tokens),
        _count(getattr(sent, "cached_tokens", 0)),
        _count(getattr(sent, "cache_write_tokens", 0)),
        _count(getattr(received, "reasoning_tokens", 0)),
    )


def _count(value: object) -> int:
    """``value`` as databases can count; providers' adapters have been seen to give odd ones."""
    if not isinstance(value, int | float) or not 0 <= value <= _MOST:
        return 0
    return int(value)
