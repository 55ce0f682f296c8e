"""References to secrets: where a password, certificate or key comes from, never the secret itself.

(The one exception is a literal in the policy file, which is a `Secret` from the moment it is read.)
The engine fetches what a reference names when it is needed. References are immutable and hashable,
and what they show of themselves is `name`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import msgspec

from .errors import PolicyError, Wrong, a_type, caller, did_you_mean
from .secret import Secret

__all__ = [
    "CallbackKey",
    "EnvKey",
    "FileKey",
    "KeyRef",
    "LiteralKey",
    "OAuth2Key",
    "VaultKey",
    "parse_key",
    "read_key",
    "safe_segment",
]

FORMS = (
    'a path, {"key_data": ...}, {"file": path}, {"env": name}, {"vault_mount": ..., "vault_path": ...} '
    'or {"event_name": ..., "event_args": [...]}'
)


class LiteralKey(msgspec.Struct, frozen=True, tag="literal"):
    """The secret stands in the policy. For tests and throw-away set-ups."""

    data: Secret

    @property
    def name(self) -> str:
        """What records and errors call this key."""
        return "literal"

    def __repr__(self) -> str:
        return "LiteralKey(***)"


class FileKey(msgspec.Struct, frozen=True, tag="file"):
    """The content of a file."""

    path: str

    @property
    def name(self) -> str:
        """What records and errors call this key."""
        return f"file:{self.path}"


class EnvKey(msgspec.Struct, frozen=True, tag="env"):
    """The value of an environment variable."""

    variable: str

    @property
    def name(self) -> str:
        """What records and errors call this key."""
        return f"env:{self.variable}"


class VaultKey(msgspec.Struct, frozen=True, tag="vault"):
    """Field `key` of the secret at `path` of HashiCorp Vault's (or OpenBao's) KV engine `mount`.

    None means: `address`, `token`, `namespace`, `ca` from the environment (VAULT_ADDR, VAULT_TOKEN,
    VAULT_NAMESPACE, VAULT_CACERT); `kv_version` found out from the server. `ca`: path of a PEM file.
    """

    mount: str
    path: str
    key: str = "key"
    address: str | None = None
    token: Secret | None = None
    kv_version: int | None = None
    namespace: str | None = None
    ca: str | None = None

    @property
    def name(self) -> str:
        """What records and errors call this key."""
        return f"vault:{self.mount}/{self.path}#{self.key}"


class CallbackKey(msgspec.Struct, frozen=True, tag="callback"):
    """What the hook registered with ``policy.on(event_name, keysource=True)`` answers."""

    event_name: str
    arguments: Secret = Secret(b"[]")
    """The hook's arguments as JSON. Not as values, where 1, 1.0 and True would be equal and share a secret;
    and never shown, for they may be one."""

    @property
    def event_args(self) -> tuple[Any, ...]:
        """The arguments, for the hook alone: what it does to them changes no reference."""
        return tuple(msgspec.json.decode(self.arguments.reveal()))

    @property
    def name(self) -> str:
        """What records and errors call this key."""
        return f"callback:{self.event_name}"

    def __repr__(self) -> str:
        return f"CallbackKey({self.name})"


class OAuth2Key(msgspec.Struct, frozen=True, tag="oauth2"):
    """An access token of that endpoint (RFC 6749): by `refresh_token`, or without one by the client's own
    credentials. `ca`: path of a PEM file that replaces the system's roots."""

    endpoint: str
    client_id: str
    client_secret: KeyRef | None = None
    refresh_token: KeyRef | None = None
    scope: str | None = None
    ca: str | None = None

    @property
    def name(self) -> str:
        """What records and errors call this key."""
        return f"oauth2:{self.client_id}@{urlsplit(self.endpoint).hostname}"


KeyRef: TypeAlias = LiteralKey | FileKey | EnvKey | VaultKey | CallbackKey | OAuth2Key


def parse_key(value: Any, where: str = "key source") -> KeyRef:
    """The reference that `value` describes; see FORMS.

    A plain string is a file path, never the secret. `where` names the option in the error.
    Raises: PolicyError; its text never holds a value, only names of keys.
    """
    found = _attempt(value)
    if isinstance(found, Wrong):
        del value
        right = "" if found.complete else f"; right would be {FORMS}"
        raise PolicyError(f"{where}: {found}{right}", caller())
    return found


