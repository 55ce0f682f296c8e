"""A value that cannot be printed.

Whatever shows objects (repr, str, format, JSON, a failed comparison, a traceback) shows a
placeholder. There is one way to the bytes, `reveal`, so its callers can be counted.
"""

from __future__ import annotations

import hmac
from typing import Any, NoReturn, final

__all__ = ["Secret"]

_MASK = "Secret(***)"


@final
class Secret:
    """A password, token or private key. Immutable; hashable, so it can be part of a cache key.

    `value`: bytes, or text that is kept as UTF-8. Comparison takes the same time wherever the
    values differ, and a Secret only ever equals another Secret. Raises: ValueError for text that is none.
    """

    __slots__ = ("__value",)

    def __init__(self, value: bytes | str) -> None:
        octets = _octets(value)
        del value
        if isinstance(octets, Exception):
            raise octets
        object.__setattr__(self, "_Secret__value", octets)

    def reveal(self) -> bytes:
        """The bytes. Call it where they are used, and keep the result in no attribute."""
        return self.__value  # type: ignore[no-any-return, attr-defined]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self.reveal(), other.reveal())

    def __hash__(self) -> int:
        return hash((Secret, self.reveal()))

    def __repr__(self) -> str:
        return _MASK

    def __str__(self) -> str:
        return _MASK

    def __format__(self, spec: str) -> str:
        return format(_MASK, spec)

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Secret:
        return self

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a Secret does not change")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a Secret does not change")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret cannot be pickled")

    def __getstate__(self) -> NoReturn:
        raise TypeError("a Secret cannot be pickled")

    def __dir__(self) -> list[str]:
        # What lists the attributes of an object with their values finds none.
        return dir(type(self).__base__)


def _octets(value: object) -> bytes | Exception:
    """The bytes, or what is wrong: not raised from here, where the frame and the cause hold the value."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        return TypeError(f"Secret takes bytes or str, not {type(value).__name__}")
    try:
        return value.encode()
    except UnicodeEncodeError:
        return ValueError("the text of a Secret holds characters that UTF-8 has not")
