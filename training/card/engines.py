"""The ways in which our Bloom attends within the documents of a micro-batch, each to be measured."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

# A block in which our Bloom attends in the way of that name.
ENGINES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "a kernel for each document": nullcontext,
}
