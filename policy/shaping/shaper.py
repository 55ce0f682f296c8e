"""What a policy holds: a list of files and URLs, and the answer to `get_egress_path_config` from them.

Files are read once, here, when the policy is loaded. The engine watches them, fetches URLs, asks DNS, and
hands the results in: a whole new `Table`, or the hosts behind the blocks. Nothing here waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from ..egress import EgressPath
from ..errors import PolicyError, a_type
from ..files import open_regular
from .asked import Asked, asked_by_name
from .orders import Orders
from .read import Document, read
from .rules import Bounces, Failure
from .table import Found, Overrides, ShapingError, Sites, Table, build

__all__ = ["SHIPPED", "Shaper", "ShapingFile", "asking", "parse_files"]

SHIPPED = "posthorn:shaping.toml"
"""Names the defaults for large mailbox providers that come with the product."""

_DATA = Path(__file__).parents[1] / "data"
_KEPT = 65536
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class ShapingFile(msgspec.Struct, frozen=True):
    """One entry of the list. `name`: what errors and origins call it; of a URL, all but its query, which may
    hold a token. Either `path` or `url` is set."""

    name: str
    path: Path | None = None
    url: str = ""


def parse_files(files: Sequence[str | Path], directory: Path) -> tuple[ShapingFile, ...]:
    """The list as it was written; relative paths begin at `directory`. Raises: ValueError."""
    if isinstance(files, (str, bytes, Path)) or not isinstance(files, Sequence):
        raise ValueError(f'takes a list of files and URLs such as ["shaping.toml"], not {a_type(files)}')
    found: list[ShapingFile] = []
    for entry in files:
        if not isinstance(entry, (str, Path)) or not str(entry):
            raise ValueError(f"the list holds {a_type(entry)}, which is no file and no URL")
        text = str(entry)
        if text == SHIPPED:
            found.append(ShapingFile(text, _DATA / "shaping.toml"))
        elif text.startswith("posthorn:"):
            raise ValueError(f'"{text}" is no list that comes with the product; known is "{SHIPPED}"')
        elif "://" in text:
            found.append(ShapingFile(_checked(text), None, text))
        else:
            found.append(ShapingFile(text, directory / text))
    if len({one.name for one in found}) != len(found):
        raise ValueError("a file or URL stands twice in the list")
    return tuple(found)


def _checked(url: str) -> str:
    """What a URL is called. Raises: ValueError."""
    name = url.partition("#")[0].partition("?")[0]
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or True)
    except ValueError:
        sound = False
    if "@" in name:
        raise ValueError("a URL of the list holds a user or a password, which would show in every message")
    if not sound:
        raise ValueError(f'"{name}" is no URL like https://shaping.example.com/more.toml')
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise ValueError(
            f'"{name}": whoever is on the way could say where mail and passwords go; right would be https://'
        )
    return name


def _content(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read()


class _Question:
    """A look-up under way. `found`: the answers that shapers gave to it."""

    __slots__ = ("asked", "found")

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.found: list[Found] = []


_question: ContextVar[_Question | None] = ContextVar("shaping_question", default=None)


@contextmanager
def asking(asked: Asked) -> Iterator[list[Found]]:
    """While the block runs, shapers know the hosts of the site they are asked for, also when a hook of the
    policy calls them. Gives the list of what they found."""
    question = _Question(asked)
    token = _question.set(question)
    try:
        yield question.found
    finally:
        _question.reset(token)


class Shaper:
    """Answers `get_egress_path_config` from its files. Made by `setup` and `load`.

    `files`: the list. `unread`: URLs that were never read, and why. `where`: ``file:line`` of the call.
    """

    def __init__(
        self,
        files: Sequence[ShapingFile],
        *,
        allow_auth_in_default: bool,
        require_remote: bool,
        where: str,
        shadow: bool = False,
        bounces: Bounces | None = None,
    ) -> None:
        self.files = tuple(files)
        self.where = where
        self.require_remote = require_remote
        self.unread: dict[str, str] = {one.name: "only a running relay reads it" for one in files if one.url}
        self._allow_auth_in_default = allow_auth_in_default
        self._bounces = bounces
        self._known: dict[str, tuple[bytes, Document]] = {}
        """What was read last, by name: a file that did not change is not read again."""
        self._sites: Sites = {}
        self._cache: dict[tuple[str, str, str, str], Found] = {}
        self.orders = Orders(shadow=shadow)
        """What the rules of the files have brought about. The engine judges replies and keeps them."""
        self._overrides: Overrides = {}
        self.table = self.build({})

    def __call__(self, domain: str, egress_source: str, site_name: str) -> EgressPath:
        """The path, as a hook of `get_egress_path_config` gives it. Raises: PolicyError."""
        return self.find(domain, egress_source, site_name).path

    def find(self, domain: str, source: str, site_name: str) -> Found:
        """The path and where each option comes from. Raises: PolicyError with file and line."""
        question = _question.get()
        key = (domain, source, site_name, question.asked.key if question is not None else "")
        found = self._cache.get(key)
        if found is None:
            if self.unread and self.require_remote:
                name, why = next(iter(self.unread.items()))
                raise PolicyError(f"{name} has not been read yet: {why}", self.where)
            asked = asked_by_name(site_name) if question is None else question.asked
            found = self.table.find(domain, source, asked, self._overrides)
            if len(self._cache) >= _KEPT:
                self._cache.clear()
            self._cache[key] = found
        if question is not None:
            question.found.append(found)
        return found

    def classed(self, failure: Failure) -> Failure:
        """The same with its bounce class, where a rule may ask for it."""
        if self._bounces is None:
            return failure
        return msgspec.structs.replace(failure, bounce_class=self._bounces.of(failure.line))

    # -- what the engine does --------------------------------------------------------------------

    def build(self, remote: Mapping[str, bytes]) -> Table:
        """Read all files again and merge them; nothing is put in force. `remote`: content by URL.

        Raises: ShapingError. Reads files: call it from a thread once the engine runs, one call at a time.
        """
        documents: list[Document] = []
        problems: list[PolicyError] = []
        for file in self.files:
            try:
                content = _content(file.path) if file.path is not None else remote.get(file.name, b"")
            except OSError as error:
                problems.append(PolicyError(f"cannot be read: {error.strerror or error}", file.name))
                continue
            known = self._known.get(file.name)
            if known is None or known[0] != content:
                known = self._known[file.name] = (content, read(file.name, content))
            documents.append(known[1])
        if problems:
            raise ShapingError([*problems, *(one for document in documents for one in document.problems)])
        return build(documents, allow_auth_in_default=self._allow_auth_in_default, bounces=self._bounces)

    def use(self, table: Table) -> None:
        """Put a table in force."""
        table.take_sites(self._sites)
        self.table = table
        self.use_orders()

    def use_orders(self) -> bool:
        """Orders were given or are over: whether paths may be others now."""
        before, self._overrides = self._overrides, self.orders.overrides(self.table)
        self._cache = {}
        return bool(before or self._overrides)

    def use_sites(self, sites: Sites) -> None:
        """What DNS says of the blocks with roll-up."""
        self._sites = sites
        self.use(self.table)
