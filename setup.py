"""The compiled part of the build: one extension per idea in ``engine/_fast``, and one per Python module
of the engine that has a ``.pxd`` beside it (decision 0011).

Everything else is in ``pyproject.toml``. There is no silent fall-back: when a module does not
compile, the build fails (``posthorn`` would still be right without it, but several times slower,
and nobody would know why).

``POSTHORN_CFLAGS`` and ``POSTHORN_LDFLAGS`` are added to the flags of the C compiler and linker; the
sanitizer build of ``make test-asan`` and the counting build of ``tests/fast`` use them.
"""

import shlex
from os import cpu_count, environ
from pathlib import Path

from Cython.Build import cythonize
from Cython.Compiler.Options import get_directive_defaults
from setuptools import Extension, setup

IDEAS = ("commands", "replies", "data", "bodies", "headers", "patterns", "sockets", "groups")

CFLAGS = shlex.split(environ.get("POSTHORN_CFLAGS", ""))
LDFLAGS = shlex.split(environ.get("POSTHORN_LDFLAGS", ""))


def extension(source: Path, *flags: str) -> Extension:
    return Extension(
        ".".join(source.with_suffix("").parts),
        [str(source)],
        extra_compile_args=[*flags, *CFLAGS],
        extra_link_args=LDFLAGS,
    )


# Without debugging information: it is most of what compiling these takes. -O2: their code is wide, not deep,
# and what does not fit into the first-level cache costs more than -O3 gains.
modules = [
    source for found in sorted(Path("engine").rglob("*.pxd")) if (source := found.with_suffix(".py")).exists()
]
UNTRACKED = [Path("engine/queues/queued.py")]
"""Modules whose objects the garbage collector never looks at."""
# Cython does not heed this directive in a .pxd, and for a whole module not before it has a default.
get_directive_defaults()["no_gc"] = False

extensions = [
    *(extension(Path(f"engine/_fast/{idea}.pyx"), "-O3") for idea in IDEAS),
    *(extension(source, "-O2", "-g0") for source in modules if source not in UNTRACKED),
]


def cythonized(extensions: list[Extension], **directives: bool) -> list[Extension]:
    found: list[Extension] = cythonize(
        extensions,
        build_dir="build/cython",
        nthreads=cpu_count() or 1,
        compiler_directives={
            "language_level": 3,
            "embedsignature": False,
            "binding": True,
            # Types of C come from the .pxd alone: an annotation says what people and type checkers read.
            "annotation_typing": False,
            **directives,
        },
    )
    return found


setup(
    ext_modules=[
        *cythonized(extensions),
        *cythonized([extension(source, "-O2", "-g0") for source in UNTRACKED], no_gc=True),
    ],
    options={"build_ext": {"parallel": cpu_count() or 1}},
)
