"""Key source AWS Secrets Manager (extra ``aws``): boto3, asked for ``GetSecretValue``.

| answer                                             | means           |
|----------------------------------------------------|-----------------|
| ResourceNotFoundException, marked for deletion     | definite        |
| AccessDenied, an unknown, expired or wrong login   | permission denied |
| ThrottlingException                                | rate limit      |
| 5xx, no connection, no answer, anything else       | outage          |
"""

from __future__ import annotations

from typing import Any

import msgspec

from policy.cloudkeys import AwsKey
from policy.secret import Secret

from .cloud import CONNECT_SECONDS, READ_SECONDS, CloudSource, LoginFailure, check_endpoint, refused
from .source import SourceFailure

__all__ = ["AwsSource"]

_GONE = {"ResourceNotFoundException"}
_DENIED = {
    "AccessDeniedException",
    "AccessDenied",
    "ExpiredToken",
    "ExpiredTokenException",
    "IDPRejectedClaim",
    "IncompleteSignatureException",
    "InvalidClientTokenId",
    "InvalidIdentityToken",
    "InvalidSignatureException",
    "MissingAuthenticationTokenException",
    "NotAuthorized",
    "OptInRequired",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
_BUSY = {"ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded"}
_LONG_ID = 32
"""Octets that the id of a version has at least; staging labels are shorter."""

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_text = msgspec.json.Decoder(str)


class AwsSource(CloudSource):
    """Reads `AwsKey` references."""

    extra = "aws"
    modules = ("boto3", "botocore")
    loggers = ("boto3", "botocore", "urllib3")

    login = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN")

    def server(self, ref: AwsKey) -> tuple[str | None, str | None]:
        return ref.region, ref.endpoint

    def make(self, ref: AwsKey) -> Any:
        config = self.module("botocore.config").Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"total_max_attempts": 1},  # the ring repeats, with its own pauses
        )
        below = self.module("botocore.session").Session()
        # For the clients of the login (STS), too: by themselves they would try five times a minute each.
        below.set_default_client_config(config)
        session = self.module("boto3.session").Session(botocore_session=below)
        return session.client("secretsmanager", region_name=ref.region, endpoint_url=ref.endpoint)

    def ask(self, ref: AwsKey, client: Any) -> Secret:
        check_endpoint(client.meta.endpoint_url)
        which = {}
        if ref.version is not None:
            which["VersionId" if len(ref.version) >= _LONG_ID else "VersionStage"] = ref.version
        answer = client.get_secret_value(SecretId=ref.secret, **which)
        value = answer.get("SecretString")
        secret = Secret(answer.get("SecretBinary", b"") if value is None else value)
        return secret if ref.key is None else _field(secret, ref.key)

    def judge(self, error: Exception) -> SourceFailure:
        errors = self.module("botocore.exceptions")
        if isinstance(error, errors.ClientError):
            answer: Any = error
            said = answer.response
            status = int(said.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            code = str(said.get("Error", {}).get("Code", ""))
            if code in _DENIED or code in _BUSY:
                status = 429 if code in _BUSY else 403
            if answer.operation_name != "GetSecretValue":  # of the login
                return refused(status, code)
            # The one word for many things; of those only a deletion says something about the value.
            deleted = code == "InvalidRequestException" and "deletion" in str(
                said["Error"].get("Message", "")
            )
            return refused(status, code, gone=code in _GONE or deleted)
        if isinstance(error, errors.NoRegionError):
            return SourceFailure("no region: neither aws_region, an ARN nor AWS_DEFAULT_REGION says one")
        if isinstance(error, errors.NoCredentialsError | errors.PartialCredentialsError):
            return LoginFailure("the SDK finds no credentials of this machine")
        if isinstance(
            error,
            errors.CredentialRetrievalError
            | errors.MetadataRetrievalError
            | errors.TokenRetrievalError
            | errors.ProfileNotFound,
        ):
            return LoginFailure(f"the SDK cannot have credentials of this machine ({type(error).__name__})")
        if isinstance(error, errors.ConnectTimeoutError | errors.ReadTimeoutError):
            return SourceFailure("no answer in time")
        if isinstance(error, errors.SSLError):
            return SourceFailure("TLS failed")
        if isinstance(error, errors.ConnectionError | errors.HTTPClientError):
            return SourceFailure("the service cannot be reached")
        return SourceFailure(f"the SDK failed ({type(error).__name__})")


def _field(secret: Secret, key: str) -> Secret:
    """One field of a secret that is a JSON object. Raises: SourceFailure."""
    try:
        fields = _fields.decode(secret.reveal())
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise SourceFailure("the value is no JSON object, so it has no fields", definite=True) from None
    if key not in fields:
        raise SourceFailure(f'the secret has no field "{key}"', definite=True)
    try:
        return Secret(_text.decode(fields[key]))
    except (msgspec.MsgspecError, UnicodeError, ValueError):
        raise SourceFailure(f'the field "{key}" is not text', definite=True) from None