def read_key(value: Any) -> KeyRef:
    """As `parse_key`, for the constructors of this package. Raises: ValueError."""
    found = _attempt(value)
    if isinstance(found, Wrong):
        del value
        raise found
    return found


def _attempt(value: Any) -> KeyRef | Wrong:
    """The reference, or what is wrong: without the frames and causes before it, which hold the value."""
    try:
        return _read(value)
    except Wrong as wrong:
        return Wrong(str(wrong), complete=wrong.complete)


def _read(value: Any) -> KeyRef:
    if isinstance(value, KeyRef):
        return value
    if isinstance(value, str):
        return _file({"file": value})
    if not isinstance(value, Mapping):
        raise Wrong(f"{a_type(value)} is no key source")
    if not value or not all(isinstance(key, str) for key in value):
        raise Wrong("a mapping of other than the known keys is no key source")
    known = [form for form in _FORMS if form[0] in value]
    if not known:
        first = next(iter(value))
        for marker, keys, _ in _FORMS:
            if first in keys:
                raise Wrong(f'"{marker}" is missing beside "{first}"', complete=True)
        every = [key for _, keys, _ in _FORMS for key in keys]
        raise Wrong(f'"{first}" makes no key source{did_you_mean(first, every)}')
    if len(known) > 1:
        raise Wrong(f'"{known[0][0]}" and "{known[1][0]}" are two different kinds of key source')
    marker, keys, make = known[0]
    for key in value:
        if key not in keys:
            hint = did_you_mean(key, keys) or "; known are " + ", ".join(f'"{known}"' for known in keys)
            raise Wrong(f'unknown key "{key}" beside "{marker}"{hint}', complete=True)
    try:
        return make(value)
    except Wrong as wrong:
        raise Wrong(str(wrong), complete=True) from None


def safe_segment(text: str) -> str:
    """`text`, if it can stand as one segment of a Vault path; for parts that come from mail.

    Raises: PolicyError for ``/``, ``..``, ``%``, ``?``, ``#``, a control character, or an empty text.
    """
    try:
        if not isinstance(text, str):
            raise Wrong(f"is no text but {a_type(text)}")
        if "/" in text:
            raise Wrong('holds "/"')
        return _segments(text, "text")
    except Wrong as wrong:
        raise PolicyError(f"safe_segment: not one path segment: {wrong}", caller()) from None


def _text(given: Mapping[str, Any], key: str) -> str:
    """A non-empty string without control characters. The error names the key only."""
    value = given[key]
    if not isinstance(value, str):
        raise Wrong(f'"{key}" is text, not {a_type(value)}')
    if not value:
        raise Wrong(f'"{key}" is empty')
    if not value.isprintable():
        raise Wrong(f'"{key}" holds a control character')
    return value


def _segments(text: str, key: str) -> str:
    """A path whose every segment stays where it is put (reliability: no traversal, no query)."""
    for segment in text.split("/"):
        if not segment:
            raise Wrong(f'"{key}" has an empty segment (a "/" too many)')
        if segment in (".", "..") or not segment.isprintable() or any(c in "%?#\\" for c in segment):
            raise Wrong(f'"{key}" has a segment with "..", "%", "?", "#", "\\" or a control character')
    return text


def _literal(given: Mapping[str, Any]) -> KeyRef:
    data = given["key_data"]
    if not isinstance(data, Secret):
        if not isinstance(data, (str, bytes)):
            raise Wrong(f'"key_data" is text or bytes, not {a_type(data)}')
        try:
            data = Secret(data)
        except ValueError:
            raise Wrong('"key_data" holds characters that UTF-8 has not') from None
    if not data.reveal():
        raise Wrong('"key_data" is empty')
    return LiteralKey(data)


def _file(given: Mapping[str, Any]) -> KeyRef:
    return FileKey(_text(given, "file"))


