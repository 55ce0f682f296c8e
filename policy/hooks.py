"""Hooks: the table of events, and registration with ``@policy.on("event")``.

A hook takes an event's arguments in the order of the table, or any of them by name. Its answer None
means "no opinion": the next hook of a chained event is asked, then the default holds. `STOP` ends a
chain with no opinion. `Reject` refuses.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final, Literal, TypeAlias, TypeVar

import msgspec

from .egress import EgressPath, EgressPool, EgressSource, QueueConfig
from .errors import PolicyError, a_type, caller, did_you_mean
from .ingress import ListenerDomain
from .scramkeys import ScramKeys
from .secret import Secret
from .signature import Adapt, fit

__all__ = [
    "EVENTS",
    "NOT_YET",
    "STOP",
    "Event",
    "Hook",
    "HookTable",
    "Reject",
    "RejectMode",
    "on",
    "registering",
]

F = TypeVar("F", bound=Callable[..., Any])


class _Stop(enum.Enum):
    """Type of STOP."""

    STOP = "STOP"

    def __repr__(self) -> str:
        return "policy.STOP"


STOP: Final = _Stop.STOP
"""Answer of a hook that ends the chain: no later hook is asked, and the default holds."""

RejectMode: TypeAlias = Literal["If421", "ForceDisconnect", "FollowWith421"]


class Reject(Exception):
    """Raised by a hook to refuse: the client gets this reply.

    `code`: 400 to 599. `text`: may begin with an enhanced code, ``"5.7.1 no relaying"``, unless
    `enhanced` is given. `mode`: "If421" closes the connection after a 421 only, "ForceDisconnect" always,
    "FollowWith421" sends a 421 of its own and closes.
    """

    def __init__(self, code: int, text: str, enhanced: str | None = None, mode: RejectMode = "If421") -> None:
        if not isinstance(code, int) or not 400 <= code <= 599:
            raise PolicyError(f"Reject: code={code!r}: a refusal has a code from 400 to 599", caller())
        if not isinstance(text, str):
            raise PolicyError(f"Reject: text is {a_type(text)}, not a str", caller())
        if enhanced is None:
            first, _, rest = text.partition(" ")
            if _enhanced(first):
                enhanced, text = first, rest
        elif not _enhanced(enhanced):
            raise PolicyError(f'Reject: enhanced={enhanced!r} is no code like "{code // 100}.7.1"', caller())
        if enhanced is not None and enhanced[0] != str(code // 100):
            raise PolicyError(f"Reject: {enhanced} contradicts {code}; their first digits differ", caller())
        if mode not in ("If421", "ForceDisconnect", "FollowWith421"):
            raise PolicyError(
                f'Reject: mode={mode!r} is none of "If421", "ForceDisconnect", "FollowWith421"', caller()
            )
        super().__init__(code, text)
        self.code = code
        self.text = text
        self.enhanced = enhanced
        self.mode = mode

    def __str__(self) -> str:
        return " ".join(part for part in (str(self.code), self.enhanced, self.text) if part)


def _enhanced(text: str) -> bool:
    """Whether it is an enhanced status code of a refusal (RFC 3463): 4.x.y or 5.x.y."""
    parts = text.split(".")
    return (
        len(parts) == 3
        and parts[0] in ("4", "5")
        and all(part.isascii() and part.isdigit() and len(part) <= 3 for part in parts[1:])
    )


class Event(msgspec.Struct, frozen=True):
    """One row of EVENTS.

    `arguments`: in order, as tuples of the names a hook may give them. `kind`: a "single" event has one
    hook, those of a "chain" are asked in the order of registration. `returns`: the types of a right answer
    besides None; empty when only None is right; None when the answer is not looked at. `right`: what the
    author should write. `must`: None is no answer. `short`: which arguments a hook with that many
    parameters of other names gets.
    """

    arguments: tuple[tuple[str, ...], ...]
    kind: Literal["single", "chain"]
    returns: tuple[type, ...] | None = None
    right: str = ""
    must: bool = False
    short: dict[int, tuple[int, ...]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The arguments' first names."""
        return tuple(names[0] for names in self.arguments)


def _names(*arguments: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(argument.split("|")) for argument in arguments)


_CONN = "conn_meta|conn"
_MSG = "msg|message"

