"""The sandbox's own process: takes code and tests from standard input, runs each test in a confined child, writes verdicts.

Started as a script with nothing but the standard library. Each test has a fresh child, so that what one does to its process
touches no other. A child proves that its test ran to the end with a secret that it was given.
"""

import ast
import builtins
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import types
from contextlib import suppress
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import confine

sys.path = [path for path in sys.path[1:] if path != sys.path[0]]

MOST_REPORT = 4096
MOST_REASON = 200


def main() -> None:
    """Answer requests, a line of JSON each: {code, tests, entry_point, seconds, memory_bytes, file_bytes}.

    The answer is a line [[passed, reason], ...].
    """
    confine.guard_supervisor()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        deadline = time.monotonic() + request["seconds"]
        for name in imported_by(request["tests"]):
            try_import(name)
        verdicts = []
        for test in request["tests"]:
            left = deadline - time.monotonic()
            verdicts.append(judge_in_folder(request, test, left) if left > 0 else (False, "out of time"))
        os.write(1, json.dumps(verdicts).encode() + b"\n")


def judge_in_folder(request: dict[str, Any], test: str, seconds: float) -> tuple[bool, str]:
    """Run one test in an empty folder, which is removed afterwards."""
    folder = tempfile.mkdtemp(dir=os.getcwd())
    try:
        return judge(request, test, folder, seconds)
    finally:
        with suppress(RecursionError):
            shutil.rmtree(folder, ignore_errors=True)


def judge(request: dict[str, Any], test: str, folder: str, seconds: float) -> tuple[bool, str]:
    """Run one test in a child of its own."""
    secret = os.urandom(16).hex()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            enter(request, folder, seconds, writer)
            serve(request, test, secret, writer)
        finally:
            os._exit(1)
    os.close(writer)
    try:
        report, in_time = read_report(reader, seconds)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    given, passed, reason = [*report.decode("utf-8", "replace").split(" ", 2), "", ""][:3]
    if given == secret:
        return passed == "1", reason
    if not in_time:
        return False, "out of time"
    if os.WIFSIGNALED(status):
        return False, f"killed by signal {os.WTERMSIG(status)}"
    return False, "the process ended before the test did"


def read_report(reader: int, seconds: float) -> tuple[bytes, bool]:
    """What the child writes until it ends, a little of it at most, and whether that was in time."""
    deadline, report = time.monotonic() + seconds, b""
    while True:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return report, False
        piece = os.read(reader, MOST_REPORT)
        report += piece
        if not piece or len(report) > MOST_REPORT:
            return report, True


def enter(request: dict[str, Any], folder: str, seconds: float, writer: int) -> None:
    """Confine this process to `folder`; its standard files are nothing."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.closerange(3, writer)
    os.closerange(writer + 1, 4096)
    os.chdir(folder)
    python = {os.path.dirname(os.__file__), sys.base_prefix, sys.base_exec_prefix}
    readable = [
        *sorted(python),
        "/usr/lib",
        "/lib",
        "/lib64",
        "/usr/share/zoneinfo",
        "/etc/ld.so.cache",
        "/dev/urandom",
    ]
    confine.confine(int(seconds) + 1, request["memory_bytes"], request["file_bytes"], readable, folder)


def serve(request: dict[str, Any], test: str, secret: str, writer: int) -> None:
    """Run code and test, and report with the secret.

    What is called afterwards is held in local variables and written in C, so that the code cannot have replaced it.
    """
    write, leave = os.write, os._exit
    passed, reason = run(request["code"], test, request["entry_point"])
    write(writer, f"{secret} {passed:d} {reason}".encode("utf-8", "replace"))
    leave(0)


def run(code: str, test: str, entry_point: str | None) -> tuple[bool, str]:
    """Whether code and then test run without an exception, and the exception."""
    response = types.ModuleType("response")
    sys.modules["__main__"] = sys.modules["response"] = response
    random.seed(0)
    untrace, unprofile, put_back = sys.settrace, sys.setprofile, remember(test)
    names = frozenset(vars(builtins)) - {entry_point}
    try:
        exec(compile(code, "<response>", "exec", dont_inherit=True), vars(response))
        untrace(None)
        unprofile(None)
        put_back()
        given = {name: value for name, value in vars(response).items() if name not in names}
        before = dict(given)
        exec(compile(test, "<test>", "exec", dont_inherit=True), given)
        call_tests(given, before, entry_point)
    except BaseException as error:
        return False, describe(error)
    return True, "passed"


def call_tests(given: dict[str, Any], before: dict[str, Any], entry_point: str | None) -> None:
    """Call what the test defines: functions test..., unittest's cases, and `check` with the function that is tested."""
    for name, value in list(given.items()):
        if name in before and before[name] is value:
            continue
        unittest = sys.modules.get("unittest")
        if unittest and isinstance(value, type) and issubclass(value, unittest.TestCase):
            cases = unittest.defaultTestLoader.loadTestsFromTestCase(value)
            result = cases.run(unittest.TestResult())
            assert result.wasSuccessful() and result.testsRun, (result.failures + result.errors)[:1]
        elif isinstance(value, types.FunctionType) and name.startswith("test"):
            value()
        elif isinstance(value, types.FunctionType) and name == "check" and entry_point:
            value(given[entry_point])


def remember(test: str) -> Any:
    """A function that puts back what built-in names, and the modules that the test imports, hold now."""
    modules = [builtins, *(sys.modules[name] for name in imported_by([test]) if name in sys.modules)]
    kept = [(vars(module), dict(vars(module))) for module in modules]
    classes = [
        (value, dict(vars(value)))
        for _, content in kept[1:]
        for value in content.values()
        if isinstance(value, type) and value.__flags__ & 1 << 9  # made by Python code, not by C
    ]
    put = type.__setattr__

    def put_back() -> None:
        for there, content in kept:
            there.update(content)
        for owner, content in classes:
            for name, value in content.items():
                if owner.__dict__.get(name) is not value:
                    put(owner, name, value)

    return put_back


def imported_by(tests: list[str]) -> list[str]:
    """Modules that the tests name in import statements."""
    names = []
    for test in tests:
        try:
            nodes = list(ast.walk(ast.parse(test)))
        except (SyntaxError, ValueError, RecursionError):
            continue
        for node in nodes:
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.append(node.module)
    return names


def try_import(name: str) -> None:
    """Import a module if it is there; the test will say so if it is not."""
    with suppress(ImportError):
        __import__(name)


def describe(error: BaseException) -> str:
    """The exception's kind and message, whose text may be code of the response."""
    kind = type(error).__name__
    try:
        return f"{kind}: {error}"[:MOST_REASON]
    except BaseException:
        return kind


if __name__ == "__main__":
    main()
