"""Key source Azure Key Vault (extra ``azure``): ``GetSecret``.

The machine logs in by what its surroundings offer: service principal in the environment, workload identity,
managed identity. The ways meant for people at a desk, which run programs and read their caches, are left out.

| answer                                        | means             |
|-----------------------------------------------|-------------------|
| 404                                           | definite          |
| 401, 403, a disabled secret, a refused login  | permission denied |
| no login, or one that is out                  | outage            |
| 429                                           | rate limit        |
| 5xx, no connection, no answer, anything else  | outage            |
"""

from __future__ import annotations

import threading
from typing import Any

from policy.cloudkeys import AzureKey
from policy.secret import Secret

from .cloud import CONNECT_SECONDS, READ_SECONDS, CloudSource, LoginFailure, refused
from .source import SourceFailure

__all__ = ["AzureSource"]

_FOR_PEOPLE = (
    "exclude_broker_credential",
    "exclude_cli_credential",
    "exclude_developer_cli_credential",
    "exclude_interactive_browser_credential",
    "exclude_powershell_credential",
    "exclude_shared_token_cache_credential",
    "exclude_visual_studio_code_credential",
)


_REFUSED = (400, 401, 403)


class AzureSource(CloudSource):
    """Reads `AzureKey` references."""

    extra = "azure"
    modules = ("azure.identity", "azure.keyvault.secrets")
    loggers = ("azure", "msal", "urllib3")
    login = ("AZURE_CLIENT_SECRET", "AZURE_CLIENT_CERTIFICATE_PASSWORD", "IDENTITY_HEADER", "MSI_SECRET")

    def server(self, ref: AzureKey) -> str:
        return ref.vault

    def make(self, ref: AzureKey) -> Any:
        timing = {
            "connection_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "retry_total": 0,  # the ring repeats, with its own pauses
        }
        identity: Any = self.module("azure.identity")
        usual = identity.DefaultAzureCredential(**dict.fromkeys(_FOR_PEOPLE, True), **timing)
        ways = identity.ChainedTokenCredential(*(_Way(each) for each in usual.credentials))
        return self.module("azure.keyvault.secrets").SecretClient(ref.vault, ways, **timing)

    def ask(self, ref: AzureKey, client: Any) -> Secret:
        _failed.why = None
        value = client.get_secret(ref.secret, ref.version).value
        if not isinstance(value, str):
            raise SourceFailure("there is no value", definite=True)
        return Secret(value)

    def judge(self, error: Exception) -> SourceFailure:
        errors: Any = self.module("azure.core.exceptions")
        identity: Any = self.module("azure.identity")
        why: Any
        why, _failed.why = _failed.why, None
        if isinstance(error, errors.ClientAuthenticationError) and why is not None:
            if isinstance(why, identity.CredentialUnavailableError):
                return LoginFailure("the SDK finds no credentials of this machine")
            response = getattr(why, "response", None)
            if response is not None and response.status_code in _REFUSED:
                return LoginFailure("the login is refused", denied=True)
            return LoginFailure(f"the login failed ({type(why).__name__})")
        if isinstance(error, errors.ServiceRequestTimeoutError | errors.ServiceResponseTimeoutError):
            return SourceFailure("no answer in time")
        if isinstance(error, errors.ServiceRequestError | errors.ServiceResponseError):
            return SourceFailure("the service cannot be reached")
        if isinstance(error, errors.HttpResponseError):
            answer: Any = error
            status = int(answer.status_code or 0)
            after = str(answer.response.headers.get("Retry-After", "")) if answer.response else ""
            code = str(getattr(answer.error, "code", "") or "")
            return refused(
                status,
                code,
                gone=isinstance(error, errors.ResourceNotFoundError),
                retry_after=float(after) if after.isdigit() and len(after) <= 5 else 0.0,
            )
        return SourceFailure(f"the SDK failed ({type(error).__name__})")


_failed = threading.local()
"""`why`: the exception of the login that the running thread tried last."""


class _Way:
    """One of the ways to log in. The chain of them says in a text alone why each one failed; an outage and a
    refusal look the same there."""

    def __init__(self, way: Any) -> None:
        self._way = way

    def get_token(self, *scopes: str, **options: Any) -> Any:
        return self._noting(self._way.get_token, *scopes, **options)

    def get_token_info(self, *scopes: str, **options: Any) -> Any:
        return self._noting(self._way.get_token_info, *scopes, **options)

    def _noting(self, call: Any, *scopes: str, **options: Any) -> Any:
        try:
            token = call(*scopes, **options)
        except Exception as error:
            _failed.why = error
            raise
        _failed.why = None  # ways that were tried before this one do not count
        return token
