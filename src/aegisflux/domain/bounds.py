"""Types with bounds for whatever is decoded from a host, a client, a bus or a file.

A number that passes one of these fits the column, the counter and the clock that it goes to, so that no
later step has to ask. NaN and the infinities pass none of them.
"""

from typing import Annotated, Final

from msgspec import Meta

MAX_INT64: Final = (1 << 63) - 1
MAX_VERSION: Final = (1 << 53) - 1  # ADR 0008
MAX_SECONDS: Final = 1 << 40  # some 34,000 years: sums and nanoseconds' floats of it stay exact enough

Count = Annotated[int, Meta(ge=0, le=MAX_INT64)]
Signed64 = Annotated[int, Meta(ge=-MAX_INT64 - 1, le=MAX_INT64)]
Nanoseconds = Annotated[int, Meta(ge=0, le=MAX_INT64)]
Serial = Annotated[int, Meta(ge=0, le=MAX_INT64)]
Version = Annotated[int, Meta(ge=0, le=MAX_VERSION)]
ServiceId = Annotated[int, Meta(ge=0, lt=1 << 32)]
Small = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
"""Of a format, a slot, a number of entries: a column of four bytes."""
Epoch = Annotated[int, Meta(ge=-MAX_SECONDS, le=MAX_SECONDS)]
"""Seconds since 1970. A clock that was never set says what lies before it, so it may be negative."""
EpochTime = Annotated[float, Meta(ge=-float(MAX_SECONDS), le=float(MAX_SECONDS))]
"""The same with fractions."""
Interval = Annotated[float, Meta(ge=0.0, le=86_400.0)]
"""Seconds between two messages."""

Name = Annotated[str, Meta(max_length=256)]
Text = Annotated[str, Meta(max_length=4096)]
BootId = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9:._-]+$(?!\n)")]
