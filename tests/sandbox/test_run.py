"""Code in the sandbox: right and wrong answers are told apart, hostile code fails and leaves nothing behind."""

import os
import socket
import tempfile
from pathlib import Path

import psutil
import pytest

from megalm.errors import UserError
from megalm.sandbox import Limits, Task, check_sandbox, run_tests, run_tests_of
from megalm.sandbox.confine import can_close_files, can_refuse_system_calls

pytestmark = pytest.mark.skipif(not can_refuse_system_calls(), reason="needs seccomp")
needs_landlock = pytest.mark.skipif(not can_close_files(), reason="needs Landlock")
QUICK = Limits(seconds=30.0, memory_bytes=256 << 20, file_bytes=1 << 16)
FIB = "def fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\n"


def verdicts(code: str, *tests: str, entry_point: str | None = None, limits: Limits = QUICK) -> list[bool]:
    return [verdict.passed for verdict in run_tests(Task(code, tests, entry_point), limits)]


def reason(code: str, test: str = "assert True", limits: Limits = QUICK) -> str:
    (verdict,) = run_tests(Task(code, [test]), limits)
    assert not verdict.passed
    return verdict.reason


def test_each_test_is_judged_by_itself():
    tests = ["assert fib(10) == 55", "assert fib(10) == 54", "assert gib(1) == 1", "assert fib(", "fib('a')"]
    assert verdicts(FIB, *tests) == [True, False, False, False, False]
    found = run_tests(Task(FIB, tests), QUICK)
    assert [verdict.reason.split(":")[0] for verdict in found] == [
        "passed",
        "AssertionError",
        "NameError",
        "SyntaxError",
        "TypeError",
    ]


def test_code_that_does_not_run_fails_every_test():
    assert verdicts("def f(:", "assert True", "assert 1") == [False, False]
    assert reason("1 / 0") == "ZeroDivisionError: division by zero"


def test_what_tests_define_is_called():
    functions = "def test_small():\n    assert fib(1) == 1\ndef test_large():\n    assert fib(9) == {}\n"
    assert verdicts(FIB, functions.format(34), functions.format(33)) == [True, False]
    check = "def check(candidate):\n    assert candidate(5) == {}\n"
    assert verdicts(FIB, check.format(5), check.format(6), entry_point="fib") == [True, False]
    case = (
        "import unittest\nclass Cases(unittest.TestCase):\n    def test_it(self):\n        "
        "self.assertEqual(fib(3), {})\n"
    )
    assert verdicts(FIB, case.format(2), case.format(3)) == [True, False]


def test_common_modules_dataclasses_and_threads_work():
    code = (
        "import dataclasses, threading, re, json, collections\n"
        "@dataclasses.dataclass\nclass P:\n    x: 'int'\n"
        "def f():\n    found = []\n    t = threading.Thread(target=lambda: found.append(P(1)))\n    t.start(); t.join()\n"
        "    return found[0].x\n"
        "if __name__ == '__main__':\n    raise SystemExit\n"
    )
    assert verdicts(code, "assert f() == 1") == [True]


def test_the_same_code_has_the_same_verdict_each_time():
    code = "import random\ndef f():\n    return list({str(n) for n in range(20)}), random.random()\n"
    (first,) = run_tests(Task(code, ["raise ValueError(f())"]), QUICK)
    assert all(run_tests(Task(code, ["raise ValueError(f())"]), QUICK) == [first] for _ in range(2))


@pytest.mark.parametrize(
    "leave", ["import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit", "quit()"]
)
def test_leaving_before_the_tests_is_no_pass(leave):
    assert verdicts(leave, "assert False", "assert True") == [False, False]


@pytest.mark.parametrize(
    "patch",
    [
        "import builtins\nbuiltins.abs = lambda x: 0\nbuiltins.isinstance = lambda *a: True\nbuiltins.AssertionError = str",
        "def abs(x): return 0\ndef isinstance(*a): return True",
        "import math\nmath.isclose = lambda *a, **k: True",
        "import unittest\nunittest.TestCase.assertEqual = lambda *a: None\n"
        "unittest.TestCase.run = lambda *a: None\nunittest.TestResult.wasSuccessful = lambda s: True",
        "def check(f): pass\ndef test_f(): pass",
        "import json\njson.dumps = lambda *a: '[true, \"passed\"]'\njson.encoder.JSONEncoder.encode = json.dumps",
        "import os\nos.write(1, b'[[true, \"passed\"]]')\nfor n in range(3, 64):\n    try: os.write(n, b'1 1 passed')\n"
        "    except OSError: pass",
        "import sys\nsys.settrace(lambda *a: None)\nsys.modules['__main__'].run = lambda *a: (True, 'passed')",
        "import atexit, os\natexit.register(os._exit, 0)",
        "import threading, os, time\nthreading.Thread(target=lambda: os._exit(0), daemon=True).start()\ntime.sleep(.1)",
    ],
)
def test_what_is_patched_fools_no_test(patch):
    tests = [
        "import math\nassert isinstance(f(), int) and abs(f() - 1) < 0.1",
        "import math\nassert math.isclose(f(), 1)",
        "import unittest\nclass C(unittest.TestCase):\n    def test_f(self):\n        self.assertEqual(f(), 1)",
        "def check(f):\n    assert f() == 1",
        "def test_f():\n    assert f() == 1",
    ]
    assert verdicts(f"def f(): return 2.0\n{patch}\n", *tests, entry_point="f") == [False] * 5


