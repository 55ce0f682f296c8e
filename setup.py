"""The compiled part of the build: one extension per idea in ``engine/_fast``.

Everything else is in ``pyproject.toml``. There is no silent fall-back: when a module does not
compile, the build fails (``posthorn`` would still be right without it, but several times slower,
and nobody would know why).

``POSTHORN_CFLAGS`` and ``POSTHORN_LDFLAGS`` are added to the flags of the C compiler and linker; the
sanitizer build of ``make test-asan`` and the counting build of ``tests/fast`` use them.
"""

import shlex
from os import environ

from Cython.Build import cythonize
from setuptools import Extension, setup

IDEAS = ("commands", "replies", "data", "bodies", "headers", "patterns", "sockets")

extensions = [
    Extension(
        f"engine._fast.{name}",
        [f"engine/_fast/{name}.pyx"],
        extra_compile_args=["-O3", *shlex.split(environ.get("POSTHORN_CFLAGS", ""))],
        extra_link_args=shlex.split(environ.get("POSTHORN_LDFLAGS", "")),
    )
    for name in IDEAS
]

setup(
    ext_modules=cythonize(
        extensions,
        build_dir="build/cython",
        compiler_directives={
            "language_level": 3,
            "embedsignature": False,
            "binding": True,
        },
    )
)
