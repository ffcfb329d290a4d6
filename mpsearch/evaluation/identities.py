"""Identities of results: what was computed before is looked up and not computed again.

A result is what an op, in a precision, makes of results that have identities. What comes out bit
for bit the same as an earlier result at the same place is given that one's identity, which stops
a difference from spreading any further.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import psutil
import xxhash
from cachetools import LRUCache
from torch import Tensor, float16

from ..executor.runtime import tensor_bytes
from ..memory import give_back

Results = tuple[Any, ...]
Where = tuple[int, int]  # identity of a result (negative: a model input), place within it

#: What a key takes, about, and what all keys may take however small the limit.
_KEY_BYTES = 1_000
_LEAST_KEY_BYTES = 64 << 20
#: By what share of the limit the process may hold more than is remembered, in holes that dropped
#: results left, before these are handed back; and how often that is looked at.
_HOLES, _LOOK = 0.25, 0.125
#: How many elements of a result are looked at before all of them are.
_GLIMPSE = 32


class Key(NamedTuple):
    """How a result is made: enough to look it up, and to make it again once it was dropped.

    ``profile`` is -1 where the result is the same in all of them.
    """

    step: int
    fp32: frozenset[int]
    reads: tuple[Where, ...]
    profile: int
    sample: int


class Identities:
    """Keys, the identities of what they make, and the tensors that are remembered.

    Parameters
    ----------
    limit
        Bytes of tensors to remember; the least recently used are dropped first.

    Attributes
    ----------
    nonfinite
        Identities of results that are not finite, as far as someone looked.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nonfinite: set[int] = set()
        self._tensors: LRUCache[int, Results] = LRUCache(limit, getsizeof=tensor_bytes)
        self._by_key: dict[Key, int] = {}
        self._keys: list[Key] = []  # by identity
        self._alike: dict[tuple[int, int, bytes], list[int]] = {}
        self._digests: dict[int, bytes] = {}
        self._process, self._fresh = psutil.Process(), 0
        self._before = self._process.memory_info().rss

    @property
    def overgrown(self) -> bool:
        """Whether the tables of keys have outgrown their part of the limit."""
        return len(self._by_key) * _KEY_BYTES > max(self.limit // 4, _LEAST_KEY_BYTES)

    @property
    def used(self) -> int:
        """Bytes of tensors remembered now."""
        return int(self._tensors.currsize)

    def known(self, key: Key) -> int | None:
        """The identity of what a key makes, where it was made before."""
        return self._by_key.get(key)

    def key(self, identity: int) -> Key:
        """How a result is made."""
        return self._keys[identity]

    def learn(self, key: Key, results: Results, again: Callable[[int], Results]) -> int:
        """The identity of what a key was seen to make.

        ``again`` gives the results of an identity; it is asked only where a look at a few
        elements says that the two may be the same.
        """
        alike = self._alike.setdefault((key.step, key.sample, _glimpse(results)), [])
        for other in alike:
            if other not in self._digests:
                self._digests[other] = _digest(again(other))
            if self._digests[other] == _digest(results):
                self._by_key[key] = other
                return other
        identity = len(self._keys)
        self._keys.append(key)
        self._by_key[key] = identity
        alike.append(identity)
        return identity

    def held(self, identity: int) -> Results | None:
        """A result, where it is remembered."""
        return self._tensors.get(identity)

    def hold(self, identity: int, results: Results) -> None:
        """Remember a result, unless it is larger than all that may be."""
        size = tensor_bytes(results)
        if size > self.limit:
            return
        self._tensors[identity] = results
        self._fresh += size
        if self._fresh > _LOOK * self.limit:
            self._fresh = 0
            taken = self._process.memory_info().rss - self._before
            if taken - self.used > _HOLES * self.limit:
                give_back()

    def trim(self, limit: int) -> None:
        """Drop results, the least recently used first, until ``limit`` bytes are left."""
        while self._tensors.currsize > limit:
            self._tensors.popitem()


def _glimpse(results: Results) -> bytes:
    """A few elements of a result, as FP32: readers of a value do not see how it is stored."""
    return b"".join([_few(v) if isinstance(v, Tensor) else _digest((v,)) for v in results])


def _few(value: Tensor) -> bytes:
    count = value.numel()
    if count > _GLIMPSE:
        if not value.is_contiguous():
            value = value.reshape(-1)
        value = value.as_strided((_GLIMPSE,), (count // _GLIMPSE,))
    array = value.numpy() if value.device.type == "cpu" else value.cpu().numpy()
    return (array.astype(np.float32) if array.dtype == np.float16 else array).tobytes()


def _digest(results: Results) -> bytes:
    digest = xxhash.xxh3_128()
    _feed(digest, results)
    return digest.digest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        data = value.float() if value.dtype is float16 else value
        digest.update(f"{data.dtype}{tuple(data.shape)}".encode())
        data = data.detach().cpu().contiguous()
        if data.numel():
            digest.update(data.view(-1).numpy().view(np.uint8).data)
    elif isinstance(value, (list, tuple)):
        digest.update(str(len(value)).encode())
        for item in value:
            _feed(digest, item)
    else:
        digest.update(repr(value).encode())
