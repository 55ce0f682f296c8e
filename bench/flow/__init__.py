"""How fast a message goes through: source -> relay -> sink, on loopback. ``python -m bench.flow``."""
