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

from .cloudkeys import AWS, AZURE, GOOGLE, AwsKey, AzureKey, GoogleKey, read_aws, read_azure, read_google
from .errors import PolicyError, Wrong, a_type, caller, did_you_mean
from .keyterms import TERMS, Termed, read_terms
from .keytext import segments, text, url
from .secret import Secret

__all__ = [
    "AppRoleLogin",
    "AwsKey",
    "AzureKey",
    "CallbackKey",
    "CommandKey",
    "CredentialKey",
    "EnvKey",
    "FileKey",
    "GoogleKey",
    "JwtLogin",
    "KeyRef",
    "LiteralKey",
    "OAuth2Key",
    "TokenLogin",
    "VaultKey",
    "VaultLogin",
    "parse_key",
    "read_key",
    "safe_segment",
]

FORMS = (
    'a path, {"key_data": ...}, {"file": path}, {"env": name}, {"credential": name}, {"exec": [...]}, '
    '{"vault_mount": ..., "vault_path": ...}, {"aws_secret": name}, {"google_secret": name}, '
    '{"azure_vault": URL, "azure_secret": name} or {"event_name": ..., "event_args": [...]}'
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


class FileKey(Termed, frozen=True, tag="file"):
    """The content of a file."""

    path: str

    @property
    def name(self) -> str:
        """What records and errors call this key."""
        return f"file:{self.path}"


class EnvKey(Termed, frozen=True, tag="env"):
    """The value of an environment variable."""

    variable: str

    @property
    def name(self) -> str:
        """What records and errors call this key."""
        return f"env:{self.variable}"


class CredentialKey(Termed, frozen=True, tag="credential"):
    """A credential of the service, a file in the directory that systemd made for it (systemd.exec(5))."""

    credential: str

    @property
    def name(self) -> str:
        """What records and errors call this key."""
        return f"credential:{self.credential}"


class CommandKey(Termed, frozen=True, tag="exec"):
    """What a program writes to its standard output. `argv`: its absolute path and its arguments, without a
    shell. `environment`: names of variables it gets besides HOME, LANG and a plain PATH."""

    argv: tuple[str, ...]
    environment: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What records and errors call this key. Arguments are no secret: every user's ``ps`` shows them."""
        line = " ".join(self.argv)
        return f"exec:{line if len(line) <= 80 else line[:77] + '...'}"


class TokenLogin(msgspec.Struct, frozen=True, tag="token"):
    """A Vault token from a key source, a file for example that an agent writes."""

    token: KeyRef


class AppRoleLogin(msgspec.Struct, frozen=True, tag="approle"):
    """Vault's auth method AppRole. Without `secret_id` for a role that asks for none."""

    role_id: KeyRef
    secret_id: KeyRef | None
    mount: str


class JwtLogin(msgspec.Struct, frozen=True, tag="jwt"):
    """Vault's auth methods JWT and Kubernetes: a signed token is shown, the one of the service account for
    example. `role` None: the mount's default role."""

    role: str | None
    jwt: KeyRef
    mount: str


VaultLogin: TypeAlias = TokenLogin | AppRoleLogin | JwtLogin


class VaultKey(Termed, frozen=True, tag="vault"):
    """Field `key` of the secret at `path` of HashiCorp Vault's (or OpenBao's) KV engine `mount`.

    None means: `address`, `token`, `namespace`, `ca` from the environment (VAULT_ADDR, VAULT_TOKEN,
    VAULT_NAMESPACE, VAULT_CACERT); `kv_version` found out from the server; the newest `version` of the
    secret. `ca`: path of a PEM file. `auth`: how to come by a token, instead of `token`.
    """

    mount: str
    path: str
    key: str = "key"
    address: str | None = None
    token: Secret | None = None
    kv_version: int | None = None
    namespace: str | None = None
    ca: str | None = None
    auth: VaultLogin | None = None
    version: int | None = None

    @property
    def name(self) -> str:
        """What records and errors call this key."""
        pinned = "" if self.version is None else f"@{self.version}"
        return f"vault:{self.mount}/{self.path}#{self.key}{pinned}"


class CallbackKey(Termed, frozen=True, tag="callback"):
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


KeyRef: TypeAlias = (
    LiteralKey
    | FileKey
    | EnvKey
    | CredentialKey
    | CommandKey
    | VaultKey
    | AwsKey
    | GoogleKey
    | AzureKey
    | CallbackKey
    | OAuth2Key
)


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


def safe_segment(part: str) -> str:
    """`part`, if it can stand as one segment of a Vault path; for parts that come from mail.

    Raises: PolicyError for ``/``, ``..``, ``%``, ``?``, ``#``, a control character, or an empty text.
    """
    try:
        if not isinstance(part, str):
            raise Wrong(f"is no text but {a_type(part)}")
        if "/" in part:
            raise Wrong('holds "/"')
        return segments(part, "text")
    except Wrong as wrong:
        raise PolicyError(f"safe_segment: not one path segment: {wrong}", caller()) from None


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
    return FileKey(text(given, "file"), terms=read_terms(given))


def _env(given: Mapping[str, Any]) -> KeyRef:
    variable = text(given, "env")
    if "=" in variable:
        raise Wrong('"env" is the name of an environment variable, without "="')
    return EnvKey(variable, terms=read_terms(given))


def _credential(given: Mapping[str, Any]) -> KeyRef:
    name = text(given, "credential")
    if "/" in name or name in (".", ".."):
        raise Wrong('"credential" is the name of one credential, without "/"')
    return CredentialKey(name, terms=read_terms(given))


def _command(given: Mapping[str, Any]) -> KeyRef:
    argv = _words(given, "exec")
    if not argv or not argv[0].startswith("/"):
        raise Wrong('"exec" is a list that begins with the absolute path of a program')
    environment = _words(given, "exec_env")
    if any("=" in each or not each for each in environment):
        raise Wrong('"exec_env" is a list of names of environment variables')
    return CommandKey(argv, environment, terms=read_terms(given))


def _words(given: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = given.get(key, ())
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise Wrong(f'"{key}" is a list of texts')
    if any("\0" in each for each in value):
        raise Wrong(f'"{key}" holds a NUL')
    return tuple(value)


def _vault(given: Mapping[str, Any]) -> KeyRef:
    if "vault_path" not in given:
        raise Wrong('"vault_path" is missing')
    address = token = namespace = ca = None
    auth: VaultLogin | None = None
    if given.get("vault_address") is not None:
        address = url(text(given, "vault_address"), "vault_address", "https://vault.example.com:8200")
    if given.get("vault_token") is not None:
        token = given["vault_token"]
        if isinstance(token, Mapping | KeyRef):
            token, auth = None, TokenLogin(_nested("vault_token", token))
        elif not isinstance(token, Secret):
            token = Secret(text(given, "vault_token"))
    if given.get("vault_auth") is not None:
        if given.get("vault_token") is not None:
            raise Wrong('"vault_token" and "vault_auth" are two ways to log in')
        auth = _vault_auth(given["vault_auth"])
    if given.get("vault_namespace") is not None:
        namespace = segments(text(given, "vault_namespace").strip("/"), "vault_namespace")
    if given.get("vault_ca") is not None:
        ca = text(given, "vault_ca")
    version = given.get("kv_version")
    if version is not None and (type(version) is not int or version not in (1, 2)):
        raise Wrong('"kv_version" is 1 or 2, or left out')
    pinned = given.get("vault_version")
    if pinned is not None and (type(pinned) is not int or not 1 <= pinned < 1 << 31):
        raise Wrong('"vault_version" is the number of a version of the secret, 1 or more')
    if pinned is not None and version == 1:
        raise Wrong('"vault_version" needs KV version 2: version 1 keeps no older values')
    return VaultKey(
        mount=segments(text(given, "vault_mount"), "vault_mount"),
        path=segments(text(given, "vault_path"), "vault_path"),
        key=text(given, "vault_key") if "vault_key" in given else "key",
        address=address,
        token=token,
        kv_version=version,
        namespace=namespace,
        ca=ca,
        auth=auth,
        version=pinned,
        terms=read_terms(given),
    )


_AUTH: dict[str, tuple[str, ...]] = {
    "approle": ("role_id", "secret_id", "mount"),
    "jwt": ("role", "jwt", "mount"),
    "kubernetes": ("role", "jwt", "mount"),
}
"""Method -> the keys beside "method"."""
_SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount/token"


def _vault_auth(given: Any) -> VaultLogin:
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise Wrong(f'"vault_auth" is a mapping with "method", not {a_type(given)}')
    method = given.get("method")
    if not isinstance(method, str) or method not in _AUTH:
        hint = did_you_mean(method, _AUTH) if isinstance(method, str) else ""
        raise Wrong(f'"method" of "vault_auth" is "approle", "jwt" or "kubernetes"{hint}')
    for key in given:
        if key != "method" and key not in _AUTH[method]:
            hint = did_you_mean(key, _AUTH[method]) or "; known are " + ", ".join(
                f'"{known}"' for known in _AUTH[method]
            )
            raise Wrong(f'unknown key "{key}" beside method "{method}"{hint}')
    mount = segments(text(given, "mount"), "mount") if "mount" in given else method
    if method == "approle":
        if given.get("role_id") is None:
            raise Wrong('"role_id" is missing beside method "approle"')
        secret_id = given.get("secret_id")
        return AppRoleLogin(
            role_id=_nested("role_id", given["role_id"]),
            secret_id=None if secret_id is None else _nested("secret_id", secret_id),
            mount=mount,
        )
    if method == "kubernetes" and given.get("role") is None:
        raise Wrong('"role" is missing beside method "kubernetes"')
    if method == "jwt" and given.get("jwt") is None:
        raise Wrong('"jwt" is missing beside method "jwt"')
    return JwtLogin(
        role=text(given, "role") if given.get("role") is not None else None,
        jwt=_nested("jwt", given.get("jwt", _SERVICE_ACCOUNT)),
        mount=mount,
    )


def _nested(key: str, value: Any) -> KeyRef:
    """A reference that another one needs; never one that needs a third."""
    found = _read(value)
    if isinstance(found, VaultKey | OAuth2Key):
        raise Wrong(f'"{key}" itself needs a login; right would be a file, a credential or the like')
    return found


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
        endpoint=url(text(given, "token_endpoint"), "token_endpoint", "https://login.example.com/token"),
        client_id=text(given, "client_id"),
        client_secret=nested["client_secret"],
        refresh_token=nested["refresh_token"],
        scope=text(given, "scope") if given.get("scope") is not None else None,
        ca=text(given, "ca") if given.get("ca") is not None else None,
    )


def _callback(given: Mapping[str, Any]) -> KeyRef:
    arguments = given.get("event_args", ())
    if not isinstance(arguments, (list, tuple)):
        raise Wrong(f'"event_args" is a list, not {a_type(arguments)}')
    try:
        encoded = Secret(msgspec.json.encode(arguments, order="deterministic"))
        msgspec.json.decode(encoded.reveal())
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError):
        raise Wrong('"event_args" holds something other than JSON values') from None
    return CallbackKey(text(given, "event_name"), encoded, terms=read_terms(given))


_Make = Callable[[Mapping[str, Any]], KeyRef]
_FORMS: tuple[tuple[str, tuple[str, ...], _Make], ...] = (
    ("key_data", ("key_data",), _literal),
    ("file", ("file", *TERMS), _file),
    ("env", ("env", *TERMS), _env),
    ("credential", ("credential", *TERMS), _credential),
    ("exec", ("exec", "exec_env", *TERMS), _command),
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
            "vault_auth",
            "vault_version",
            *TERMS,
        ),
        _vault,
    ),
    ("aws_secret", AWS, read_aws),
    ("google_secret", GOOGLE, read_google),
    ("azure_vault", AZURE, read_azure),
    ("event_name", ("event_name", "event_args", *TERMS), _callback),
    (
        "token_endpoint",
        ("token_endpoint", "client_id", "client_secret", "refresh_token", "scope", "ca"),
        _oauth2,
    ),
)
"""One row per kind: the key that marks it, all its keys, what builds it."""
