"""Key source Azure Key Vault (extra ``azure``): ``GetSecret``.

The machine logs in by what its surroundings offer: service principal in the environment, workload identity,
managed identity. The ways meant for people at a desk, which run programs and read their caches, are left out.

| answer                                        | means             |
|-----------------------------------------------|-------------------|
| 404                                           | definite          |
| 401, 403, a disabled secret, a refused login  | permission denied |
| 429                                           | rate limit        |
| 5xx, no connection, no answer, anything else  | outage            |
"""

from __future__ import annotations

from typing import Any

from policy.cloudkeys import AzureKey
from policy.secret import Secret

from .cloud import CONNECT_SECONDS, READ_SECONDS, CloudSource, refused
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


class AzureSource(CloudSource):
    """Reads `AzureKey` references."""

    extra = "azure"
    loggers = ("azure", "msal", "urllib3")

    def ask(self, ref: AzureKey) -> Secret:
        client = self.client(ref.vault, lambda: self._make(ref.vault))
        value = client.get_secret(ref.secret, ref.version).value
        if not isinstance(value, str):
            raise SourceFailure("there is no value", definite=True)
        return Secret(value)

    def _make(self, vault: str) -> Any:
        timing = {
            "connection_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "retry_total": 0,  # the ring repeats, with its own pauses
        }
        without = dict.fromkeys(_FOR_PEOPLE, True)
        identity = self.module("azure.identity").DefaultAzureCredential(**without, **timing)
        return self.module("azure.keyvault.secrets").SecretClient(vault, identity, **timing)

    def judge(self, error: Exception) -> SourceFailure:
        errors: Any = self.module("azure.core.exceptions")
        identity: Any = self.module("azure.identity")
        if isinstance(error, identity.CredentialUnavailableError):
            return SourceFailure("the SDK finds no credentials of this machine")
        if isinstance(error, errors.ServiceRequestTimeoutError | errors.ServiceResponseTimeoutError):
            return SourceFailure("no answer in time")
        if isinstance(error, errors.ServiceRequestError | errors.ServiceResponseError):
            return SourceFailure("the service cannot be reached")
        if isinstance(error, errors.HttpResponseError):
            answer: Any = error
            status = int(answer.status_code or 0)
            if isinstance(error, errors.ClientAuthenticationError) and status not in (401, 403):
                return SourceFailure("the login is refused", denied=True)
            after = str(answer.response.headers.get("Retry-After", "")) if answer.response else ""
            code = str(getattr(answer.error, "code", "") or "")
            return refused(
                status,
                code,
                gone=isinstance(error, errors.ResourceNotFoundError),
                retry_after=float(after) if after.isdigit() and len(after) <= 5 else 0.0,
            )
        return SourceFailure(f"the SDK failed ({type(error).__name__})")
