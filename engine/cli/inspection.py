"""What can be found out about a loaded policy without starting anything.

The egress hooks are asked in the order in which mail asks them: queue, pool, sources, and a path per
source. Nothing is fetched, opened or resolved, except that the files of certificates and their keys are
read (whether they belong together shows only then), and that shaping files are looked into as they will
be used: their URLs are read, and DNS is asked about their blocks.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from engine.app import hosts_of, own_hosts
from engine.certificates import in_date, leaf_of, load_pair
from engine.cli.asked import AskedHooks
from engine.cli.credentials import all_fetched
from engine.cli.shaping_review import look_at_login, review
from engine.egress.dns import HostsFile, StubResolver
from engine.egress.resolve import Resolver
from engine.egress.site import asked_for, mx_list_site
from engine.egress.stsfetch import Fetcher
from engine.errors import ConfigError, HookError
from engine.ingress.logins import offered
from engine.keys import SourceFailure, key_sources, missing_sdk, open_keys
from engine.tripwire import Tripwire
from policy import Reject
from policy.egress import IMPLICIT_PORT, UNSPECIFIED, EgressPath, EgressPool, QueueConfig
from policy.errors import did_you_mean
from policy.hooks import EVENTS
from policy.keysource import (
    CallbackKey,
    CommandKey,
    FileKey,
    KeyRef,
    LiteralKey,
    OAuth2Key,
    VaultKey,
)
from policy.secret import Secret
from policy.shaping import asked_by_name, asking

if TYPE_CHECKING:
    from policy.ingress import ListenerDeclaration
    from policy.load import LoadedPolicy
    from policy.runtime import Declarations, MtaStsDeclaration

__all__ = ["SAMPLE", "Inspection"]

SAMPLE = "example.com"
"""The destination the hooks are asked about when none is named."""

_TENANT = "some-tenant"
"""Stands for any tenant where none is named."""

_PUBLIC = ("tls_ca", "tls_certificate")
"""Options whose key source holds no secret, so that nobody puts one in the place of its path."""

_UNRELATED = "another.example"
"""A destination that has nothing to do with any other."""


class Inspection:
    """`problems` are mistakes, `notes` remarks, `facts` what the policy does: name and text.

    `mistakes`: those that were found in `init` already, where it then declared less than it meant to."""

    def __init__(
        self, loaded: LoadedPolicy, declarations: Declarations, mistakes: Sequence[str] = ()
    ) -> None:
        self.problems: list[str] = list(mistakes)
        self._half = bool(mistakes)
        self.notes: list[str] = list(loaded.notes)
        self.facts: list[tuple[str, str]] = []
        self._loaded = loaded
        self._declarations = declarations
        self._hooks = AskedHooks(loaded)
        self.keys: dict[KeyRef, str] = {}
        """Every secret that was met, and where."""
        self._tenant: str | None = None
        """Whose mail is looked at."""
        self._made_up = False
        """That is nobody's: what depends on its name may be wrong."""
        self._told: set[KeyRef] = set()
        """Those that lead nowhere, which was said."""
        self._dane = ""
        """Where a path was met that asks for DANE."""

    async def run(
        self, domains: Sequence[str], tenants: Sequence[str] = (), *, offline: bool = False
    ) -> None:
        """Look at everything. Without `tenants` at mail that has none, or where there is nothing like that,
        at that of a made-up one. Waits: for async hooks; and unless `offline`, where the policy has shaping
        files, for their URLs and for DNS."""
        await self._start()
        for shaper in self._loaded.hooks.shapers:
            resolver = None if offline else self._resolver()
            await review(
                shaper,
                self,
                hosts_of=hosts_of(resolver) if resolver is not None else None,
                routes=hosts_of(resolver, route=True) if resolver is not None else None,
            )
        for domain in domains:
            for tenant in tenants or (None,):
                self._tenant = tenant
                await self._named(domain)
                await self._way_out(domain)
        await self._everybodys_password(domains[0])
        if self._dane and not offline and (doubt := await self._resolver().distrust()):
            self.note(f"{self._dane}: enable_dane needs a validating name server on loopback, and {doubt}")

    def _resolver(self) -> Resolver:
        servers = os.environ.get("POSTHORN_DNS_SERVERS", "").split()
        return Resolver(StubResolver(servers), hosts=HostsFile(), own=own_hosts(self._declarations))

    async def fetch_secrets(self, tripwire: Tripwire) -> None:
        """Fetch every secret that was met; one that cannot be had is a mistake. None is shown."""
        async with open_keys(self._hooks, tripwire=tripwire) as keys:
            wanted = [key for key in self.keys if key not in self._told]
            for key, credential in (await all_fetched(keys, wanted)).items():
                if credential.problem:
                    self.problem(f"{self.keys[key]}: {credential.as_text()}")
                else:
                    self.facts.append(("secret", credential.as_text()))

    async def no_source(self, name: str) -> str:
        """Why the policy gives no egress source of that name; empty when it does."""
        if name == UNSPECIFIED:
            return ""
        if not self._hooks.has("get_egress_source"):
            return f'no hook answers get_egress_source, so the only source is "{UNSPECIFIED}"'
        try:
            await self._hooks.call("get_egress_source", name)
        except HookError as error:
            return str(error)
        return ""

    def problem(self, text: str) -> None:
        """A mistake, once."""
        if text not in self.problems:
            self.problems.append(text)

    def note(self, text: str) -> None:
        """A remark, once."""
        if text not in self.notes:
            self.notes.append(text)

    # -- hooks -----------------------------------------------------------------------------------

    def _where(self, event: str) -> str:
        """File, line and function of the hook that answered last."""
        return self._hooks.where(event)

    async def _ask(self, event: str, *arguments: str | None) -> Any:
        """The hook's answer. Raises: _Failed, after noting why."""
        try:
            return await self._hooks.call(event, *arguments)
        except HookError as error:
            asked = ", ".join("None" if argument is None else f'"{argument}"' for argument in arguments)
            text = f"{error} (asked about {asked})"
            if isinstance(error.__cause__, Reject):
                text += f"; right would be {EVENTS[event].right}"
            if self._made_up:
                self.note(f'{text}; there may be no tenant "{_TENANT}"')
            else:
                self.problem(text)
        raise _Failed

    async def _queue(self, domain: str, tenant: str | None) -> QueueConfig:
        """Raises: HookError."""
        found: QueueConfig | None = await self._hooks.call("get_queue_config", domain, tenant, None, None)
        return found if found is not None else QueueConfig()

    async def _named(self, domain: str) -> None:
        """Whether there is mail without a tenant, as far as can be seen: not where the hook puts the tenant's
        name into its answer, which says ``None`` then, or fails for want of one alone."""
        self._made_up = False
        if self._tenant is not None:
            return
        answers: list[str] = []
        for tenant in (None, _TENANT):
            try:
                answers.append(repr(await self._queue(domain, tenant)))
            except HookError as error:
                answers.append(f"!{error}")
        none, named = answers
        if none == named or named.startswith("!"):
            return
        if none.startswith("!") or none == named.replace(_TENANT, "None"):
            self._tenant, self._made_up = _TENANT, True
            self.note(
                f"{self._where('get_queue_config')}: the answer needs a tenant, so mail of a made-up one was "
                f'looked at ("{_TENANT}"), its secrets not; --tenant NAME looks at one that there is'
            )

    # -- what init declared ----------------------------------------------------------------------

    async def _start(self) -> None:
        declared = self._declarations
        if declared.spool is not None:
            self.facts.append(("spool", declared.spool.path))
        elif not self._half:
            self.problem(self._loaded.no_spool())
        self.facts += [("log", log.log_dir) for log in declared.logs]
        if not declared.logs and not self._half:
            self.facts.append(
                (
                    "log",
                    "none: nobody learns what became of mail; call policy.configure_local_logs(...) in init",
                )
            )
        self._log_directories()
        if declared.mta_sts is not None:
            await self._mta_sts(declared.mta_sts)
        for listener in declared.listeners:
            self.facts.append(("listener", _listener_text(listener)))
            await self._certificate(listener)
            try:
                offered(
                    listener,
                    plain=self._hooks.has("smtp_server_auth_plain"),
                    store=self._hooks.has("smtp_server_auth"),
                )
            except ConfigError as error:
                self.problem(f"{self._init()}: {error}")
        if not declared.listeners and not self._half:
            self.facts.append(
                (
                    "listener",
                    "none: nothing can be submitted; call policy.start_esmtp_listener(...) in init",
                )
            )

    async def _mta_sts(self, wanted: MtaStsDeclaration) -> None:
        try:
            await Fetcher(self._resolver(), ca=wanted.ca).check()
        except ConfigError as error:
            self.problem(f"{self._init()}: {error}")
        where = f" at {wanted.gateway}" if wanted.gateway is not None else ""
        self.facts.append(("MTA-STS", f"policies are fetched{where}" if wanted.enabled else "off"))

    def _log_directories(self) -> None:
        for log in self._declarations.logs:
            if log.log_dir != "-" and os.path.exists(log.log_dir) and not os.path.isdir(log.log_dir):
                self.problem(f'{self._init()}: configure_local_logs: "{log.log_dir}" is not a directory')

    def _init(self) -> str:
        hooks = self._loaded.hooks.get("init")
        return hooks[0].where if hooks else str(self._loaded.path)

    async def _certificate(self, listener: ListenerDeclaration) -> None:
        where = f"{self._init()}: start_esmtp_listener {listener.listen}"
        await self.look_at_pair(where, listener.tls_certificate, listener.tls_private_key, must=True)

    async def look_at_pair(
        self, where: str, certificate: KeyRef | None, private_key: KeyRef | None, *, must: bool = False
    ) -> None:
        """Whether the key sources of a pair look usable, and whether what they hold belongs together. `must`:
        as for `look_at_key`."""
        pair = {"tls_certificate": certificate, "tls_private_key": private_key}
        looked = [
            key is not None and self.look_at_key(f"{where}: {option}", key, must=must)
            for option, key in pair.items()
        ]
        await self.match_pair(
            where, *(key if usable else None for key, usable in zip(pair.values(), looked, strict=True))
        )

    async def match_pair(self, where: str, certificate: KeyRef | None, private_key: KeyRef | None) -> None:
        """Whether a certificate and its key belong together, as far as both can be read here."""
        pair = {"tls_certificate": certificate, "tls_private_key": private_key}
        content: list[bytes] = []
        for option, key in pair.items():
            readable = isinstance(key, FileKey) and os.access(key.path, os.R_OK)
            if key is not None and (readable or isinstance(key, LiteralKey)):
                try:
                    found = await key_sources()[type(key)].read(key)
                    content.append(found.reveal() if isinstance(found, Secret) else b"")
                except SourceFailure as failure:
                    self.problem(f"{where}: {option}: {key.name}: {failure}; right would be a PEM file")
        if len(content) == len(pair):
            try:
                in_date(leaf_of(content[0]), datetime.now(UTC))
                load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), *content)
            except ValueError as wrong:
                names = " and ".join(f"{option} ({key.name})" for option, key in pair.items() if key)
                self.problem(f"{where}: {names}: {wrong}")

    # -- key sources -----------------------------------------------------------------------------

    def look_at_key(self, where: str, key: KeyRef, *, must: bool = False) -> bool:
        """Whether the key source looks usable here; what is wrong with it is noted.

        `must`: a file that is not there is a mistake, not a remark.
        """
        if self._made_up:
            return False  # whose it is shows in its name, perhaps
        self.keys.setdefault(key, where)
        if isinstance(key, CallbackKey):
            return self._callback(where, key.event_name)
        if isinstance(key, VaultKey) and key.auth is not None:
            parts = msgspec.structs.asdict(key.auth)
            usable = [
                self.look_at_key(f"{where}: {name}", part)
                for name, part in parts.items()
                if isinstance(part, KeyRef)
            ]
            return all(usable)
        if missing := missing_sdk(key):
            self.problem(f"{where}: {key.name}: {missing}")
            return False
        if isinstance(key, CommandKey) and not os.access(key.argv[0], os.X_OK):
            self.problem(f"{where}: exec: {key.argv[0]} is no program that can be run")
            return False
        if isinstance(key, OAuth2Key):
            nested = {"client_secret": key.client_secret, "refresh_token": key.refresh_token}
            found = [
                self.look_at_key(f"{where}: {name}", one) for name, one in nested.items() if one is not None
            ]
            if key.ca is not None and not os.path.exists(key.ca):
                self.note(f"{where}: ca: there is no file {key.ca} now; mail that needs the token waits")
            return all(found)
        if isinstance(key, LiteralKey) and b"-----BEGIN CERTIFICATE" not in key.data.reveal():
            self.note(
                f'{where}: the secret itself is in the configuration ("key_data"), where whoever reads that '
                "reads it; right would be a file, Vault or another key source"
            )
        if not isinstance(key, FileKey):
            return True
        if not os.path.exists(key.path):
            if not os.path.isabs(key.path) and where.endswith(_PUBLIC):
                self._told.add(key)
                self.problem(
                    f"{where}: there is no file {key.path} in {os.getcwd()}; a relative path begins in the "
                    "directory in which posthorn is started, so right would be the whole path"
                )
            elif not os.path.isabs(key.path):
                self._told.add(key)
                # It may be the secret itself, so it is not shown.
                self.problem(
                    f"{where} is a path that does not begin with / and leads to no file; a plain "
                    "string is always a path: was a secret put there? Right would be the whole path of a "
                    'file, or another key source, for experiments {"key_data": ...}'
                )
            elif must:
                self.problem(f"{where}: there is no file {key.path}; right would be the path of a PEM file")
            else:
                self.note(f"{where}: there is no file {key.path} now; mail that needs it waits until it is")
            return False
        if not os.access(key.path, os.R_OK):
            self.note(f"{where}: {key.path} cannot be read by the user who runs this check")
            return False
        return True

    def _callback(self, where: str, name: str) -> bool:
        right = f'a hook registered with @policy.on("{name}", keysource=True)'
        if name in EVENTS:
            self.problem(
                f'{where}: "{name}" is an event of the engine; right would be a name of your own, and a '
                "hook registered under it with keysource=True"
            )
        elif not self._loaded.hooks.get(name):
            own = {hook.event for hook in self._loaded.hooks.hooks} - EVENTS.keys()
            self.problem(
                f'{where}: no hook answers "{name}"{did_you_mean(name, own)}; right would be {right}'
            )
        else:
            return True
        return False

    # -- the way out -----------------------------------------------------------------------------

    async def _way_out(self, domain: str) -> None:
        """Queue, pool, sources and paths of one destination."""
        try:
            answer: QueueConfig | None = await self._ask("get_queue_config", domain, self._tenant, None, None)
        except _Failed:
            answer = None  # the other hooks may have mistakes, too
        config = answer if answer is not None else QueueConfig()
        hosts = ", ".join(entry.label for entry in config.protocol.mx_list)
        whose = f", tenant {self._tenant}" if self._tenant is not None else ""
        self.facts.append(("route", f"{domain}{whose}: {'smart hosts ' + hosts if hosts else 'by MX'}"))
        try:
            for source in await self._sources(config):
                await self._path(domain, source, config)
        except _Failed:
            return

    async def _sources(self, config: QueueConfig) -> list[str]:
        pool_name = config.egress_pool
        if pool_name == UNSPECIFIED:
            return [UNSPECIFIED]
        if not self._hooks.has("get_egress_pool"):
            self._missing("get_queue_config", f'egress_pool="{pool_name}"', "get_egress_pool", "pool_name")
        pool: EgressPool = await self._ask("get_egress_pool", pool_name)
        names = [entry.name for entry in pool.entries if entry.weight > 0]
        if not names:
            self.note(
                f'{self._where("get_egress_pool")}: the pool "{pool_name}" has no source with a weight above '
                "0: its mail waits"
            )
        self.facts.append(("pool", f"{pool_name}: {', '.join(names) or 'no sources'}"))
        for name in names:
            if name == UNSPECIFIED:
                continue
            if not self._hooks.has("get_egress_source"):
                self._missing("get_egress_pool", f'the source "{name}"', "get_egress_source", "source_name")
            source = await self._ask("get_egress_source", name)
            address = source.source_address or "the address that the kernel chooses"
            self.facts.append(("source", f"{name}: from {address}"))
        return names

    async def _source(self, config: QueueConfig) -> str:
        """The first that mail leaves from. Raises: HookError."""
        if config.egress_pool == UNSPECIFIED:
            return UNSPECIFIED
        pool: EgressPool | None = await self._hooks.call("get_egress_pool", config.egress_pool)
        return next((one.name for one in pool.entries if one.weight > 0) if pool else iter(()), UNSPECIFIED)

    def _missing(self, event: str, what: str, needed: str, argument: str) -> None:
        self.problem(
            f"{self._where(event)}: names {what}, but no hook answers {needed}; right would be a function "
            f'with @policy.on("{needed}") that takes ({argument}) and returns {EVENTS[needed].right}'
        )
        raise _Failed

    async def _path(self, domain: str, source: str, config: QueueConfig) -> None:
        site = self._site(domain, config)
        entries = config.protocol.mx_list
        with asking(asked_for(mx_list_site(entries)) if entries else asked_by_name(site)) as found:
            path: EgressPath | None = await self._ask("get_egress_path_config", domain, source, site)
        for one in found:
            for text in one.notes:
                self.note(text)
        if path is None:
            return
        where = self._where("get_egress_path_config")
        if path.enable_dane:
            self._dane = where
        login = path.login
        if all(one.path != path for one in found):  # what files say is told with their lines
            look_at_login(path, where, self)
        await self.look_at_pair(where, path.tls_certificate, path.tls_private_key)
        if not path.tls_implicit and IMPLICIT_PORT in {entry.port or path.port for entry in entries}:
            self.note(
                f"{where}: port {IMPLICIT_PORT} begins with TLS, and without tls_implicit=True a greeting in "
                "clear text is waited for there"
            )
        keys = {"tls_ca": path.tls_ca}
        if login is not None:
            option = "smtp_auth" if path.smtp_auth is not None else "smtp_auth_plain_password"
            keys[option] = login.reference
        usable = {
            option: self.look_at_key(f"{where}: {option}", key)
            for option, key in keys.items()
            if key is not None
        }
        auth = "no AUTH"
        if login is not None and login.reference is None:
            auth = f"AUTH {' or '.join(login.mechanisms)}"
        elif login is not None and login.reference is not None:
            what = "password" if login.password is not None else "token"
            good = usable[option] or self._made_up or isinstance(login.reference, FileKey)
            auth = f"AUTH as {login.username!r}, {what} from {login.reference.name if good else 'nowhere'}"
        self.facts.append(("path", f"{domain} from {source}: enable_tls={path.enable_tls}, {auth}"))

    def _site(self, domain: str, config: QueueConfig) -> str:
        """The site's name: the smart hosts' is known, behind an MX we take one host."""
        if not config.protocol.mx_list:
            return f"mx.{domain}"
        try:
            return mx_list_site(config.protocol.mx_list).name
        except ConfigError as error:
            self.problem(f"{self._where('get_queue_config')}: {error}")
            raise _Failed from None

    async def _everybodys_password(self, domain: str) -> None:
        """A note when two unrelated destinations both get credentials.

        Not when the queue hook sends both to one explicit list of hosts: those are the only next hops,
        whatever the destination. Nor when `release_to` says which hosts are told the password.
        """
        lists: list[object] = []
        for one in (domain, _UNRELATED):
            try:
                config = await self._queue(one, self._tenant)
                path: EgressPath | None = await self._hooks.call(
                    "get_egress_path_config", one, await self._source(config), self._site(one, config)
                )
            except (HookError, _Failed):
                return
            if path is None or path.login is None:
                return
            bound = path.login.release_to
            if bound is not None and (bound.names or bound.addresses or bound.pins):
                return  # who else asks for it is not told
            lists.append(config.protocol.mx_list)
        if lists[0] and lists[0] == lists[1]:
            return
        self.note(
            f"{self._where('get_egress_path_config')}: two unrelated destinations ({domain}, {_UNRELATED}) "
            "both get credentials: make the hook look at the domain or the site, or every next hop is sent a "
            "password"
        )


def _listener_text(listener: ListenerDeclaration) -> str:
    """Where it listens, for whom it relays, and what certificate it shows."""
    who = [str(listener.relay_hosts)] if listener.relay_hosts else []
    who += ["whoever has logged in"] if listener.relay_authenticated else []
    shown = f", certificate {listener.tls_certificate.name}" if listener.tls_certificate is not None else ""
    return f"{listener.listen}, relays for {' and '.join(who) or 'nobody but whom a hook allows'}{shown}"


class _Failed(Exception):
    """Noted; what would follow cannot be asked."""
