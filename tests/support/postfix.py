"""A private Postfix: a next hop as people have it, with STARTTLS and Cyrus SASL, on a loopback port.

Configuration, queue, data and mail live in a directory of their own; the system's instance is
neither read nor touched. `master` runs as a child of the test in its own process group. Needs root,
as Postfix does.
"""

from __future__ import annotations

import contextlib
import mailbox
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from tests.support.ports import free_port, is_open, until
from tests.support.programs import need

__all__ = ["Postfix", "run_postfix"]

_DAEMONS = "/usr/lib/postfix/sbin"

_MAIN = """\
compatibility_level = 3.6
queue_directory = {directory}/queue
data_directory = {directory}/data
maillog_file_prefixes = {directory}
maillog_file = {directory}/mail.log
myhostname = next-hop.example
mydomain = next-hop.example
myorigin = next-hop.example
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 192.0.2.1/32
alias_maps =
alias_database =
local_recipient_maps =
biff = no
# Messages stay as they are, though they come from an address of this machine
local_header_rewrite_clients =
message_drop_headers =
# Everything for example.com goes into one maildir
virtual_mailbox_domains = example.com
virtual_mailbox_base = {directory}/mail
virtual_mailbox_maps = static:all/
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_mailbox_limit = 0
message_size_limit = 60000000
default_transport = error:this next hop delivers to example.com only
# TLS and AUTH
smtpd_tls_security_level = may
smtpd_tls_cert_file = {directory}/certificate.pem
smtpd_tls_key_file = {directory}/key.pem
smtpd_tls_auth_only = yes
smtpd_sasl_auth_enable = yes
smtpd_sasl_type = cyrus
smtpd_sasl_path = smtpd
cyrus_sasl_config_path = {directory}/config/sasl
smtpd_sasl_local_domain = next-hop.example
smtpd_sasl_security_options = noanonymous
smtpd_relay_restrictions = {permitted}, reject
smtpd_recipient_restrictions = {permitted}, reject
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
"""

_CLIENTS = """\
# Who shows a certificate of this authority may send, too
smtpd_tls_ask_ccert = yes
smtpd_tls_CAfile = {directory}/clients.pem
smtpd_tls_loglevel = 1
smtpd_relay_restrictions = permit_tls_all_clientcerts, permit_sasl_authenticated, reject
smtpd_recipient_restrictions = permit_tls_all_clientcerts, permit_sasl_authenticated, reject
"""

_MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
127.0.0.1:{smtps} inet n - n - - smtpd -o smtpd_tls_wrappermode=yes
cleanup    unix  n - n - 0 cleanup
qmgr       unix  n - n 300 1 qmgr
rewrite    unix  - - n - - trivial-rewrite
bounce     unix  - - n - 0 bounce
defer      unix  - - n - 0 bounce
trace      unix  - - n - 0 bounce
tlsmgr     unix  - - n 1000? 1 tlsmgr
proxymap   unix  - - n - - proxymap
error      unix  - - n - - error
retry      unix  - - n - - error
discard    unix  - - n - - discard
virtual    unix  - n n - - virtual
anvil      unix  - - n - 1 anvil
scache     unix  - - n - 1 scache
postlog    unix-dgram n - n - 1 postlogd
"""

_SASL = """\
pwcheck_method: auxprop
auxprop_plugin: sasldb
sasldb_path: {directory}/config/sasl/users.db
mech_list: {mechanisms}
"""


class Postfix:
    """A running instance. `port`: with STARTTLS; `smtps`: with TLS at once. `ca`: a PEM file that trusts its
    certificate, which is in `certificate`."""

    def __init__(self, directory: Path, port: int, smtps: int) -> None:
        self.directory = directory
        self.port = port
        self.smtps = smtps
        self.certificate = directory / "certificate.pem"
        self.ca = directory / "ca.pem"

    @property
    def log(self) -> str:
        """What it logged so far."""
        path = self.directory / "mail.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def messages(self) -> list[bytes]:
        """The messages that were delivered, with LF line ends and Postfix's own fields on top."""
        box = self.directory / "mail" / "all"
        if not (box / "new").is_dir():
            return []
        found = mailbox.Maildir(box, create=False)
        return [found.get_bytes(key) for key in sorted(found.keys())]

    def wait_for(self, count: int, *, seconds: float = 30.0) -> list[bytes]:
        """The messages, once there are `count` of them."""
        until(
            lambda: len(self.messages()) >= count,
            seconds=seconds,
            what=lambda: f"{count} messages in Postfix's maildir, only {len(self.messages())}\n{self.log}",
        )
        return self.messages()