EVENTS: Final[dict[str, Event]] = {
    # Start
    "pre_init": Event((), "chain", (), "nothing"),
    "init": Event((), "single", (), "nothing"),
    # An SMTP session
    "smtp_server_connection_accepted": Event(_names(_CONN), "chain"),
    "smtp_server_ehlo": Event(
        _names("domain|ehlo_domain", _CONN, "extensions"), "chain", (list, tuple), "a list of EHLO keywords"
    ),
    "smtp_server_auth_plain": Event(
        _names("authz|authz_id|authzid", "authc|authc_id|authcid|user|username", "password", _CONN),
        "chain",
        (bool,),
        "True or False",
    ),
    "smtp_server_auth": Event(
        _names("user|username|name|authc", "mechanism", "token", _CONN),
        "chain",
        (bool, Secret, ScramKeys),
        "the password, policy.scram_keys(...), True or False",
    ),
    "smtp_server_mail_from": Event(_names("sender|address", _CONN), "chain"),
    "get_listener_domain": Event(
        _names("domain", "listener", _CONN), "chain", (ListenerDomain,), "policy.make_listener_domain(...)"
    ),
    "smtp_server_rcpt_to": Event(_names("recipient|address", _CONN), "chain"),
    "smtp_server_data": Event(_names(_MSG, _CONN), "chain"),
    "smtp_server_message_received": Event(_names(_MSG, _CONN), "chain"),
    # The way out
    "get_queue_config": Event(
        _names("domain", "tenant", "campaign", "routing_domain"),
        "chain",
        (QueueConfig,),
        "policy.make_queue_config(...)",
    ),
    "get_egress_pool": Event(
        _names("pool_name|pool|name"), "single", (EgressPool,), "policy.make_egress_pool(...)", must=True
    ),
    "get_egress_source": Event(
        _names("source_name|source|egress_source|name"),
        "single",
        (EgressSource,),
        "policy.make_egress_source(...)",
        must=True,
    ),
    "get_egress_path_config": Event(
        _names("domain|routing_domain", "egress_source|source_name|source", "site_name|site"),
        "single",
        (EgressPath,),
        "policy.make_egress_path(...)",
        must=True,
        short={2: (0, 2), 1: (0,)},
    ),
}
"""What the engine asks a policy, in the order of a message's life."""

NOT_YET: Final = frozenset(
    {
        *("validate_config", "spool_message_enumerated", "shutdown_logging"),
        *("smtp_server_get_dynamic_parameters", "smtp_server_split_transaction"),
        *("smtp_server_message_deferred_inject", "smtp_server_rewrite_response"),
        *("http_server_validate_auth_basic", "http_server_validate_auth_bearer", "get_acl_definition"),
        *("http_message_generated", "xfer_message_received"),
        *("throttle_insert_ready_queue", "requeue_message", "rebind_message"),
        *("smtp_client_rewrite_delivery_status", "should_enqueue_log_record"),
        *("tsa_init", "tsa_load_shaping_data"),
    }
)
"""Events of the specification that nothing raises yet."""

_CALLBACK = Event((), "single")
"""A key source callback: the name and the arguments are the policy's own. The key source looks at the answer,
for there None has a meaning: no such secret."""


class Hook(msgspec.Struct, frozen=True):
    """One registered function. `is_async`: a call may give something to await. `where`: ``file:line in
    name()``. `adapt`: turns the event's arguments into
    the function's, None when they are the same. `notes`: remarks for the log at start."""

    event: str
    function: Callable[..., Any]
    is_async: bool
    where: str
    adapt: Adapt | None = None
    notes: tuple[str, ...] = ()

    def complaint(self, answer: Any) -> str | None:
        """What is wrong with an answer, or None. Names types only, never values."""
        event = EVENTS.get(self.event, _CALLBACK)
        if event.returns is None:
            return None if answer is None else self._mistake(answer)
        if isinstance(answer, event.returns) or (answer is None and not event.must):
            return None
        if answer is STOP and event.kind == "chain":
            return None
        given = a_type(answer)
        return self._mistake(answer) or f"{self.where}: {self.event} returns {event.right}, not {given}"

    def _mistake(self, answer: Any) -> str | None:
        """What is wrong with an answer that no event knows: one that says the hook has not run yet, or
        that it meant to refuse. Taking it for "no opinion" would accept what should be refused."""
        if isinstance(answer, BaseException):
            return f"{self.where}: {self.event} returned {a_type(answer)}; it must be raised"
        if inspect.iscoroutine(answer):
            answer.close()
        elif not (inspect.isawaitable(answer) or inspect.isgenerator(answer) or inspect.isasyncgen(answer)):
            return None
        what = "generator" if inspect.isgenerator(answer) or inspect.isasyncgen(answer) else "coroutine"
        return (
            f"{self.where}: {self.event} returned a {what} ({a_type(answer)}) instead of running; "
            "is an `async def` missing, or does a decorator hide one? Let it use functools.wraps"
        )


