"""Egress: from a queued message to the reply of the next hop."""
