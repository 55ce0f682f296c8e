"""The OpenBao server for this folder."""

from tests.support.openbao import openbao

__all__ = ["openbao"]