def test_an_endless_loop_ends_in_time():
    assert (
        verdicts("def f():\n    while True: pass", "f()", "assert True", limits=Limits(seconds=1))
        == [False] * 2
    )
    assert reason("while True: pass", limits=Limits(seconds=0.5)) == "out of time"
    blocked = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nimport time\ntime.sleep(60)"
    assert reason(blocked, limits=Limits(seconds=0.5)) == "out of time"


def test_memory_output_and_files_are_bounded():
    assert reason("x = bytearray(1 << 30)") == "MemoryError: "
    assert verdicts("while len(x := globals().setdefault('x', [])) < 1e9: x.append(bytes(1 << 20))", "1") == [
        False
    ]
    assert verdicts("for _ in range(10000): print('x' * 1000)", "assert True") == [True]
    assert "File too large" in reason("open('a', 'wb').write(bytes(1 << 20))")
    assert verdicts("open('a', 'w').write('b')", "assert open('a').read() == 'b'", "open('a')") == [
        True,
        True,
    ]
    assert "RecursionError" in reason("def f(): f()\nf()")


def names_left() -> set[str]:
    return {path.name for path in Path(tempfile.gettempdir()).glob("megalm-sandbox-*")}


def test_nothing_is_left_behind():
    before = names_left()
    run_tests(Task("import os\nopen('x', 'w').write('y')", ["assert True"]), QUICK)
    assert names_left() <= before
    assert not [
        p
        for p in psutil.process_iter(["cmdline"])
        if "supervisor.py" in str(p.info["cmdline"]) and p.ppid() == 1
    ]


@needs_landlock
@pytest.mark.parametrize(
    "code",
    [
        "import os\nwhile True: os.fork()",
        "import subprocess\nsubprocess.run(['sleep', '60'])",
        "import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass",
        "import os\nos.setsid()",
        "import os\nos.execv('/bin/true', ['true'])",
        "import multiprocessing\nmultiprocessing.Process(target=print).start()",
        "import os\nos.kill(os.getppid(), 9)",
        "import os\nos.killpg(0, 9)",
        "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9)",
        "import socket\nsocket.socket()",
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (9999, 9999))",
        "import os\nos.chmod('.', 0o777)",
        "import os\nos.mkdir('inner')",
        "import os\nos.symlink('/etc', 'x')",
        "open('/proc/self/status')",
        "open('/etc/passwd')",
        "import os\nos.listdir('/')",
        "open('../x', 'w')",
    ],
)
def test_what_reaches_out_is_refused(code):
    found = reason(code)
    assert found.startswith("PermissionError") or "not allowed to raise" in found


@needs_landlock
def test_no_file_can_be_read_written_or_removed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("42")
    for attack in (
        f"open({str(secret)!r}).read()",
        f"open({str(secret)!r}, 'w')",
        f"open({str(tmp_path / 'new')!r}, 'w')",
        f"import os; os.remove({str(secret)!r})",
        f"import os; os.truncate({str(secret)!r}, 0)",
        f"import os; os.rename({str(secret)!r}, 'here')",
        f"import os; os.link({str(secret)!r}, 'here')",
        f"import os; os.utime({str(secret)!r})",
    ):
        assert (
            "Permission" in reason(attack)
            or "not permitted" in reason(attack)
            or "cross-device" in reason(attack)
        )
    assert secret.read_text() == "42" and os.listdir(tmp_path) == ["secret"]


def test_a_server_here_cannot_be_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert "PermissionError" in reason(f"import socket\nsocket.create_connection(('127.0.0.1', {port}))")


def test_a_machine_that_cannot_contain_code_is_refused_or_told(monkeypatch, caplog):
    monkeypatch.setattr("megalm.sandbox.run.can_close_files", lambda: False)
    check_sandbox()
    assert "the kernel has no Landlock" in caplog.text
    monkeypatch.setattr("megalm.sandbox.run.can_refuse_system_calls", lambda: False)
    with pytest.raises(UserError, match="Linux with seccomp alone"):
        check_sandbox()


def test_tasks_of_one_process_leave_each_other_nothing():
    write = Task("import sys, os\nopen('here', 'w')\nsys.left = 1\nimport json\njson.left = 1", ["pass"])
    look = Task(
        "import os, sys, json",
        ["assert not os.listdir() and not hasattr(sys, 'left')", "assert not hasattr(json, 'left')"],
    )
    endless = Task("while True: pass", ["pass", "pass"])
    found = run_tests_of([write, look, endless, look], Limits(seconds=4), workers=1)
    assert [[verdict.passed for verdict in verdicts] for verdicts in found] == [
        [True],
        [True, True],
        [False, False],
        [True, True],
    ]


def test_several_tasks_run_at_a_time_and_keep_their_order():
    tasks = [Task(f"def f(): return {number}", [f"assert f() == {number % 3}"]) for number in range(6)]
    assert [found[0].passed for found in run_tests_of(tasks, QUICK, workers=3)] == [True] * 3 + [False] * 3
