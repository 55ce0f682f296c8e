"""References to the secret managers of AWS, Google and Azure; what reads them are extras of the package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from .errors import Wrong
from .keyterms import TERMS, Termed, read_terms
from .keytext import text, url

__all__ = [
    "AWS",
    "AZURE",
    "GOOGLE",
    "AwsKey",
    "AzureKey",
    "GoogleKey",
    "read_aws",
    "read_azure",
    "read_google",
]

_ARN = re.compile(r"arn:[a-z-]+:secretsmanager:([a-z0-9-]+):[0-9]+:secret:.+")
_REGION = re.compile(r"[a-z]{2}(?:-[a-z0-9]+)+")
_GOOGLE = re.compile(r"projects/[a-z0-9.:-]+/(?:locations/([a-z0-9-]+)/)?secrets/[A-Za-z0-9_-]{1,255}")
_GOOGLE_VERSION = re.compile(r"[1-9][0-9]{0,9}|[a-z][A-Za-z0-9_-]{0,62}")
_AZURE = re.compile(r"[A-Za-z0-9-]{1,127}")
_AZURE_VERSION = re.compile(r"[A-Za-z0-9]{1,64}")


class AwsKey(Termed, frozen=True, tag="aws"):
    """A secret of AWS Secrets Manager, by name or ARN, or field `key` of one that is a JSON object.

    None means: the whole value; `region` from the ARN or from the SDK's configuration; the version that is
    current. `version`: a version id, or the name of a staging label.
    """

    secret: str
    key: str | None = None
    region: str | None = None
    version: str | None = None
    endpoint: str | None = None

    @property
    def name(self) -> str:
        """What records and errors call this key."""
        field = "" if self.key is None else f"#{self.key}"
        return f"aws:{self.secret}{field}{_at(self.version)}"


class GoogleKey(Termed, frozen=True, tag="google"):
    """A secret of Google Secret Manager: ``projects/P/secrets/S``, with ``locations/L/`` before the last part
    for a regional one. `version`: a number or an alias."""

    secret: str
    version: str = "latest"
    endpoint: str | None = None

    @property
    def name(self) -> str:
        """What records and errors call this key."""
        return f"google:{self.secret}{_at(None if self.version == 'latest' else self.version)}"


class AzureKey(Termed, frozen=True, tag="azure"):
    """A secret of the Azure Key Vault at the URL `vault`. `version` None: the newest."""

    vault: str
    secret: str
    version: str | None = None

    @property
    def name(self) -> str:
        """What records and errors call this key."""
        return f"azure:{urlsplit(self.vault).netloc}/{self.secret}{_at(self.version)}"


def _at(version: str | None) -> str:
    return "" if version is None else f"@{version}"


AWS = ("aws_secret", "aws_key", "aws_region", "aws_version", "aws_endpoint", *TERMS)
GOOGLE = ("google_secret", "google_version", "google_endpoint", *TERMS)
AZURE = ("azure_vault", "azure_secret", "azure_version", *TERMS)
"""All keys of each form; the first marks it."""


def read_aws(given: Mapping[str, Any]) -> AwsKey:
    """Raises: Wrong."""
    secret = text(given, "aws_secret")
    region = _optional(given, "aws_region")
    arn = _ARN.fullmatch(secret)
    if secret.startswith("arn:") and arn is None:
        raise Wrong('"aws_secret" is no ARN like arn:aws:secretsmanager:eu-west-1:123456789012:secret:NAME')
    if region is not None and not _REGION.fullmatch(region):
        raise Wrong('"aws_region" is a region like "eu-west-1"')
    if arn is not None and region not in (None, arn[1]):
        raise Wrong('"aws_region" is another region than the one in the ARN')
    return AwsKey(
        secret=secret,
        key=_optional(given, "aws_key"),
        region=arn[1] if arn is not None else region,
        version=_optional(given, "aws_version"),
        endpoint=_endpoint(
            given, "aws_endpoint", "https://vpce-1.secretsmanager.eu-west-1.vpce.amazonaws.com"
        ),
        terms=read_terms(given),
    )


def read_google(given: Mapping[str, Any]) -> GoogleKey:
    """Raises: Wrong."""
    secret = text(given, "google_secret")
    found = _GOOGLE.fullmatch(secret)
    if found is None:
        raise Wrong('"google_secret" is no resource name like projects/PROJECT/secrets/NAME')
    version = given.get("google_version")
    if type(version) is int:  # as it would be written in a file
        version = str(version)
    if version is not None and (not isinstance(version, str) or not _GOOGLE_VERSION.fullmatch(version)):
        raise Wrong('"google_version" is the number of a version, or an alias')
    endpoint = _endpoint(given, "google_endpoint", "https://secretmanager.europe-west3.rep.googleapis.com")
    if endpoint is None and found[1] is not None:
        endpoint = f"https://secretmanager.{found[1]}.rep.googleapis.com"
    return GoogleKey(secret=secret, version=version or "latest", endpoint=endpoint, terms=read_terms(given))


def read_azure(given: Mapping[str, Any]) -> AzureKey:
    """Raises: Wrong."""
    vault = url(text(given, "azure_vault"), "azure_vault", "https://NAME.vault.azure.net").rstrip("/")
    if urlsplit(vault).scheme != "https" or urlsplit(vault).path:
        raise Wrong('"azure_vault" is no URL like https://NAME.vault.azure.net')
    if "azure_secret" not in given:
        raise Wrong('"azure_secret" is missing')
    secret = text(given, "azure_secret")
    if not _AZURE.fullmatch(secret):
        raise Wrong('"azure_secret" is a name of letters, digits and "-"')
    version = _optional(given, "azure_version")
    if version is not None and not _AZURE_VERSION.fullmatch(version):
        raise Wrong('"azure_version" is the id of a version, of letters and digits')
    return AzureKey(vault=vault, secret=secret, version=version, terms=read_terms(given))


def _optional(given: Mapping[str, Any], key: str) -> str | None:
    return text(given, key) if given.get(key) is not None else None


def _endpoint(given: Mapping[str, Any], key: str, like: str) -> str | None:
    if given.get(key) is None:
        return None
    return url(text(given, key), key, like).rstrip("/")
