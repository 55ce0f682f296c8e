"""How mail comes in: listeners, sessions, and the one way a message becomes ours (accept.py)."""

from .listener import Listeners, open_listeners

__all__ = ["Listeners", "open_listeners"]
