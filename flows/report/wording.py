"""Names, numbers, intervals and times as people read them."""

import math
from datetime import UTC, datetime

from alignment.statistics.bootstrap import Interval
from flows.report.markup import minus

_MOST_DECIMALS = 3
_CAPITALS = {"kl": "KL", "sft": "SFT", "ppo": "PPO", "eos": "EOS"}


def number(value: float) -> str:
    """About three significant digits, no exponent where that is readable: 0.123, 45.6, 1,234."""
    magnitude = abs(value)
    if magnitude == 0:
        return "0"
    if magnitude < 0.001:
        return minus(f"{value:.1e}")
    decimals = max(0, 2 - math.floor(math.log10(magnitude)))
    return minus(f"{value:,.{min(decimals, 3)}f}")


def value_of(interval: Interval, *, decimals: int | None = None) -> str:
    """The estimate, to the digits that its interval supports."""
    places = decimals_of(interval) if decimals is None else decimals
    return minus(f"{interval.value:,.{places}f}")


def bounds_of(interval: Interval) -> str:
    """`0.033 to 0.151`, to the digits that the width supports."""
    places = decimals_of(interval)
    return minus(f"{interval.low:,.{places}f} to {interval.high:,.{places}f}")


def signed(interval: Interval) -> str:
    """The estimate of a difference, with its sign."""
    return minus(f"{interval.value:+,.{decimals_of(interval)}f}")


def decimals_of(interval: Interval) -> int:
    """Decimal places: two digits of half the interval's width, at most three places."""
    half = (interval.high - interval.low) / 2
    return min(_MOST_DECIMALS, max(0, 1 - math.floor(math.log10(half)))) if half > 0 else 3


def readable(name: str) -> str:
    """`kl_under_budget` as `KL under budget`."""
    return " ".join(_CAPITALS.get(word, word) for word in name.split("_"))


def moment(iso: str) -> str:
    """`2025-01-01 10:09 UTC` of an ISO 8601 time; the text as it is if it is none."""
    try:
        return f"{datetime.fromisoformat(iso).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return iso