def _env(given: Mapping[str, Any]) -> KeyRef:
    variable = _text(given, "env")
    if "=" in variable:
        raise Wrong('"env" is the name of an environment variable, without "="')
    return EnvKey(variable)


def _vault(given: Mapping[str, Any]) -> KeyRef:
    if "vault_path" not in given:
        raise Wrong('"vault_path" is missing')
    address = token = namespace = ca = None
    if given.get("vault_address") is not None:
        address = _url(_text(given, "vault_address"), "vault_address", "https://vault.example.com:8200")
    if given.get("vault_token") is not None:
        token = given["vault_token"]
        if not isinstance(token, Secret):
            token = Secret(_text(given, "vault_token"))
    if given.get("vault_namespace") is not None:
        namespace = _segments(_text(given, "vault_namespace").strip("/"), "vault_namespace")
    if given.get("vault_ca") is not None:
        ca = _text(given, "vault_ca")
    version = given.get("kv_version")
    if version is not None and (type(version) is not int or version not in (1, 2)):
        raise Wrong('"kv_version" is 1 or 2, or left out')
    return VaultKey(
        mount=_segments(_text(given, "vault_mount"), "vault_mount"),
        path=_segments(_text(given, "vault_path"), "vault_path"),
        key=_text(given, "vault_key") if "vault_key" in given else "key",
        address=address,
        token=token,
        kv_version=version,
        namespace=namespace,
        ca=ca,
    )


def _url(address: str, key: str, like: str) -> str:
    try:
        parts = urlsplit(address)
        sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        sound = False
    if not sound:
        raise Wrong(f'"{key}" is no URL like {like}')
    if parts.username is not None or parts.query or parts.fragment:
        hint = '; a token goes into "vault_token"' if key == "vault_address" else ""
        raise Wrong(f'"{key}" holds a user, a query or a fragment{hint}')
    return address.rstrip("/") if key == "vault_address" else address


def _oauth2(given: Mapping[str, Any]) -> KeyRef:
    if "client_id" not in given:
        raise Wrong('"client_id" is missing')
    nested: dict[str, KeyRef | None] = {}
    for key in ("client_secret", "refresh_token"):
        value = given.get(key)
        nested[key] = found = None if value is None else _read(value)
        if isinstance(found, OAuth2Key):
            raise Wrong(f'"{key}" is itself a token of an endpoint')
    if nested["client_secret"] is None and nested["refresh_token"] is None:
        raise Wrong('"client_secret" or "refresh_token" is missing')
    return OAuth2Key(
        endpoint=_url(_text(given, "token_endpoint"), "token_endpoint", "https://login.example.com/token"),
        client_id=_text(given, "client_id"),
        client_secret=nested["client_secret"],
        refresh_token=nested["refresh_token"],
        scope=_text(given, "scope") if given.get("scope") is not None else None,
        ca=_text(given, "ca") if given.get("ca") is not None else None,
    )


def _callback(given: Mapping[str, Any]) -> KeyRef:
    arguments = given.get("event_args", ())
    if not isinstance(arguments, (list, tuple)):
        raise Wrong(f'"event_args" is a list, not {a_type(arguments)}')
    try:
        text = Secret(msgspec.json.encode(arguments, order="deterministic"))
        msgspec.json.decode(text.reveal())
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError):
        raise Wrong('"event_args" holds something other than JSON values') from None
    return CallbackKey(_text(given, "event_name"), text)


_Make = Callable[[Mapping[str, Any]], KeyRef]
_FORMS: tuple[tuple[str, tuple[str, ...], _Make], ...] = (
    ("key_data", ("key_data",), _literal),
    ("file", ("file",), _file),
    ("env", ("env",), _env),
    (
        "vault_mount",
        (
            "vault_mount",
            "vault_path",
            "vault_key",
            "vault_address",
            "vault_token",
            "kv_version",
            "vault_namespace",
            "vault_ca",
        ),
        _vault,
    ),
    ("event_name", ("event_name", "event_args"), _callback),
    (
        "token_endpoint",
        ("token_endpoint", "client_id", "client_secret", "refresh_token", "scope", "ca"),
        _oauth2,
    ),
)
"""One row per kind: the key that marks it, all its keys, what builds it."""
