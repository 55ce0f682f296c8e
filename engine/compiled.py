"""Modules that are compiled as they stand (decision 0011).

A module with a ``.pxd`` beside it is plain Python whose classes get C fields and C calls from there.
`setup.py` compiles every such module; the extension lies beside the source and Python prefers it. The finder
here sees to three things that the file system alone does not: ``POSTHORN_PURE`` imports the source, an
extension that was never built is an error instead of a relay that is slow for a reason nobody sees, and in a
checkout an extension older than its source is an error, too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import spec_from_file_location
from types import ModuleType

__all__ = ["PURE", "Finder"]

PURE = os.environ.get("POSTHORN_PURE", "") not in ("", "0")
"""Whether this process runs on plain Python alone."""

_HOW = "build it with `make build` (or install Posthorn again), or set POSTHORN_PURE=1 (slow)"


class Finder(MetaPathFinder):
    """Finds the modules of one package that have a ``.pxd`` and a ``.py``; the rest is left to others."""

    def __init__(self, package: str, root: str, *, pure: bool) -> None:
        self._prefix = f"{package}."
        self._pure = pure
        # What pip has installed is of one piece, whatever times an archive gave it.
        self._checkout = os.path.exists(os.path.join(root, "setup.py"))

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Raises: ImportError: the extension is missing or older than what it is made from."""
        if path is None or not fullname.startswith(self._prefix):
            return None
        for folder in path:
            stem = os.path.join(folder, fullname.rpartition(".")[2])
            declarations, source = f"{stem}.pxd", f"{stem}.py"
            if not (os.path.exists(declarations) and os.path.exists(source)):
                continue
            if self._pure:
                return spec_from_file_location(fullname, source)
            for suffix in EXTENSION_SUFFIXES:
                if os.path.exists(stem + suffix):
                    break
            else:
                raise ImportError(f"{source} is not compiled for this Python: {_HOW}", name=fullname)
            if self._checkout:
                built = os.path.getmtime(stem + suffix)
                for made_from in (source, declarations):
                    if os.path.getmtime(made_from) > built:
                        raise ImportError(
                            f"{made_from} is newer than its compiled form: {_HOW}", name=fullname
                        )
            return spec_from_file_location(fullname, stem + suffix)
        return None
