"""Takes from the reading child what it does not need: other files, the network, other processes.

Landlock (Linux 5.13 and newer) leaves it its own folder, the input and what Python itself needs; a seccomp filter made
by libseccomp leaves it no socket, no new process or program, no signal to others and no other process's memory. Neither
needs root or a namespace, so that both work in a container without privileges. Where a kernel or the library gives
less, `confine` says what is missing, and the caller decides.
"""

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Final


class Protection(StrEnum):
    """What the child cannot reach."""

    #: Whatever lies outside its folder, the input and Python.
    FILES = "files"
    #: Any socket, of any family.
    NETWORK = "network"
    #: Other processes: to start, to signal, to trace or to read.
    PROCESSES = "processes"


_libc: Final = ctypes.CDLL(None, use_errno=True)

_PR_SET_NO_NEW_PRIVS: Final = 38

# Landlock's numbers are the same on all architectures (linux/landlock.h).
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION: Final = 1
_PATH_BENEATH: Final = 1
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_FILE = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_TRUNCATE: Final = 1 << 14
#: Rights that a version of Landlock knows: those of the versions up to it, together.
_FILE_RIGHTS: Final = {1: (1 << 13) - 1, 2: 1 << 13, 3: _TRUNCATE, 5: 1 << 15}
_TCP_RIGHTS_FROM, _TCP_RIGHTS = 4, 0b11
#: Signals and abstract sockets of processes outside.
_SCOPES_FROM, _SCOPES = 6, 0b11

_READ: Final = _READ_FILE | _READ_DIR
#: Neither links nor FIFOs nor sockets: whoever reads the folder later shall find plain files.
_WRITE: Final = _READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_FILE | _TRUNCATE

_SYSTEM_PATHS: Final = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"),
    *("/dev/urandom", "/dev/random", "/dev/zero", "/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu"),
)

_CLONE_THREAD: Final = 0x10000
#: libseccomp's numbers (seccomp.h): what is done with a call, and how an argument is compared.
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NOT_EQUAL, _MASKED_EQUAL = 1, 7

_DENIED_NETWORK: Final = (
    *("socket", "socketpair", "connect", "bind", "listen", "accept", "accept4", "sendto", "sendmsg", "sendmmsg"),
    *("recvfrom", "recvmsg", "recvmmsg"),
    # It does all of these without calling them.
    *("io_uring_setup", "io_uring_enter", "io_uring_register"),
)
_DENIED_PROCESSES: Final = (
    *("fork", "vfork", "execve", "execveat", "memfd_create", "memfd_secret", "setsid", "setpgid"),
    *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp", "pidfd_open", "pidfd_getfd"),
    *("pidfd_send_signal", "tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "perf_event_open", "bpf", "userfaultfd"),
    *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "fsopen", "fsmount"),
    *("keyctl", "add_key", "request_key", "init_module", "finit_module", "delete_module", "kexec_load", "reboot"),
    *("shmget", "shmat", "shmctl", "msgget", "msgsnd", "msgrcv", "semget", "semop", "semtimedop", "mq_open"),
)
#: What changes files by their path and is no business of Landlock, or not in all its versions.
_DENIED_FILES: Final = (
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "lchown", "fchown", "fchownat", "truncate"),
    *("setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr", "utime", "utimes"),
    *("utimensat", "futimesat", "mknod", "mknodat", "link", "linkat", "symlink", "symlinkat", "name_to_handle_at"),
    *("open_by_handle_at", "quotactl", "fanotify_init", "inotify_init", "inotify_init1"),
)


def confine(writable: Path, readable: Sequence[Path]) -> list[Protection]:
    """Confine this very process, for good; what it is protected from now.

    Args:
        writable: its own folder.
        readable: files, or folders with all below them, that it may read besides.
    """
    # Without it a program with the set-user-id bit would leave the confinement behind.
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    protections = [Protection.FILES] if _restrict_files(writable, readable) else []
    return [*protections, *((Protection.NETWORK, Protection.PROCESSES) if _filter_calls() else ())]


