"""``python -m engine`` is the command ``posthorn``."""

from __future__ import annotations

import os
import sys

# With -m Python puts the current directory first on the import path, and a policy file there may be
# called policy.py: it must not hide the package of that name. The packages are found without it when
# the project is installed; from a plain checkout the directory of this package is added instead.
_here = os.getcwd()
_project = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:] = [entry for entry in sys.path if entry not in ("", _here)]
if _project not in sys.path:
    sys.path.append(_project)

from engine.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
