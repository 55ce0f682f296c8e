"""Fetching an MTA-STS policy by HTTPS (RFC 8461 section 3.3; reliability P3, P6).

``mta-sts.DOMAIN`` is a name that a stranger chose, so it leads nowhere that mail may not go, and the
connection is made to the very address that was looked at. The certificate must be valid for that name;
redirects are not followed, answers are read up to `LARGEST` octets, and no cache or proxy of the environment
is used.
"""

from __future__ import annotations

import logging
import ssl
from typing import TYPE_CHECKING

import httpx2
import trio

from engine.egress import targets
from engine.egress.mta_sts import BadPolicy, Policy, parse_policy
from engine.errors import ConfigError, ResolveError
from policy.files import must_be_regular

if TYPE_CHECKING:
    from engine.egress.resolve import Resolver
    from policy.nets import SocketAddress

__all__ = ["Fetcher", "NoPolicy"]

logger = logging.getLogger("posthorn.egress")

LARGEST = 64 << 10
"""Octets of a policy."""
SECONDS = 30.0
"""For one fetch as a whole, from when its turn has come."""
AT_ONCE = 128
_WORDS = 200
"""Characters of an error that a stranger's server had a part in."""
_ADDRESSES = 3
"""Of a policy server's addresses so many are tried."""
_PORT = 443
_ROOTS_KEPT = 900.0
"""Seconds after which the trusted roots are read anew."""


class NoPolicy(Exception):
    """There is no policy to be had. The text says why and is safe to show."""


class Fetcher:
    """Gets policies. `ca`: a PEM file that replaces the system's roots; `gateway`: where every policy server
    is reached, instead of its own address."""

    def __init__(
        self, resolver: Resolver, *, ca: str | None = None, gateway: SocketAddress | None = None
    ) -> None:
        self._resolver = resolver
        self._ca = ca
        self._gateway = gateway
        self._slots = trio.CapacityLimiter(AT_ONCE)
        self._context: ssl.SSLContext | None = None
        self._made = 0.0
        self._making = trio.Lock()

    async def check(self) -> None:
        """Raises: ConfigError when the CA file cannot be used."""
        try:
            await self._trusted()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f'configure_mta_sts: ca="{self._ca}" cannot be used: {_why(error)}; right would be a PEM '
                "file with the certificates of authorities"
            ) from None

    async def fetch(self, domain: str, *, route: bool = False) -> Policy:
        """The policy of `domain`. `route`: an operator named the domain, which may then be on a private
        network. Raises: NoPolicy."""
        content: bytes | None = None
        # Waiting for a turn is outside the time-out: a crowd of slow servers must not make others fail.
        async with self._slots:
            with trio.move_on_after(SECONDS):
                try:
                    content = await self._first(domain, route)
                except ResolveError as error:
                    raise NoPolicy(str(error)) from None
        if content is None:
            raise NoPolicy(f"mta-sts.{domain} did not answer in {SECONDS:g} s")
        try:
            return parse_policy(content)
        except BadPolicy as error:
            raise NoPolicy(f"what mta-sts.{domain} answers is no policy: {error}") from None

    async def _first(self, domain: str, route: bool) -> bytes:
        """What the first address says that can be reached. Raises: NoPolicy, ResolveError."""
        host = f"mta-sts.{domain}"
        try:
            context = await self._trusted()
        except (OSError, ValueError) as error:
            raise NoPolicy(f"the trusted roots cannot be read: {_why(error)}") from None
        trouble = f"{host} has no address"
        for address, port in await self._where(host, route):
            try:
                return await self._get(host, address, port, context)
            except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
                trouble = f"{host}[{address}]: {_why(error)}"
        raise NoPolicy(trouble)

    async def _where(self, host: str, route: bool) -> list[tuple[str, int]]:
        if self._gateway is not None:
            return [(self._gateway.host, self._gateway.port)]
        found = await self._resolver.addresses_for(host, "Ipv4ThenIpv6", route=route)
        allowed: list[tuple[str, int]] = []
        why: str | None = None
        for address in found:
            reason = targets.forbidden(address, "route" if route else "public")
            if reason is None:
                allowed.append((address, _PORT))
            else:
                why = f"{address} is {reason}"
        if why is not None and not allowed:
            raise NoPolicy(f"{host} has no address that may be asked: {why}")
        return allowed[:_ADDRESSES]

    async def _get(self, host: str, address: str, port: int, context: ssl.SSLContext) -> bytes:
        """One request to one address."""
        where = f"[{address}]" if ":" in address else address
        content = bytearray()
        async with (
            httpx2.AsyncClient(
                verify=context, trust_env=False, follow_redirects=False, timeout=SECONDS / 2
            ) as client,
            client.stream(
                "GET",
                f"https://{where}:{port}/.well-known/mta-sts.txt",
                headers={"Host": host, "Accept": "text/plain", "Accept-Encoding": "identity"},
                extensions={"sni_hostname": host},
            ) as response,
        ):
            if response.status_code != 200:
                moved = ", and a redirect is not followed" if response.is_redirect else ""
                raise NoPolicy(f"{host} answers {response.status_code}{moved}; right would be 200")
            kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            if kind != "text/plain":
                raise NoPolicy(f"{host} answers with media type {kind[:80]!a}; right would be text/plain")
            with trio.CancelScope() as enough:  # what is left half read must be unwound from within
                async for piece in response.aiter_raw():
                    content += piece
                    if len(content) > LARGEST:
                        enough.cancel()
        if len(content) > LARGEST:
            raise NoPolicy(f"{host} answers with more than {LARGEST} octets")
        return bytes(content)

    async def _trusted(self) -> ssl.SSLContext:
        """The trusted roots, of which those that were read before stay if they cannot be read anew."""
        async with self._making:
            if self._context is None or trio.current_time() - self._made > _ROOTS_KEPT:
                try:
                    self._context = await trio.to_thread.run_sync(_make_context, self._ca)
                except (OSError, ValueError) as error:
                    if self._context is None:
                        raise
                    logger.warning(
                        "roots for MTA-STS: %s cannot be read: %s; those read before stay",
                        self._ca or "the system's",
                        _why(error),
                    )
                self._made = trio.current_time()
            return self._context


def _make_context(ca: str | None) -> ssl.SSLContext:
    if ca is not None:
        must_be_regular(ca)
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False
    return context


def _why(error: BaseException) -> str:
    """The first words of an error and of what it came from: those of the library are often empty."""
    each: BaseException | None = error
    while each is not None:
        if isinstance(each, ssl.SSLCertVerificationError):
            return f"its certificate is not valid: {each.verify_message}"
        if isinstance(each, OSError) and each.strerror:
            return each.strerror
        each = each.__cause__ or each.__context__
    if isinstance(error, httpx2.TimeoutException):
        return "no answer in time"
    return str(error)[:_WORDS] or type(error).__name__