def _restrict_files(writable: Path, readable: Sequence[Path]) -> bool:
    version = _libc.syscall(_CREATE_RULESET, None, 0, _ASK_VERSION)
    if version < 1:
        return False
    handled = 0
    for since, rights in _FILE_RIGHTS.items():
        handled |= rights if version >= since else 0
    tcp = _TCP_RIGHTS if version >= _TCP_RIGHTS_FROM else 0
    scopes = _SCOPES if version >= _SCOPES_FROM else 0
    # Older kernels know fewer members, and take more only where they are 0.
    attributes = struct.pack("=QQQ", handled, tcp, scopes)
    ruleset = _libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        return False
    try:
        rules = [(writable, _WRITE), *((path, _READ) for path in (*readable, *_paths_of_python()))]
        rules.append((Path("/dev/null"), _READ_FILE | _WRITE_FILE))
        for path, rights in rules:
            with suppress(FileNotFoundError, PermissionError):  # what it cannot reach anyway needs no rule
                at = os.open(path, os.O_PATH | os.O_CLOEXEC)
                try:
                    # A file takes no rights of folders.
                    fitting = rights & handled if path.is_dir() else rights & handled & (_READ_FILE | _WRITE_FILE)
                    rule = struct.pack("=Qi", fitting, at)
                    if _libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0) != 0:
                        return False
                finally:
                    os.close(at)
        return bool(_libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _paths_of_python() -> Iterator[Path]:
    prefixes = {Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix)}
    for entry in sys.path:
        path = Path(entry).resolve()
        # An editable install may put its whole project on the path, and the data folder with it.
        if entry and any(path.is_relative_to(prefix) for prefix in prefixes):
            yield path
    # `pipeline` itself, wherever it is installed.
    yield Path(__file__).resolve().parents[1]
    yield from map(Path, _SYSTEM_PATHS)
    yield Path(f"/proc/{os.getpid()}")


class _Comparison(ctypes.Structure):
    _fields_ = (("argument", ctypes.c_uint), ("how", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def _filter_calls() -> bool:
    try:
        seccomp = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return False
    seccomp.seccomp_init.restype = ctypes.c_void_p
    for name in ("seccomp_load", "seccomp_release"):
        getattr(seccomp, name).argtypes = [ctypes.c_void_p]
    pointer = ctypes.POINTER(_Comparison)
    seccomp.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, pointer,
    ]  # fmt: skip
    filter_ = seccomp.seccomp_init(_ALLOW)
    if not filter_:
        return False

    def deny(name: str, *comparisons: _Comparison, error: int = errno.EPERM) -> bool:
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number == -1:  # younger than this libseccomp, which cannot name it
            return True
        array = (_Comparison * len(comparisons))(*comparisons)
        return bool(seccomp.seccomp_rule_add_array(filter_, _ERRNO | error, number, len(comparisons), array) == 0)

    try:
        own = os.getpid()
        is_made = all(map(deny, (*_DENIED_NETWORK, *_DENIED_PROCESSES, *_DENIED_FILES)))
        # Threads are fine, new processes are not. Flags of `clone3` lie in memory, where a filter cannot look: without
        # it the C library takes `clone`.
        is_made &= deny("clone", _Comparison(0, _MASKED_EQUAL, _CLONE_THREAD, 0))
        is_made &= deny("clone3", error=errno.ENOSYS)
        # `abort` signals its own process; that is how a crash of a parser ends.
        is_made &= all(deny(name, _Comparison(0, _NOT_EQUAL, own, 0)) for name in ("kill", "tgkill"))
        # Limits of others; 0 is its own.
        is_made &= deny("prlimit64", _Comparison(0, _NOT_EQUAL, 0, 0))
        return is_made and seccomp.seccomp_load(filter_) == 0
    finally:
        seccomp.seccomp_release(filter_)
