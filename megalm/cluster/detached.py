"""Jobs of this machine, begun where neither the terminal's keys nor its end reach them: in a session of their own.

A process of its own hands them to submitit: a forked copy of this one could stand still where another of its threads held a lock.
"""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

from megalm.errors import UserError


def submit_detached(folder: Path, parameters: dict[str, Any], python: str, task: Any) -> str:
    """Start `task` through submitit's local executor with these parameters; return the job's number. Raises UserError.

    python: what runs it, as a shell would read it.
    """
    ended = subprocess.run(
        [sys.executable, "-m", __name__],
        input=pickle.dumps((str(folder), parameters, python, task)),
        capture_output=True,
        start_new_session=True,
        check=False,
    )
    if ended.returncode:
        said = ended.stderr.decode(errors="replace").strip().splitlines()
        raise UserError(
            f"the job could not be started on this machine: {said[-1] if said else 'no word why'}"
        )
    return ended.stdout.decode()


def _main() -> int:
    import submitit

    folder, parameters, python, task = pickle.load(sys.stdin.buffer)
    executor = submitit.LocalExecutor(folder=folder, python=python)
    executor.update_parameters(**parameters)
    answer, errors = os.dup(1), os.dup(2)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):  # what the job would hold open
        os.dup2(nothing, number)
    try:
        job = executor.submit(task)
    except OSError as error:
        os.write(errors, str(error).encode())
        return 1
    os.write(answer, job.job_id.encode())
    return 0


if __name__ == "__main__":
    sys.exit(_main())
