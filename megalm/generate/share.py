"""Deals prompts out to the copies of the model that a world holds, and brings all their texts to every rank."""

from collections.abc import Callable, Sequence

import torch.distributed as dist

from megalm.generate.decode import Generator
from megalm.generate.request import GenerationOptions
from megalm.generate.rows import Completion


def generate_shared(
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    on_text: Callable[[int, str], None] | None = None,
    sequences: Sequence[int] | None = None,
) -> list[Completion]:
    """Continue `prompts` (token ids), each on one copy of the model; the same result on every rank. Collective.

    Ranks that share sequences in training (CP) hold copies, too. A prompt's `options.n` texts follow each other. Its place among
    `prompts` is its number in sampling, whatever the layout, unless `sequences` give others. on_text: as in `Generator.generate`, on the ranks of the copy that
    continues the prompt.
    """
    group = generator.layout.groups.dp_cp
    copies = group.size()
    mine = range(group.rank(), len(prompts), copies)
    names = mine if sequences is None else [sequences[i] for i in mine]
    done = generator.generate([prompts[i] for i in mine], options, names, on_text)
    parts: list[list[Completion]] = [done]
    if copies > 1:
        parts = [[]] * copies
        dist.all_gather_object(parts, done, group=group)
    found: list[Completion] = []
    for number in range(len(prompts)):
        place = number // copies * options.n
        found += parts[number % copies][place : place + options.n]
    return found
