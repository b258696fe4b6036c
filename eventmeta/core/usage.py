"""Numbers of tokens used: sums that can be added, subtracted and compared."""

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
        requests: Number of requests; failed attempts that were retried count.
        input_tokens: Tokens sent, those from the cache included.
        output_tokens: Tokens received, those of reasoning included.
        total_tokens: Both together.
        cached_tokens: The part of the tokens sent that came from the provider's cache.
        cache_write_tokens: The part of the tokens sent that was written to the cache.
        reasoning_tokens: The part of the tokens received that is reasoning.
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
        """Return the sums of the SDK's ``usage``."""
        return cls(_count(usage.requests), *_tokens(usage))

    @classmethod
    def of_request(cls, entry: RequestUsage) -> Self:
        """Return the sums of one entry of ``usage.request_usage_entries``."""
        return cls(1, *_tokens(entry))

    @classmethod
    def read(cls, counts: Mapping[str, int]) -> Self:
        """Return the sums in ``counts``, made by ``asdict``; ignore names of later versions."""
        return cls(**{name: counts.get(name, 0) for name in _NAMES})

    def plus(self, other: UsageTotals) -> UsageTotals:
        """Return the sum of both."""
        return UsageTotals(*(a + b for a, b in zip(_counts(self), _counts(other), strict=True)))

    def less(self, other: UsageTotals) -> UsageTotals:
        """Return this minus ``other``; no number is below zero."""
        pairs = zip(_counts(self), _counts(other), strict=True)
        return UsageTotals(*(max(a - b, 0) for a, b in pairs))

    def covers(self, other: UsageTotals) -> bool:
        """Return whether ``other`` can be a part of this: no number of it is larger."""
        return all(a >= b for a, b in zip(_counts(self), _counts(other), strict=True))

    def __bool__(self) -> bool:
        """Return whether any number is above zero."""
        return any(_counts(self))

    @property
    def facts(self) -> dict[str, Any]:
        """Return the sums in the form that an event's data has."""
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
        key: The user, agent, model, day (``"2026-01-31"``, in UTC) or session. None stands for
            usage for which this is not known, and for the total if there are no groups.
    """

    key: str | None = None


NOTHING = UsageTotals()
_MOST = 2**53
_NAMES = tuple(each.name for each in fields(UsageTotals))


def _counts(totals: UsageTotals) -> tuple[int, ...]:
    return tuple(getattr(totals, name) for name in _NAMES)


def _tokens(usage: Usage | RequestUsage) -> tuple[int, ...]:
    """Return the tokens of ``usage``; versions of ``openai`` may lack some details, which are 0."""
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
    """Return ``value`` as a number that databases hold; 0 for the odd values of some adapters."""
    if not isinstance(value, int | float) or not 0 <= value <= _MOST:
        return 0
    return int(value)
