"""The engine: how mail is received, kept, routed and delivered.

The rooms lie along the road a message takes: ``ingress``, ``spool``, ``queues``, ``egress``,
``log``; ``app`` wires them. What should happen is said by a policy file, in the words of the
package ``policy``.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
