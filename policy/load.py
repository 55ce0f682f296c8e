"""Loading a policy file.

The file runs under a private module name, so it may be called ``policy.py``. Its directory goes to the
*end* of the import path: modules beside it can be imported, and none of them can take the place of this
package or of an installed module. Hooks go into a table of this load. Whatever goes wrong becomes a
PolicyLoadError that names the innermost line inside the policy's own directory.
"""

from __future__ import annotations

import inspect
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType, ModuleType, TracebackType
from typing import Any

from .errors import PolicyError, PolicyLoadError, did_you_mean
from .hooks import Hook, HookTable, registering
from .runtime import Declarations, recording

__all__ = ["LoadedPolicy", "load_policy"]

_PACKAGE = Path(__file__).parent
DEFAULT = _PACKAGE / "default.py"
"""The policy that runs when none is given."""

_serial = itertools.count(1)
_PRODUCT = frozenset({"policy", "engine"})
"""Never a policy's own, even for a policy file that lies beside these two."""
_FOREIGN = frozenset({"site-packages", "dist-packages"})
_FAILURES = (Exception, SystemExit)
"""What a policy's own code may end with. Cancellation and Ctrl-C are nobody's mistake."""


class _Neighbours:
    """The policy's directory on the import path, and the modules that came from there.

    One at a time: the next load takes the last one's directory and modules away, so that two policies
    with a module of the same name beside them each get their own.
    """

    def __init__(self) -> None:
        self._entry = ""
        self._before: frozenset[str] = frozenset()

    def move_to(self, directory: Path) -> None:
        self._forget()
        entry = str(directory)
        if directory != _PACKAGE and entry not in sys.path:
            sys.path.append(entry)
            self._entry = entry
            self._before = frozenset(sys.modules) | _PRODUCT

    def _forget(self) -> None:
        if not self._entry:
            return
        if self._entry in sys.path:
            sys.path.remove(self._entry)
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] not in self._before:
                origin = getattr(getattr(module, "__spec__", None), "origin", None)
                if origin and Path(self._entry) in Path(origin).parents:
                    del sys.modules[name]
        self._entry = ""


_neighbours = _Neighbours()


class LoadedPolicy:
    """A policy file that ran. `hooks`: what it registered. `path`: the file."""

    def __init__(self, path: Path, hooks: HookTable, directory: Path) -> None:
        self.path = path
        self.hooks = hooks
        self._directory = directory

    @property
    def notes(self) -> list[str]:
        """Remarks about the policy, for the log at start."""
        return [note for hook in self.hooks.hooks for note in hook.notes]

    def no_spool(self) -> str:
        """What to say when `init` declared no spool."""
        if self.hooks.get("init"):
            return f'{self.path}: init defines no spool; call policy.define_spool(path="var/spool") in it'
        return (
            f'{self.path}: no function is registered with @policy.on("init"); one that calls '
            'policy.define_spool(path="var/spool") and policy.start_esmtp_listener(...) is needed'
        )

    async def run_init(self, mistakes: list[PolicyLoadError] | None = None) -> Declarations:
        """Call the `pre_init` hooks, then `init`; return what `init` declared.

        `mistakes`: takes what is wrong with declarations, all of it, instead of the first being raised.

        Raises: PolicyLoadError.
        Waits: only if a hook is async.
        """
        declarations = Declarations(mistakes=None if mistakes is None else [])
        try:
            await self._run_init(declarations)
        finally:
            if mistakes is not None:
                name = next(map(_name, self.hooks.get("init")), "")
                for one in declarations.mistakes or ():
                    mistakes.append(PolicyLoadError(one.problem, one.where, name))
        return declarations

    async def _run_init(self, declarations: Declarations) -> None:
        for event, open_to in (("pre_init", None), ("init", declarations)):
            for hook in self.hooks.get(event):
                with recording(open_to), _registering(self.hooks):
                    try:
                        answer = hook.function(*(hook.adapt(()) if hook.adapt else ()))
                        if inspect.isawaitable(answer) and hook.is_async:
                            answer = await answer
                    except _FAILURES as error:
                        raise self._failure(error, hook) from error
                complaint = hook.complaint(answer)
                if complaint is not None:
                    where, _, _ = hook.where.partition(" in ")
                    raise PolicyLoadError(complaint.partition(": ")[2], where, _name(hook))

    def _failure(self, error: BaseException, hook: Hook) -> PolicyLoadError:
        fallback, _, _ = hook.where.partition(" in ")
        return _explain(error, self._directory, self.path, fallback, _name(hook))


