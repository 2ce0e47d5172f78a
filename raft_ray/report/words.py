"""How numbers read in the report: percentages, losses, durations. Knows nothing about where they come from."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

ABSENT = "–"

Number = float | int | None


def usable(value: Number) -> TypeGuard[float]:
    """A number that can be drawn or compared: neither missing nor NaN nor infinite."""
    return value is not None and math.isfinite(value)


def number(value: Any) -> float | None:
    """A setting as a number, None if it is anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def format_percent(value: Number, digits: int | None = None) -> str:
    """A share in [0, 1] as a percentage; without `digits` whole from 10% on, one decimal below."""
    if not usable(value):
        return _odd(value)
    if digits is None:
        digits = 0 if abs(value) >= 0.0995 or value == 0 else 1
    return f"{100 * value:.{digits}f}%"


def format_number(value: Number, digits: int = 3) -> str:
    """Three significant digits without an exponent where it can be read so: `0.0613`, `12.4`, `1,240`, `2e-05`."""
    if not usable(value):
        return _odd(value)
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.{digits - 1}g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_duration(seconds: Number) -> str:
    """`0.24 s`, `38 s`, `4 min 05 s`, `2 h 10 min`."""
    if not usable(seconds):
        return _odd(seconds)
    if seconds < 10:
        return f"{format_number(seconds, 2)} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_factor(ratio: float) -> str:
    """A factor ≥ 1 in words: `7.4 times`, `over 100 times`."""
    return "over 100 times" if ratio > 100 else f"{format_number(ratio, 2)} times"


def format_p(p: float) -> str:
    """`p < 0.001`, `p = 0.62`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def method_label(name: str) -> str:
    """How a method is called in the report: `Base`, `SFT`, `WiSE-FT`, any other name as it is."""
    if name in ("base", "wise"):
        return {"base": "Base", "wise": "WiSE-FT"}[name]
    return name.upper() if name in ("sft", "fapm", "sdft", "opd", "raft") else name


def method_css(name: str) -> str:
    """The class that colours a method; names that are not the usual ones share four spare colours."""
    if name in ("base", "sft", "fapm", "sdft", "opd", "raft"):
        return f"m-{name}"
    return f"m-other{sum(name.encode()) % 4}"


def last_part(value: Any) -> str:
    """The last part of a path; names such as `domain:chemistry` or `owner/model` as they are."""
    text = str(value)
    return text.rstrip("/").rsplit("/", 1)[-1] if text.startswith((".", "/", "~")) or text.count("/") > 1 else text


def _odd(value: Number) -> str:
    return ABSENT if value is None else str(value)
