"""References to the secret managers of the clouds: what is accepted, how it is called, what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from policy.errors import PolicyError
from policy.keyreach import reaches
from policy.keysource import AwsKey, AzureKey, GoogleKey, KeyRef, parse_key
from policy.keyterms import Terms

ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:mail/relay-AbCdEf"
REGIONAL = "projects/p1/locations/europe-west3/secrets/relay"
VAULT = "https://mail.vault.azure.net"


@pytest.mark.parametrize(
    ("value", "expected", "name"),
    [
        ({"aws_secret": "mail/relay"}, AwsKey("mail/relay"), "aws:mail/relay"),
        ({"aws_secret": ARN, "aws_key": "pw"}, AwsKey(ARN, "pw", "eu-west-1"), f"aws:{ARN}#pw"),
        (
            {"aws_secret": "x", "aws_region": "us-east-1", "aws_version": "AWSPREVIOUS", "ttl": 60},
            AwsKey("x", region="us-east-1", version="AWSPREVIOUS", terms=Terms(ttl=60)),
            "aws:x@AWSPREVIOUS",
        ),
        (
            {"google_secret": "projects/p1/secrets/relay"},
            GoogleKey("projects/p1/secrets/relay"),
            "google:projects/p1/secrets/relay",
        ),
        (
            {"google_secret": REGIONAL, "google_version": 7},
            GoogleKey(REGIONAL, "7", "https://secretmanager.europe-west3.rep.googleapis.com"),
            f"google:{REGIONAL}@7",
        ),
        (
            {"azure_vault": VAULT + "/", "azure_secret": "relay"},
            AzureKey(VAULT, "relay"),
            "azure:mail.vault.azure.net/relay",
        ),
        (
            {"azure_vault": VAULT, "azure_secret": "relay", "azure_version": "0123ab", "on_outage": "hold"},
            AzureKey(VAULT, "relay", "0123ab", terms=Terms(on_outage="hold")),
            "azure:mail.vault.azure.net/relay@0123ab",
        ),
    ],
)
def test_forms(value: dict[str, Any], expected: KeyRef, name: str) -> None:
    ref = parse_key(value)
    assert ref == expected and ref.name == name


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"aws_secret": ""}, '"aws_secret" is empty'),
        ({"aws_secret": "arn:aws:s3:::x"}, "no ARN like"),
        ({"aws_secret": ARN, "aws_region": "us-east-1"}, "another region"),
        ({"aws_secret": "x", "aws_region": "http://x/"}, "a region like"),
        ({"aws_secret": "x", "aws_endpoint": "x"}, '"aws_endpoint" is no URL'),
        ({"aws_secret": "x", "aws_keys": "y"}, 'did you mean "aws_key"'),
        ({"aws_key": "y"}, '"aws_secret" is missing beside "aws_key"'),
        ({"aws_secret": "x", "google_secret": "projects/p/secrets/s"}, "two different kinds"),
        ({"google_secret": "relay"}, "no resource name like projects/PROJECT/secrets/NAME"),
        ({"google_secret": "projects/p1/secrets/a/../b"}, "no resource name"),
        ({"google_secret": "projects/p1/secrets/a", "google_version": "1/../2"}, "number of a version"),
        ({"google_secret": "projects/p1/secrets/a", "google_version": True}, "number of a version"),
        ({"azure_vault": VAULT}, '"azure_secret" is missing'),
        ({"azure_vault": "http://mail.vault.azure.net", "azure_secret": "x"}, "no URL like https://NAME"),
        ({"azure_vault": VAULT + "/secrets", "azure_secret": "x"}, "no URL like https://NAME"),
        ({"azure_vault": VAULT, "azure_secret": "a/b"}, 'letters, digits and "-"'),
        ({"azure_vault": VAULT, "azure_secret": "a", "azure_version": "../x"}, "the id of a version"),
        ({"azure_vault": VAULT, "azure_secret": "a", "ttl": 0}, '"ttl" is a duration'),
    ],
)
def test_wrong_forms(value: dict[str, Any], says: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_key(value)
    assert says in str(caught.value)


def test_what_a_url_says_sends_no_login_of_this_machine_elsewhere() -> None:
    assert reaches(parse_key({"aws_secret": "x"})) == ""
    assert reaches(parse_key({"google_secret": "projects/p1/secrets/x"})) == ""
    for form in (
        {"aws_secret": "x", "aws_endpoint": "https://x.example"},
        {"google_secret": "projects/p1/secrets/x", "google_endpoint": "https://x.example"},
        {"azure_vault": "https://x.example", "azure_secret": "x"},
    ):
        assert "log in for this machine" in reaches(parse_key(form))
