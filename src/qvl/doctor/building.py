"""Building the native ops, for someone who installed qvl before there was a compiler."""

from __future__ import annotations


def build() -> None:
    """Make what is missing or out of date; the compiler's words go to stderr. Raises NativeOpsError."""
    from qvl.ops import native

    native.build()
