"""Stands in for `sacct -o JobID,State,NodeList --parsable2 -j ID ...` where there is no accounting: asks scontrol."""

import re
import subprocess
import sys
from itertools import pairwise


def main(arguments: list[str]) -> None:
    """Print a header and a line for each job, or each task of an array."""
    jobs = [
        job for option, value in pairwise(arguments) if option in ("-j", "--jobs") for job in value.split(",")
    ]
    print("JobID|State|NodeList")
    for job in jobs:
        command = ["scontrol", "show", "job", "--oneliner", job]
        records = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
        for record in records.splitlines():
            fields = dict(re.findall(r"(\w+)=(\S*)", record))
            if "JobState" in fields:
                nodes = fields.get("NodeList", "").replace("(null)", "") or "None assigned"
                print(f"{_id(fields)}|{fields['JobState']}|{nodes}")


def _id(fields: dict[str, str]) -> str:
    """The job's number; of an array with the task's, in brackets where several tasks still wait together."""
    task = fields.get("ArrayTaskId")
    if task is None:
        return fields["JobId"]
    return f"{fields['ArrayJobId']}_{task if task.isdigit() else f'[{task}]'}"


if __name__ == "__main__":
    main(sys.argv[1:])
