"""The engine: how mail is received, kept, routed and delivered.

The rooms lie along the road a message takes: ``ingress``, ``spool``, ``queues``, ``egress``,
``log``; ``app`` wires them. What should happen is said by a policy file, in the words of the
package ``policy``.
"""

import os
import sys

from engine.compiled import PURE, Finder

__version__ = "0.1.0"
__all__ = ["__version__"]

sys.meta_path.insert(0, Finder(__name__, os.path.dirname(os.path.dirname(__file__)), pure=PURE))
