"""Building the native ops, for someone who installed qvl before there was a compiler."""

from __future__ import annotations


def build() -> None:
    """Make what is missing or out of date, for a GPU as well where Paddle is a GPU build and there is a CUDA compiler;
    the compiler's words go to stderr. Raises NativeOpsError.
    """
    from qvl.ops import cuda, native

    native.build()
    cuda.build()
