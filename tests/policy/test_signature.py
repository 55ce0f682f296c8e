"""Fitting a hook's parameters to the event's arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from policy.signature import fit

PATH = (("domain", "routing_domain"), ("egress_source", "source_name"), ("site_name",))
SHORT = {2: (0, 2), 1: (0,)}
GIVEN = ("D", "SRC", "SITE")


class Policy:
    def bound(self, domain: Any, site_name: Any) -> Any:
        return domain, site_name

    def __call__(self, a: Any, b: Any, c: Any) -> Any:
        return a, b, c


def keyword_default(domain: Any, egress_source: Any, site_name: Any, *, extra: int = 1) -> Any:
    return domain, egress_source, site_name


@pytest.mark.parametrize(
    ("function", "gets"),
    [
        (lambda domain, egress_source, site_name: (domain, egress_source, site_name), GIVEN),
        (lambda a, b, c: (a, b, c), GIVEN),
        (lambda *args: args, GIVEN),
        (lambda a, *rest: (a, *rest), GIVEN),
        (lambda a, b, c, d=4: (a, b, c, d), (*GIVEN, 4)),
        (lambda domain, egress_source=None, site_name=None: (domain, egress_source, site_name), GIVEN),
        (lambda domain, site_name: (domain, site_name), ("D", "SITE")),
        (lambda routing_domain, site_name: (routing_domain, site_name), ("D", "SITE")),
        (lambda domain, egress_source: (domain, egress_source), ("D", "SRC")),
        (lambda a, b: (a, b), ("D", "SITE")),
        (lambda domain, b: (domain, b), ("D", "SITE")),
        (lambda a: (a,), ("D",)),
        (lambda site_name: (site_name,), ("SITE",)),
        (lambda source_name: (source_name,), ("SRC",)),
        (lambda: (), ()),
        (lambda site_name, domain, egress_source: (site_name, domain, egress_source), ("SITE", "D", "SRC")),
        (lambda domain, site_name, extra=7: (domain, site_name, extra), ("D", "SITE", 7)),
        (Policy().bound, ("D", "SITE")),
        (Policy(), GIVEN),
        (functools.partial(lambda x, a, b, c: (x, a, b, c), 0), (0, *GIVEN)),
        (keyword_default, GIVEN),
    ],
)
def test_what_a_hook_gets(function: Callable[..., Any], gets: tuple[Any, ...]) -> None:
    adapt, indexes = fit(function, PATH, SHORT)
    assert function(*(adapt(GIVEN) if adapt else GIVEN)) == gets
    assert (adapt is None) == (indexes == (0, 1, 2))


def generator(a: Any, b: Any, c: Any) -> Any:
    yield a


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b, c, d: None,
        lambda egress_source, b: None,
        lambda domain, routing_domain: None,
        lambda domain, *, site_name: None,
        lambda egress_source, x=1, site_name=2: None,
        generator,
    ],
)
def test_hooks_that_cannot_be_called(function: Callable[..., Any]) -> None:
    with pytest.raises(ValueError):
        fit(function, PATH, SHORT)


def test_without_short_forms_other_names_are_refused() -> None:
    queue = (("domain",), ("tenant",), ("campaign",), ("routing_domain",))
    with pytest.raises(
        ValueError, match=r"takes \(a, b\); right would be \(domain, tenant, campaign, routing_domain\)"
    ):
        fit(lambda a, b: None, queue, {})
    adapt, _ = fit(lambda domain, tenant: None, queue, {})
    assert adapt is not None
    assert adapt(("d", "t", "c", "r")) == ("d", "t")


def test_builtins_are_called_as_they_are() -> None:
    assert fit(print, PATH, SHORT)[0] is None