class HookTable:
    """The hooks of one policy.

    `strict`: a second hook for a single event is an error; else it takes the first one's place.
    """

    def __init__(self, *, strict: bool = True) -> None:
        self._strict = strict
        self.shapers: list[Any] = []
        """What `policy.shaping` made while the policy was loaded."""
        self.bounces: Any = None
        """What `policy.configure_bounce_classifier` made, a `BounceClasses`."""
        self._hooks: dict[str, tuple[Hook, ...]] = {}

    def get(self, event: str) -> tuple[Hook, ...]:
        """The hooks of an event in the order of registration; empty when there are none."""
        return self._hooks.get(event, ())

    @property
    def hooks(self) -> list[Hook]:
        """All hooks."""
        return [hook for hooks in self._hooks.values() for hook in hooks]

    def add(self, hook: Hook, kind: Literal["single", "chain"]) -> None:
        """Register. Raises: PolicyError for a second hook of a single event."""
        before = self.get(hook.event)
        if kind == "single":
            if before and self._strict:
                there = before[0].where
                raise PolicyError(
                    f'policy.on: "{hook.event}" has a hook already, {there}; there can be only one', caller()
                )
            before = ()
        self._hooks[hook.event] = (*before, hook)


_unloaded = HookTable(strict=False)
registering: Final[ContextVar[HookTable]] = ContextVar("hook_table", default=_unloaded)
"""The table that `on` registers into. `policy.load` sets it while a policy file runs; hooks of a file
that is merely imported, by its author's tests, go into the default table."""


def on(event: str, *, keysource: bool = False) -> Callable[[F], F]:
    """Decorator: the function answers `event` from now on. It stays callable as it is.

    `keysource`: `event` is a name of your own, and the function answers key sources of the form
    ``{"event_name": event, "event_args": [...]}`` with the secret.
    Raises: PolicyError for an unknown event, a signature that does not fit, or a second hook for an event
    that has only one; the text names file and line.
    """
    if not isinstance(event, str):
        raise PolicyError('policy.on: takes the name of an event: @policy.on("init")', caller())
    row = _row(event, keysource)

    def register(function: F) -> F:
        if not callable(function):
            raise PolicyError(f"policy.on: {event}: {a_type(function)} cannot be called", caller())
        if any(inspect.isgeneratorfunction(f) or inspect.isasyncgenfunction(f) for f in _forms(function)):
            raise PolicyError(f"policy.on: {event}: the hook holds a yield, so it would never run", caller())
        adapt: Adapt | None = None
        notes: tuple[str, ...] = ()
        where = _where(function)
        if row is not _CALLBACK:
            try:
                adapt, indexes = fit(function, row.arguments, row.short)
            except ValueError as wrong:
                raise PolicyError(f"policy.on: {event}: {where}: {wrong}", caller()) from None
            if event == "get_egress_path_config" and indexes == (0, 2):
                notes = (
                    f"{where}: {event} is called with (domain, egress_source, site_name); this hook takes "
                    "two arguments and is given domain and site_name. Take all three to end this remark.",
                )
        hook = Hook(event, function, _is_async(function), where, adapt, notes)
        registering.get().add(hook, row.kind)
        return function

    return register


def _row(event: str, keysource: bool) -> Event:
    if event in EVENTS:
        if keysource:
            raise PolicyError(f'policy.on: "{event}" is an event of the engine, not a key source', caller())
        return EVENTS[event]
    if event in NOT_YET:
        raise PolicyError(f'policy.on: the event "{event}" is not supported yet', caller())
    if keysource:
        return _CALLBACK
    hint = did_you_mean(event, EVENTS) or (
        '; if it answers {"event_name": ...} key sources, say policy.on("NAME", keysource=True)'
    )
    raise PolicyError(f'policy.on: unknown event "{event}"{hint}', caller())


def _forms(function: Callable[..., Any]) -> tuple[Any, ...]:
    """The function, what a decorator wrapped, and the ``__call__`` of an object that is called."""
    inner = inspect.unwrap(function)
    return function, inner, getattr(type(inner), "__call__", None)  # noqa: B004 - it may be async


def _is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it may give something to await. A decorator may hide that; the caller looks again."""
    return any(inspect.iscoroutinefunction(form) for form in _forms(function))


def _where(function: Callable[..., Any]) -> str:
    plain = inspect.unwrap(function)
    plain = getattr(plain, "func", plain)  # functools.partial
    code = getattr(getattr(plain, "__func__", plain), "__code__", None)
    if code is None:
        return f"{caller()} in {type(function).__name__}()"
    return f"{code.co_filename}:{code.co_firstlineno} in {code.co_name}()"
