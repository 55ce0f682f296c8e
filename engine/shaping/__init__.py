"""Keeps the shaping files of a policy up to date while the engine runs: files, URLs, and what DNS says."""

from .service import HostsOf, ShapingService, Unresolved, open_shaping

__all__ = ["HostsOf", "ShapingService", "Unresolved", "open_shaping"]
