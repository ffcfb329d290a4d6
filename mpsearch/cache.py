"""A least-recently-used cache with a limit in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, ItemsView
from typing import Generic, TypeVar

V = TypeVar("V")


class ByteCache(Generic[V]):
    """Keep values up to ``limit`` bytes together, dropping the least recently used first.

    ``size`` gives the bytes of a value. A value larger than the limit is not kept.
    """

    def __init__(self, limit: int, size: Callable[[V], int]) -> None:
        self.limit = limit
        self.bytes = 0
        self._size = size
        self._values: OrderedDict[Hashable, V] = OrderedDict()

    def get(self, key: Hashable) -> V | None:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: Hashable, value: V) -> None:
        size = self._size(value)
        if key in self._values:
            self.bytes -= self._size(self._values.pop(key))
        if size > self.limit:
            return
        self._values[key] = value
        self.bytes += size
        self.trim(self.limit)

    def trim(self, limit: int) -> None:
        """Drop values, the least recently used first, until ``limit`` bytes are left."""
        while self.bytes > limit:
            _, dropped = self._values.popitem(last=False)
            self.bytes -= self._size(dropped)

    def items(self) -> ItemsView[Hashable, V]:
        """What is kept, the least recently used first."""
        return self._values.items()

    def clear(self) -> None:
        """Drop everything."""
        self._values.clear()
        self.bytes = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)
