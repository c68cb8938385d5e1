"""The commands `megalm generate`, `megalm chat` and `megalm embed`."""

from pathlib import Path
from typing import Annotated

import typer

from megalm.cli_model import (
    Checkpoint,
    DType,
    Nproc,
    PipelineParallel,
    Step,
    TensorParallel,
    print_json,
    read_lines,
    start_parts,
)
from megalm.cli_options import AsJson
from megalm.errors import UserError

MaxNewTokens = Annotated[int, typer.Option(help="Tokens to write at most.")]
Temperature = Annotated[float, typer.Option(help="Divides the logits before sampling.")]
TopK = Annotated[int, typer.Option(help="Sample among this many likeliest tokens; 0: all.")]
TopP = Annotated[float, typer.Option(help="Sample among the likeliest tokens of this total probability.")]
MinP = Annotated[float, typer.Option(help="Leave out tokens less likely than this x the likeliest; 0: off.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Divides the logits of tokens seen before; 1: off.")]
PresencePenalty = Annotated[
    float, typer.Option(help="Subtracted from the logits of tokens that the text has; 0: off.")
]
FrequencyPenalty = Annotated[
    float, typer.Option(help="Subtracted from a token's logit each time that the text has it; 0: off.")
]
Stop = Annotated[list[str] | None, typer.Option(help="End at this text; may be given several times.")]
Seed = Annotated[int, typer.Option(help="Seed of sampling.")]
Greedy = Annotated[bool, typer.Option("--greedy", help="Take the likeliest token, do not sample.")]


def generate(
    context: typer.Context,
    checkpoint: Checkpoint,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Text to continue; may be given several times.")
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="UTF-8 file with one prompt a line; blank lines are skipped.")
    ] = None,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    presence_penalty: PresencePenalty = 0.0,
    frequency_penalty: FrequencyPenalty = 0.0,
    logit_bias: Annotated[
        list[str] | None,
        typer.Option(help="ID=NUMBER is added to that token's logit; may be given several times."),
    ] = None,
    stop: Stop = None,
    seed: Seed = 1234,
    greedy: Greedy = False,
    n: Annotated[int, typer.Option("--n", help="Texts of each prompt.")] = 1,
    beams: Annotated[
        int, typer.Option(help="Search so many texts side by side for the likeliest; 1: off.")
    ] = 1,
    length_penalty: Annotated[
        float, typer.Option(help="Beams are compared by the sum of log-probabilities / length ^ this.")
    ] = 1.0,
    early_stopping: Annotated[
        bool, typer.Option("--early-stopping", help="End a search as soon as so many beams have ended.")
    ] = False,
    logprobs: Annotated[
        int | None,
        typer.Option(help="With --json: log-probabilities of the tokens, and of so many likeliest ones."),
    ] = None,
    stream: Annotated[bool, typer.Option(help="Show tokens as they come.")] = True,
    max_rows: Annotated[int, typer.Option(help="Texts that a copy of the model writes side by side.")] = 64,
    cache_gib: Annotated[
        float | None,
        typer.Option(help="Memory of a process for keys and values; default: half of what is free."),
    ] = None,
    step: Step = None,
    tensor_model_parallel_size: TensorParallel = 1,
    pipeline_model_parallel_size: PipelineParallel = 1,
    dtype: DType = "fp32",
    nproc: Nproc = None,
    as_json: AsJson = False,
) -> None:
    """Continue prompts with a trained model."""
    from megalm.generate.request import GenerateRequest

    if logprobs is not None and not as_json:
        raise UserError(f"--logprobs is {logprobs}: only --json shows log-probabilities; add it")
    request = GenerateRequest(
        checkpoint=checkpoint,
        prompts=(prompt or []) + read_lines(prompt_file, "--prompt-file"),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=_biases(logit_bias or []),
        stop=stop or [],
        seed=seed,
        greedy=greedy,
        n=n,
        beams=beams,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        logprobs=logprobs,
        stream=stream,
        max_rows=max_rows,
        cache_gib=cache_gib,
        step=step,
        tensor_model_parallel_size=tensor_model_parallel_size,
        pipeline_model_parallel_size=pipeline_model_parallel_size,
        dtype=dtype,
    )
    start_parts(context, request, nproc)
    from megalm.generate import run

    print_json(run.main(request, show=not as_json), as_json)


def chat(
    context: typer.Context,
    checkpoint: Checkpoint,
    system: Annotated[str | None, typer.Option(help="What the model is told before all.")] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(help="A bundled template or a .jinja file; default: that of the training data."),
    ] = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    presence_penalty: PresencePenalty = 0.0,
    frequency_penalty: FrequencyPenalty = 0.0,
    stop: Stop = None,
    seed: Seed = 1234,
    greedy: Greedy = False,
    step: Step = None,
    tensor_model_parallel_size: TensorParallel = 1,
    pipeline_model_parallel_size: PipelineParallel = 1,
    dtype: DType = "fp32",
    nproc: Nproc = None,
    as_json: AsJson = False,
) -> None:
    """Talk with a model that was trained on chats: a line of standard input is a turn.

    The line /forget begins anew; Ctrl-C stops the answer that is being written, at the prompt it ends the conversation.
    """
    from megalm.generate.request import ChatRequest

    request = ChatRequest(
        checkpoint=checkpoint,
        system=system,
        chat_template=chat_template,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        stop=stop or [],
        seed=seed,
        greedy=greedy,
        step=step,
        tensor_model_parallel_size=tensor_model_parallel_size,
        pipeline_model_parallel_size=pipeline_model_parallel_size,
        dtype=dtype,
    )
    start_parts(context, request, nproc, interactive=True)
    from megalm.generate import chat as conversation

    print_json(conversation.main(request, show=not as_json), as_json)


def _biases(given: list[str]) -> dict[int, float]:
    biases = {}
    for pair in given:
        token, _, value = pair.partition("=")
        try:
            biases[int(token)] = float(value)
        except ValueError:
            raise UserError(f"--logit-bias is {pair!r}: give ID=NUMBER, such as 50256=-100") from None
    return biases


def embed(
    context: typer.Context,
    checkpoint: Checkpoint,
    text: Annotated[list[str] | None, typer.Option(help="Text to embed; may be given several times.")] = None,
    file: Annotated[Path | None, typer.Option(help="UTF-8 file with one text a line.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write a .npy array (texts, hidden size) or a .json list of lists.")
    ] = None,
    normalize: Annotated[bool, typer.Option(help="Scale every vector to length 1.")] = True,
    batch_size: Annotated[int, typer.Option(help="Texts of one forward pass.")] = 32,
    step: Step = None,
    tensor_model_parallel_size: TensorParallel = 1,
    pipeline_model_parallel_size: PipelineParallel = 1,
    dtype: DType = "fp32",
    nproc: Nproc = None,
    as_json: AsJson = False,
) -> None:
    """Turn texts into vectors with a trained encoder: the mean of its last hidden states.

    Without --output and --json every text's vector is a line of JSON on stdout.
    """
    from megalm.generate.request import EmbedRequest

    request = EmbedRequest(
        checkpoint=checkpoint,
        texts=(text or []) + read_lines(file, "--file"),
        normalize=normalize,
        batch_size=batch_size,
        step=step,
        tensor_model_parallel_size=tensor_model_parallel_size,
        pipeline_model_parallel_size=pipeline_model_parallel_size,
        dtype=dtype,
    )
    start_parts(context, request, nproc)
    from megalm.generate import embed as embedding

    result = embedding.main(request, output)
    if output is None and not as_json:
        for vector in result["embeddings"]:
            print_json(vector, True)
    print_json(result, as_json)