def load_policy(path: str | Path | None = None) -> LoadedPolicy:
    """Run a policy file and collect its hooks; None for the default policy.

    Raises: PolicyLoadError when the file cannot be read, does not compile, or fails while it runs.
    """
    shown = DEFAULT if path is None else Path(path)
    try:
        source = shown.read_bytes()
        directory = shown.resolve().parent
    except OSError as error:
        raise PolicyLoadError(f"cannot be read: {error.strerror or error}", str(shown)) from error
    code = _compile(source, shown)

    module = ModuleType(f"_posthorn_policy_{next(_serial)}")
    module.__file__ = str(directory / shown.name)
    sys.modules[module.__name__] = module  # dataclasses, typing and pickle look their module up
    _neighbours.move_to(directory)
    hooks = HookTable()
    with _registering(hooks), recording(None):
        try:
            exec(code, module.__dict__)
        except _FAILURES as error:
            del sys.modules[module.__name__]
            raise _explain(error, directory, shown, str(shown), "") from error
    return LoadedPolicy(shown, hooks, directory)


class _registering:
    """While the block runs, ``policy.on`` adds to `hooks`."""

    def __init__(self, hooks: HookTable) -> None:
        self._hooks = hooks

    def __enter__(self) -> None:
        self._token = registering.set(self._hooks)

    def __exit__(self, *_: object) -> None:
        registering.reset(self._token)


def _compile(source: bytes, shown: Path) -> CodeType:
    try:
        return compile(source, str(shown), "exec", dont_inherit=True)
    except SyntaxError as error:
        where = f"{shown}:{error.lineno}" if error.lineno else str(shown)
        raise PolicyLoadError(_syntax(error), where) from error
    except ValueError as error:  # a NUL byte
        raise PolicyLoadError(f"is no Python source: {error}", str(shown)) from error


def _syntax(error: SyntaxError) -> str:
    """What is wrong, and the source line that it is wrong in."""
    line = (error.text or "").strip()
    return f"{type(error).__name__}: {error.msg}" + (f", in: {line}" if line else "")


def _name(hook: Hook) -> str:
    return hook.where.partition(" in ")[2]


def _explain(error: BaseException, directory: Path, shown: Path, fallback: str, hook: str) -> PolicyLoadError:
    """The error, with the innermost line of the policy's own files."""
    where = fallback
    for frame, line in _frames(error.__traceback__):
        if _is_own(frame, directory, shown):
            where = f"{frame.f_code.co_filename}:{line}"
    if isinstance(error, PolicyError):
        return PolicyLoadError(error.problem, where, hook)
    if isinstance(error, SyntaxError) and error.filename:  # of a module beside the policy
        where = f"{error.filename}:{error.lineno}"
        return PolicyLoadError(_syntax(error), where, hook)
    if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        return _explain(error.exceptions[0], directory, shown, where, hook)
    text = str(error)
    problem = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return PolicyLoadError(problem + _meant(error) + _shadowed(error, directory), where, hook)


def _frames(trace: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    while trace is not None:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


def _is_own(frame: FrameType, directory: Path, shown: Path) -> bool:
    """Whether the frame runs a line of the policy file or of a module beside it."""
    name = frame.f_code.co_filename
    if name == str(shown):
        return True
    if name.startswith("<"):
        return False
    file = Path(name)
    if directory not in file.parents or frame.f_globals.get("__name__", "").partition(".")[0] in _PRODUCT:
        return False
    return _FOREIGN.isdisjoint(file.parts) and Path(sys.base_prefix) not in file.parents


def _meant(error: BaseException) -> str:
    """What `from policy import ...` should have said; an attribute's error knows by itself."""
    if isinstance(error, ImportError) and error.name == "policy":
        wanted = re.match(r"cannot import name '(\w+)'", str(error))
        return did_you_mean(wanted[1], sys.modules["policy"].__all__) if wanted else ""
    return ""


def _shadowed(error: BaseException, directory: Path) -> str:
    """An explanation when an import found an installed module instead of the one beside the policy."""
    if isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
        name: Any = error.obj.__name__
    elif isinstance(error, ImportError):
        name = error.name
    else:
        return ""
    if not isinstance(name, str):
        return ""
    top = name.partition(".")[0]
    for beside in (directory / f"{top}.py", directory / top / "__init__.py"):
        if beside.is_file():
            found = getattr(sys.modules.get(top), "__file__", None) or "a built-in module"
            if found != str(beside):
                return f'; "{top}" beside the policy is hidden by {found}; give it another name'
    return ""
