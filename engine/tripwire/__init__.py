"""The leak tripwire: the last look at whatever is about to be shown, for secrets in any dress.

Secrets cannot be printed (`policy.secret`), and a session masks what its peer repeats. This is for the
day on which both were not enough: what leaves as a record, a diagnostic line, a reply or the output of
a command is searched for every live secret; what is found is masked, counted, and told to the operator.
"""

from .forms import SHORTEST, forms
from .wire import KEPT, MARK, Tripwire, TripwireStatistics, keep_private, private

__all__ = ["KEPT", "MARK", "SHORTEST", "Tripwire", "TripwireStatistics", "forms", "keep_private", "private"]
