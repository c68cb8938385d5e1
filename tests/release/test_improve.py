"""The pipeline from feedback to a better model in service names commands and options that exist, in an order that can be run."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from megalm.cli import app
from megalm.cluster.pipeline import load_pipeline
from megalm.cluster.submit import Work

PIPELINE = "configs/improve.yaml"


def commands_of(works: list[Work]) -> Iterator[list[str]]:
    """The arguments of each `megalm` in them, also of one whose output is another's argument."""
    for work in works:
        for part in re.split(r"&&|\$\(|\)", work.command or ""):
            words = [word for word in shlex.split(part.replace('"', "")) if word]
            if words[:1] == ["megalm"]:
                yield words[1:]


def test_each_command_takes_what_the_pipeline_gives_it() -> None:
    changes = ["dir=here", "values.config=configs/align/dpo.yaml", "values.tokenizer=mine"]
    works = load_pipeline(PIPELINE, changes, ["kind=local"])
    names = []
    for words in commands_of(works):
        command: Any = get_command(app)
        while hasattr(command, "commands"):
            name, *words = words
            command = command.commands[name]
        names.append(name)
        assert command.make_context(name, words, obj=[]).params
    assert names == ["versions", "export", "build-preferences", "eval", "eval", "eval", "eval", "promote"]
    [dpo] = [work for work in works if work.config is not None]
    assert dpo.config is not None and dpo.config.task == "dpo"
    assert dpo.config.run.load == "here/serving/model" and dpo.config.tokenizer.path == "mine"
    order = [work.directory.name for work in works]
    needs = {work.directory.name: {order[need] for need in work.needs} for work in works}
    assert needs["dpo"] == {"serving", "pairs"} and needs["promote"] == {"served", "candidate"}
