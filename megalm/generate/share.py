"""Deals prompts out to the copies of the model that a world holds, and brings all their texts to every rank."""

from collections.abc import Callable, Sequence

import torch.distributed as dist

from megalm.generate.decode import Completion, Generator
from megalm.generate.request import GenerationOptions


def generate_shared(
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    batch_size: int | None = None,
    on_text: Callable[[int, str], None] | None = None,
) -> list[Completion]:
    """Continue `prompts` (token ids), each on one copy of the model; the same result on every rank. Collective.

    Ranks that share sequences in training (CP) hold copies, too. A prompt's place among `prompts` is its number in sampling,
    whatever the layout. batch_size: sequences that a copy decodes together; by default all of its share. on_text: as in
    `Generator.generate`, on the ranks of the copy that continues the prompt.
    """
    group = generator.layout.groups.dp_cp
    copies = group.size()
    mine = range(group.rank(), len(prompts), copies)
    done: list[Completion] = []
    width = batch_size or max(len(mine), 1)
    for first in range(0, len(mine), width):
        numbers = mine[first : first + width]
        done += generator.generate([prompts[i] for i in numbers], options, numbers, on_text)
    parts: list[list[Completion]] = [done]
    if copies > 1:
        parts = [[]] * copies
        dist.all_gather_object(parts, done, group=group)
    return [parts[i % copies][i // copies] for i in range(len(prompts))]
