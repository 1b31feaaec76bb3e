"""Take a process's rights away before it runs a student's code: what the system offers, and what was used."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
import site
import socket
import struct
import sys
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
LINUX = sys.platform == "linux"
NEW_NAMESPACES = 0x10000000 | 0x40000000 | 0x20000000 | 0x08000000 | 0x00020000  # user, network, pid, ipc, mount
PARENT_DEATH_SIGNAL, DUMPABLE, NO_NEW_PRIVILEGES = 1, 4, 38  # for prctl
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # Landlock's system calls
FILE_RIGHTS = (13, 14, 15, 15, 16)  # how many kinds of file access Landlock knows, by version from 1 on
READ, LIST, READ_WRITE = 0b101, 0b1000, 0b110  # execute and read a file; list a folder; read and write a file
ETC = "fonts group host.conf hosts ld.so.cache localtime mime.types nsswitch.conf passwd ssl/certs ssl/openssl.cnf"
SYSTEM = ("/usr", "/lib", "/lib64", *(f"/etc/{name}" for name in ETC.split()))
DEVICES = tuple(f"/dev/{name}" for name in ("full", "null", "random", "urandom", "zero"))
SET_FILTER, FILTER = 22, 2  # for prctl: a program that says yes or no to each system call (seccomp)
CALLS = {"x86_64": (0xC000003E, 41, 53), "aarch64": (0xC00000B7, 198, 199)}  # the ABI, socket, socketpair
IO_URING_SETUP, OTHER_CALLS = 425, 0x40000000  # a second way to any system call; from here on x86-64 has x32's
LOAD, AND, EQUAL, AT_LEAST, RETURN = 0x20, 0x54, 0x15, 0x35, 0x06  # the program's instructions
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EACCES
FILE_BYTES, FOLDER_BYTES, PROCESSES = 16 * 2**20, 64 * 2**20, 32
STALL_SECONDS = 5


def fork_confined(
    serve: Callable[[Connection, list[str]], None], folder: Path, memory: int, seconds: int
) -> tuple[int, int, Connection]:
    """Run `serve` in a confined process; returns its guard's and its own id, and our end of their pipe."""
    ours, theirs = Pipe()
    guard = os.fork()
    if guard:
        theirs.close()
        with socket.socket(fileno=os.dup(ours.fileno())) as pipe:  # who neither reads nor writes on is given up
            for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                pipe.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", STALL_SECONDS, 0))
        worker = int(ours.recv_bytes())
        return guard, worker, ours
    try:
        os.setsid()
        prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
        cut_off = own_namespaces()
        if worker := os.fork():  # the first process of its namespace: when it ends, all that it started end
            theirs.send_bytes(str(worker).encode())
            theirs.close()
            ours.close()
            os.waitpid(worker, 0)
        else:
            prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
            keep_only(theirs)
            limit(memory, seconds)
            given = ["no network", "other processes out of sight"] if cut_off else []
            prctl(NO_NEW_PRIVILEGES, 1)
            if confine_files(folder, cut_off):
                given.append("only the installation to read, only a small folder of its own to write")
            if refuse_sockets():
                given.append("no sockets")
            serve(theirs, given)
    finally:
        os._exit(0)


def end_process(guard: int, worker: int) -> None:
    """Kill a confined process and what it started."""
    for target, kill in ((worker, os.kill), (guard, os.killpg)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(target, signal.SIGKILL)
    os.waitpid(guard, 0)


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process, where there are such."""
    if LINUX:
        LIBC.prctl(option, value, 0, 0, 0)


def own_namespaces() -> bool:
    """Leave the network and the sight of other processes; needs user namespaces."""
    user, group = os.getuid(), os.getgid()
    if not LINUX or LIBC.unshare(NEW_NAMESPACES):
        return False
    prctl(DUMPABLE, 1)  # else these files are root's
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with contextlib.suppress(OSError):
            Path(f"/proc/self/{name}").write_text(text)
    prctl(DUMPABLE, 0)
    return True


def keep_only(pipe: Connection) -> None:
    """Close all files but `pipe`; input and output lead nowhere, so no amount of printing fills anything."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.closerange(3, pipe.fileno())
    os.closerange(pipe.fileno() + 1, 65536)


def limit(memory: int, seconds: int) -> None:
    """Memory beyond what is mapped now, processor seconds, file size, number of processes."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if LINUX else 0
    limits = {"AS": mapped + memory, "CPU": seconds, "FSIZE": FILE_BYTES, "NPROC": PROCESSES, "CORE": 0}
    for name, most in limits.items():
        with contextlib.suppress(ValueError, OSError):  # macOS has some of them in name only
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))


def confine_files(folder: Path, own_mounts: bool) -> bool:
    """Nothing outside `folder` can be written, nothing outside the installation read (Landlock, Linux 5.13)."""
    if own_mounts:
        LIBC.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={FOLDER_BYTES}".encode())
    os.chdir(folder)
    version = LIBC.syscall(CREATE_RULESET, None, 0, 1) if LINUX else -1
    if version < 1:
        return False
    every = (1 << FILE_RIGHTS[min(version, len(FILE_RIGHTS)) - 1]) - 1
    # all file access; TCP from version 4; signals and abstract sockets from version 6: refused unless a rule allows it
    handled = struct.pack("=QQQ", every, 0b11 * (version >= 4), 0b11 * (version >= 6))
    ruleset = LIBC.syscall(CREATE_RULESET, handled, 8 if version < 4 else 16 if version < 6 else 24, 0)
    installation = (Path(__file__).parents[1], sys.prefix, sys.base_prefix, site.getusersitepackages())
    readable = dict.fromkeys(map(str, (*installation, *SYSTEM)), READ | LIST)
    for path, rights in {**readable, **dict.fromkeys(DEVICES, READ_WRITE), str(folder): every}.items():
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_PATH)
            allowed = rights if os.path.isdir(path) else rights & ~LIST  # else the rule is refused
            LIBC.syscall(ADD_RULE, ruleset, 1, struct.pack("=Qi", allowed, descriptor), 0)
            os.close(descriptor)
    confined = LIBC.syscall(RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    return confined


def refuse_sockets() -> bool:
    """No socket but a pair of connected streams, as asyncio uses: neither a network nor a neighbour's socket file."""
    if not LINUX or os.uname().machine not in CALLS:
        return False
    abi, single, pair = CALLS[os.uname().machine]
    program = [  # instruction, how many to skip if true and if false, operand
        (LOAD, 0, 0, 4),
        (EQUAL, 0, 8, abi),
        (LOAD, 0, 0, 0),  # which system call
        (AT_LEAST, 6, 0, OTHER_CALLS),
        (EQUAL, 5, 0, IO_URING_SETUP),
        (EQUAL, 4, 0, single),
        (EQUAL, 0, 4, pair),
        (LOAD, 0, 0, 24),  # its second argument, the kind: a pair of datagrams can be sent anywhere
        (AND, 0, 0, 0xF),
        (EQUAL, 1, 0, socket.SOCK_STREAM),
        (RETURN, 0, 0, REFUSE),
        (RETURN, 0, 0, ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
    header = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(code)))
    return LIBC.prctl(SET_FILTER, FILTER, header, 0, 0) == 0
