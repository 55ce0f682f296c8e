"""Keeps the shaping files of a policy up to date while the engine runs: files, URLs, and what DNS says.
Judges replies by their rules."""

from .automation import Automation
from .service import HostsOf, ShapingService, Unresolved, open_shaping
from .state import State

__all__ = ["Automation", "HostsOf", "ShapingService", "State", "Unresolved", "open_shaping"]
