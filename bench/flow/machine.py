"""What the figures were measured on, and what processes cost."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = [
    "ROOT",
    "cost",
    "disk_of",
    "facts",
    "free_port",
    "present",
    "program",
    "pss",
    "wait_port",
    "write_result",
]

ROOT = Path(__file__).resolve().parent.parent.parent
_TICK = os.sysconf("SC_CLK_TCK")
_PACKAGES = ("trio", "msgspec", "Cython", "backports.zstd", "cryptography")


def facts(directory: Path) -> dict[str, Any]:
    """Machine, versions and commit."""
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    # The build, too: the same version can be a tenth slower without profile-guided optimisation.
    python = (
        f"{platform.python_version()} ({' '.join(platform.python_build())}, {platform.python_compiler()})"
    )
    versions = {"python": python, "openssl": _openssl()}
    for package in _PACKAGES:
        try:
            versions[package.lower()] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    postfix = _said("postconf", "-h", "mail_version")
    if postfix:
        versions["postfix"] = postfix
    haraka = re.search(r"Version: ([\d.]+)", _said("haraka", "-v"))
    if haraka:
        versions["haraka"] = haraka[1]
    return {
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "memory_mib": int(memory[1]) // 1024 if memory else None,
        "kernel": platform.release(),
        "disk": disk_of(directory),
        "load_before": os.getloadavg()[0],
        "versions": versions,
        "commit": _said("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10"),
    }


def _openssl() -> str:
    import ssl

    return ssl.OPENSSL_VERSION


def _said(*command: str) -> str:
    found = shutil.which(command[0], path=_path())
    if found is None:
        return ""
    done = subprocess.run([found, *command[1:]], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _path() -> str:
    haraka = ROOT / "var" / "haraka" / "node_modules" / ".bin"
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:{haraka}"


def present(name: str) -> bool:
    """Whether a program can be started."""
    return shutil.which(name, path=_path()) is not None


def program(name: str, package: str = "postfix") -> str:
    """The path of a program. Exits saying which package has it."""
    found = shutil.which(name, path=_path())
    if found is None:
        raise SystemExit(f"bench: {name} is missing; bench/setup installs it (Debian package {package})")
    return found


def disk_of(path: Path) -> str:
    """Device and file system under `path`."""
    path = path.resolve()
    best, name = "", ""
    for line in Path("/proc/mounts").read_text().splitlines():
        device, where, kind = line.split()[:3]
        inside = where == "/" or path == Path(where) or str(path).startswith(where.rstrip("/") + "/")
        if inside and len(where) >= len(best):
            best, name = where, f"{kind} on {device}"
    return name


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def wait_port(port: int, child: subprocess.Popen[bytes] | None = None, limit: float = 60.0) -> None:
    """Wait until something listens. Exits when the child is gone or the limit over."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if child is not None and child.poll() is not None:
            raise SystemExit(f"bench: {child.args!r} ended with {child.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.01)
        else:
            return
    raise SystemExit(f"bench: nothing listens on port {port} after {limit:.0f} s")


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        todo += children.get(one, [])
    return found


def cost(pid: int) -> tuple[float, int]:
    """CPU seconds and peak resident KiB of a process and all it started, the ended ones' CPU too."""
    seconds, peak = 0.0, 0
    for one in _descendants(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
            status = Path(f"/proc/{one}/status").read_text()
        except OSError:
            continue
        seconds += sum(int(field) for field in fields[11:15]) / _TICK
        found = re.search(r"VmHWM:\s+(\d+)", status)
        peak += int(found[1]) if found else 0
    return seconds, peak


def pss(pid: int) -> int:
    """Resident KiB now, shared pages divided among those who share them, of a process and all it started."""
    total = 0
    for one in _descendants(pid):
        try:
            found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{one}/smaps_rollup").read_text(), re.M)
        except OSError:
            continue
        total += int(found[1]) if found else 0
    return total


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write `result` below ``bench/results`` with the command line on top."""
    results = ROOT / "bench" / "results"
    results.mkdir(exist_ok=True)
    file = results / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    module = "bench.flow" if sys.argv[0].endswith("__main__.py") else f"bench.flow.{Path(sys.argv[0]).stem}"
    whole = {"command": " ".join(["python", "-m", module, *sys.argv[1:]]), **result}
    file.write_text(json.dumps(whole, indent=1) + "\n")
    print(f"written: {file.relative_to(ROOT)}")
    return file
