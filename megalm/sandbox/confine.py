"""Takes rights from this process for good: resources, system calls and files, with what Linux grants without privileges.

Runs inside the sandbox, where nothing but the standard library can be imported. Numbers are those of Linux's user interface:
seccomp(2), landlock(7), and the tables of system calls of x86-64 and AArch64.
"""

import ctypes
import errno
import os
import platform
import resource
import struct
import sys
from collections.abc import Sequence

# (x86-64, AArch64); 0: not there. What reaches other processes, the network, other machines' or the kernel's state.
_DENIED = {
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "setpriority": (141, 140),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
    "socket": (41, 198),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fork": (57, 0),
    "vfork": (58, 0),
    "execve": (59, 221),
    "execveat": (322, 281),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "setrlimit": (160, 164),
    "prlimit64": (302, 261),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "syslog": (103, 116),
    "quotactl": (179, 60),
    "personality": (135, 92),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "iopl": (172, 0),
    "ioperm": (173, 0),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "fanotify_init": (300, 262),
    # Landlock does not watch these
    "chmod": (90, 0),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, 0),
    "fchown": (93, 55),
    "lchown": (94, 0),
    "fchownat": (260, 54),
    "utime": (132, 0),
    "utimes": (235, 0),
    "futimesat": (261, 0),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
}
_CLONE, _CLONE3, _CLONE_THREAD = (56, 220), 435, 0x10000
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32 = 0x40000000  # numbers of another table, on x86-64

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _FAIL, _KILL = 0x7FFF0000, 0x00050000, 0x80000000

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_READ = 0b1101  # execute, read file, read directory
_READ_FILE, _WRITE_FILE, _REMOVE_FILE, _MAKE_FILE, _TRUNCATE = 1 << 2, 1 << 1, 1 << 5, 1 << 8, 1 << 14

_PARENT_DEATH_SIGNAL, _DUMPABLE, _GET_SECCOMP, _SET_SECCOMP, _NO_NEW_PRIVILEGES = 1, 4, 21, 22, 38

_libc = ctypes.CDLL(None, use_errno=True)


def can_refuse_system_calls() -> bool:
    """Whether there is seccomp, and a table of system calls for this processor: without it nothing is contained."""
    return sys.platform == "linux" and platform.machine() in _ARCHITECTURES and _prctl(_GET_SECCOMP) >= 0


def can_close_files() -> bool:
    """Whether there is Landlock."""
    return sys.platform == "linux" and _landlock_version() >= 1


def confine(seconds: int, memory_bytes: int, file_bytes: int, readable: Sequence[str], folder: str) -> None:
    """Take all rights that can be taken; OSError where one should be taken and is not."""
    _checked(_prctl(_PARENT_DEATH_SIGNAL, 9), "the signal at the parent's end")
    _checked(_prctl(_NO_NEW_PRIVILEGES, 1), "the flag that no new privileges can be had")
    if can_close_files():
        _close_files(readable, folder)
    _limit(seconds, memory_bytes, file_bytes)
    _refuse_system_calls()


def _limit(seconds: int, memory_bytes: int, file_bytes: int) -> None:
    """Bound this process's time on the CPU, address space, size of a file and open files; no core dumps."""
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_AS: memory_bytes,
    }
    for kind, value in limits.items():
        _, most = resource.getrlimit(kind)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (value, value))


def _refuse_system_calls() -> None:
    """Let no new process, network, signal or the like be had from now on; threads may."""
    program = _program(*_ARCHITECTURES[platform.machine()])
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    whole = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(buffer)))
    _checked(_prctl(_SET_SECCOMP, 2, ctypes.addressof(whole)), "seccomp")


def _program(table: int, audit: int) -> list[tuple[int, int, int, int]]:
    """A filter of the classic packet filter's instructions: (operation, jump if true, jump if false, operand)."""
    fail = (_RETURN, 0, 0, _FAIL | errno.EPERM)
    program = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, audit), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    program += [(_AT_LEAST, 0, 1, _X32), fail]
    for numbers in _DENIED.values():
        if numbers[table]:
            program += [(_EQUAL, 0, 1, numbers[table]), fail]
    # its flags lie behind a pointer; the C library then takes the older call
    program += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _FAIL | errno.ENOSYS)]
    program += [(_EQUAL, 0, 3, _CLONE[table]), (_LOAD, 0, 0, 16), (_ANY_BIT, 1, 0, _CLONE_THREAD), fail]
    return [*program, (_RETURN, 0, 0, _ALLOW)]


def _close_files(readable: Sequence[str], folder: str) -> None:
    """Leave of all files those below `readable` to be read, and `folder` for plain files."""
    version = _landlock_version()
    handled = (1 << (13 if version == 1 else 14 if version == 2 else 15 if version < 5 else 16)) - 1
    sockets, signals = (0b11 if version >= 4 else 0), (0b11 if version >= 6 else 0)
    attributes = ctypes.create_string_buffer(struct.pack("QQQ", handled, sockets, signals), 24)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _checked(_libc.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(size), 0), "Landlock")
    own = _READ | _WRITE_FILE | _REMOVE_FILE | _MAKE_FILE | _TRUNCATE
    rules = [(path, _READ) for path in readable] + [("/dev/null", _READ_FILE | _WRITE_FILE), (folder, own)]
    for path, rights in rules:
        if os.path.exists(path):
            _allow(ruleset, path, rights & handled)
    _checked(_libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0), "Landlock")
    os.close(ruleset)


def _landlock_version() -> int:
    return int(_libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1))


def _allow(ruleset: int, path: str, rights: int) -> None:
    if not os.path.isdir(path):
        rights &= _READ_FILE | _WRITE_FILE | _TRUNCATE | 1
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, descriptor))
    _checked(_libc.syscall(_LANDLOCK_ADD, ruleset, 1, rule, 0), "Landlock")
    os.close(descriptor)


def guard_supervisor() -> None:
    """End this process with the one that began it, and keep its memory from other processes."""
    _prctl(_PARENT_DEATH_SIGNAL, 9)
    _prctl(_DUMPABLE, 0)


def _prctl(option: int, *arguments: int) -> int:
    padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    return int(_libc.prctl(option, *padded))


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what} refused")
    return int(result)
