"""Numbers as prose wants them: rounded to what is known, with their unit after a space that does not break the line."""

import math
from datetime import datetime

SPACE = "\u00a0"  # no line ends between a number and its unit

WORDS = ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"), (1e3, "thousand"))
LETTERS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
BINARY = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def significant(value: float, digits: int = 3) -> str:
    """Round to significant digits: 0.0123456 -> "0.0123", 123456 -> "123,000", 1e-7 -> "1.00e-07".

    Raises ValueError when `digits` is not positive.
    """
    if digits < 1:
        raise ValueError(f"digits is {digits}: it must be at least 1")
    if not math.isfinite(value):
        return str(value)
    if value and not 1e-4 <= abs(value) < 1e15:
        return f"{value:.{digits - 1}e}"
    decimals = digits - 1 - (math.floor(math.log10(abs(value))) if value else 0)
    rounded = round(value, decimals)
    if rounded and math.floor(math.log10(abs(rounded))) > digits - 1 - decimals:  # 9.996 -> 10.0, one decimal less
        decimals -= 1
    return _minus(f"{rounded:,.{max(decimals, 0)}f}")


def plus_minus(value: float, error: float) -> str:
    """A value with its standard error, both to the error's two leading digits: (1.38213, 0.0042) -> "1.3821 ± 0.0042".

    Raises ValueError when the error is negative.
    """
    if error < 0:
        raise ValueError(f"standard error is {error}: it must not be negative")
    if not math.isfinite(error) or not error:
        return f"{significant(value)}{SPACE}±{SPACE}{error:g}"
    decimals = max(1 - math.floor(math.log10(error)), 0)
    return _minus(f"{value:,.{decimals}f}{SPACE}±{SPACE}{error:,.{decimals}f}")


def interval(low: float, high: float, digits: int = 3) -> str:
    """The two ends of an interval: (0.3171, 0.3734) -> "0.317 to 0.373"."""
    return f"{significant(low, digits)} to {significant(high, digits)}"


def count(value: float, digits: int = 2) -> str:
    """A large number in words: 2_345_678 -> "2.3 million", 812 -> "812"; whole numbers under 10,000 stay."""
    if abs(value) < 10_000 and value == int(value):
        return _minus(f"{int(value):,}")
    return _scaled(value, WORDS, digits)


def short(value: float, digits: int = 3) -> str:
    """A large number with a letter, for axes and tables: 300_000 -> "300 k", 1.5e6 -> "1.5 M", 0.25 -> "0.25"."""
    return _scaled(value, LETTERS, digits)


def bits(value: float) -> str:
    """Bits with their unit: 4.25 -> "4.25 bits", 4.0 -> "4 bits", 1 -> "1 bit"."""
    return f"{value:.4g}{SPACE}bit{'' if value == 1 else 's'}"


def file_size(value: float) -> str:
    """Bytes with a binary unit: 1_500_000 -> "1.43 MiB", 700 -> "700 bytes"."""
    return _scaled(value, BINARY, 3) if value >= 1024 else f"{int(value)}{SPACE}bytes"


def percent(share: float, digits: int = 0) -> str:
    """A share as a percentage: 0.782 -> "78 %"."""
    return _minus(f"{100 * share:.{digits}f}{SPACE}%")


def duration(seconds: float) -> str:
    """A span of time: 0.42 -> "0.4 s", 75 -> "1 min 15 s", 5000 -> "1 h 23 min"."""
    if seconds < 10:
        return f"{seconds:.1f}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = (
        (f"{hours} h", f"{minutes} min") if hours else (f"{minutes} min", f"{rest} s") if minutes else (f"{rest} s",)
    )
    return " ".join(parts).replace(" ", SPACE)


def moment(iso: str) -> str:
    """A point in time from ISO 8601: "2026-03-01T14:05:09+00:00" -> "1 March 2026, 14:05 UTC"; a date alone stays one.

    Raises ValueError when the text is no such date.
    """
    time = datetime.fromisoformat(iso)
    day = f"{time.day} {time:%B %Y}"
    return day if len(iso) <= len("2026-03-01") else f"{day}, {time:%H:%M %Z}".rstrip()


def _scaled(value: float, units: tuple[tuple[float, str], ...], digits: int) -> str:
    for size, unit in units:
        # 999,996 to three digits is a million, not a thousand thousands
        if abs(float(f"{value:.{digits - 1}e}")) >= size:
            return _minus(f"{_plain(value / size, digits)}{SPACE}{unit}")
    return _minus(_plain(value, digits))


def _plain(value: float, digits: int) -> str:
    """`digits` significant ones, without trailing zeros and never in powers of ten."""
    text = significant(value, digits)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def _minus(text: str) -> str:
    return text.replace("-", "−") if "e" not in text else text
