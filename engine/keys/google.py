"""Key source Google Secret Manager (extra ``google``): ``AccessSecretVersion`` over HTTPS and JSON.

| answer                                              | means             |
|-----------------------------------------------------|-------------------|
| 404; a version that is disabled or destroyed        | definite          |
| 401, 403, a refused login                           | permission denied |
| 429                                                 | rate limit        |
| no login, or one that is out                        | outage            |
| 5xx, no connection, no answer, anything else        | outage            |
"""

from __future__ import annotations

from typing import Any

from policy.cloudkeys import GoogleKey
from policy.secret import Secret

from .cloud import READ_SECONDS, CloudSource, LoginFailure, check_endpoint, refused
from .source import SourceFailure

__all__ = ["GoogleSource"]


class GoogleSource(CloudSource):
    """Reads `GoogleKey` references."""

    extra = "google"
    modules = ("google.cloud.secretmanager", "requests")
    loggers = ("google", "urllib3")

    def server(self, ref: GoogleKey) -> str | None:
        return ref.endpoint

    def make(self, ref: GoogleKey) -> Any:
        options = {}
        if ref.endpoint is not None:
            check_endpoint(ref.endpoint)
            options["api_endpoint"] = ref.endpoint
        # Over gRPC the SDK would start threads of its own that outlive whoever waits.
        manager = self.module("google.cloud.secretmanager")
        return manager.SecretManagerServiceClient(transport="rest", client_options=options)

    def ask(self, ref: GoogleKey, client: Any) -> Secret:
        name = f"{ref.secret}/versions/{ref.version}"
        answer = client.access_secret_version(name=name, timeout=READ_SECONDS, retry=None)
        return Secret(bytes(answer.payload.data))

    def judge(self, error: Exception) -> SourceFailure:
        core: Any = self.module("google.api_core.exceptions")
        auth: Any = self.module("google.auth.exceptions")
        http: Any = self.module("requests.exceptions")
        if isinstance(error, core.GoogleAPICallError):
            answer: Any = error
            status = int(answer.code or 0)
            word = "" if answer.grpc_status_code is None else answer.grpc_status_code.name
            response = answer.response
            after = "" if response is None else str(response.headers.get("Retry-After", ""))
            return refused(
                status,
                word,
                gone=isinstance(error, core.NotFound | core.FailedPrecondition) or _ended(answer),
                retry_after=float(after) if after.isdigit() and len(after) <= 5 else 0.0,
            )
        if isinstance(error, auth.DefaultCredentialsError):
            return LoginFailure("the SDK finds no credentials of this machine")
        if isinstance(error, auth.TransportError) or isinstance(error.__cause__, auth.TransportError):
            return LoginFailure("the login cannot be reached")
        if isinstance(error, auth.RefreshError):
            if error.retryable:
                return LoginFailure("the login failed")
            return LoginFailure("the login is refused", denied=True)
        if isinstance(error, http.Timeout):
            return SourceFailure("no answer in time")
        if isinstance(error, http.SSLError):
            return SourceFailure("TLS failed")
        if isinstance(error, http.ConnectionError):
            return SourceFailure("the service cannot be reached")
        return SourceFailure(f"the SDK failed ({type(error).__name__})")


def _ended(answer: Any) -> bool:
    """Whether the version is disabled or destroyed: over HTTP that is a 400 with a status in its body."""
    if answer.code != 400 or answer.response is None:
        return False
    try:
        return bool(answer.response.json()["error"]["status"] == "FAILED_PRECONDITION")
    except (ValueError, KeyError, TypeError):
        return False