@contextmanager
def run_postfix(
    *,
    user: str,
    password: str,
    mechanisms: str = "PLAIN LOGIN",
    clients: bytes | None = None,
    anybody: bool = False,
) -> Iterator[Postfix]:
    """Start an instance that takes mail for example.com from `user` over TLS; stop it at the end.

    `mechanisms`: what AUTH offers, as in Cyrus SASL's ``mech_list``. `clients`: an authority (PEM) whose
    clients need no AUTH. `anybody`: nobody needs it.
    """
    need("postfix", "postfix")
    saslpasswd = need("saslpasswd2", "sasl2-bin")
    if os.geteuid() != 0:
        pytest.skip("a Postfix of one's own needs root")
    owner = pwd.getpwnam("postfix")
    # Not below pytest's tmp_path: Postfix's daemons drop their rights and must still get there.
    directory = Path(tempfile.mkdtemp(prefix="posthorn-postfix-"))
    try:
        directory.chmod(0o755)
        port, smtps = free_port(), free_port()
        _make_directories(directory, owner)
        _make_certificate(directory)
        ports = {"port": port, "smtps": smtps}
        values = {"directory": directory, "uid": owner.pw_uid, "gid": owner.pw_gid, **ports}
        values["permitted"] = "permit_auth_destination" if anybody else "permit_sasl_authenticated"
        main = _MAIN
        if clients is not None:
            (directory / "clients.pem").write_bytes(clients)
            main += _CLIENTS
        (directory / "config" / "main.cf").write_text(main.format(**values))
        (directory / "config" / "master.cf").write_text(_MASTER.format(**values))
        # Debian's Postfix looks in `config_directory`/sasl, whatever cyrus_sasl_config_path says.
        sasl = directory / "config" / "sasl"
        (sasl / "smtpd.conf").write_text(_SASL.format(mechanisms=mechanisms, **values))
        users = sasl / "users.db"
        subprocess.run(
            [saslpasswd, "-p", "-c", "-f", users, "-u", "next-hop.example", user],
            input=password.encode(),
            check=True,
            capture_output=True,
        )
        shutil.chown(users, owner.pw_uid, owner.pw_gid)
        users.chmod(0o400)
        with _master(directory, port):
            yield Postfix(directory, port, smtps)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _make_directories(directory: Path, owner: pwd.struct_passwd) -> None:
    for name in ("config", "config/sasl", "mail", "data", "queue", "queue/pid"):
        (directory / name).mkdir(mode=0o755)
    for name in ("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "saved"):
        (directory / "queue" / name).mkdir(mode=0o700)
    for name, mode in (("private", 0o700), ("public", 0o755), ("trace", 0o700), ("maildrop", 0o730)):
        (directory / "queue" / name).mkdir(mode=mode)
    for path in [directory / "data", directory / "mail", *(directory / "queue").iterdir()]:
        if path.name != "pid":
            os.chown(path, owner.pw_uid, owner.pw_gid)


def _make_certificate(directory: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "next-hop.example")
    authority.cert_pem.write_to_path(directory / "ca.pem")
    certificate.private_key_pem.write_to_path(directory / "key.pem")
    (directory / "key.pem").chmod(0o600)
    for index, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(directory / "certificate.pem", append=index > 0)


@contextmanager
def _master(directory: Path, port: int) -> Iterator[None]:
    config = directory / "config"
    output = directory / "master.txt"
    with output.open("wb") as file:
        master = subprocess.Popen(
            [f"{_DAEMONS}/master", "-c", config, "-d"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=directory / "queue",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "MAIL_CONFIG": str(config)},
            start_new_session=True,
        )

    def told() -> str:
        log = directory / "mail.log"
        return output.read_text() + (log.read_text() if log.exists() else "")

    def ready() -> bool:
        assert master.poll() is None, f"Postfix did not start:\n{told()}"
        return is_open(port)

    try:
        until(ready, seconds=20, what=lambda: f"Postfix listens on {port}\n{told()}")
        yield
    finally:
        # The master's own group: it and the daemons it started, nobody else.
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(master.pid, sign)
            try:
                master.wait(10)
            except subprocess.TimeoutExpired:
                continue
            break
