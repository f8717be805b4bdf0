"""What holds while a block of code runs, in its thread."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def holding(variable: contextvars.ContextVar, value: Any) -> Iterator[None]:
    """While active, the variable has this value; then the one that it had."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
