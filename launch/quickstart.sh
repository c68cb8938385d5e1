#!/usr/bin/env bash
# From crawled pages to a trained, sampled model on this machine: bash launch/quickstart.sh [--short]
# Results go to runs/quickstart, or to $MEGALM_QUICKSTART_DIR.
set -euo pipefail

case "${1:-}" in
"") steps=600 stop=300 hop=10 tune=100 align=50 learn=10 ask=240 text_bytes=12000000 pages=300 ;;
--short) steps=40 stop=20 hop=4 tune=10 align=10 learn=2 ask=60 text_bytes=3000000 pages=60 ;;
*)
    echo "usage: bash launch/quickstart.sh [--short]" >&2
    exit 2
    ;;
esac
work=${MEGALM_QUICKSTART_DIR:-$(dirname "${BASH_SOURCE[0]}")/../runs/quickstart}
mkdir -p "$work"
work=$(cd "$work" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."

unset PYTHONDONTWRITEBYTECODE  # dozens of processes import the package: what one of them compiled, the others read

heading() { printf '\n=== %s\n' "$*"; }

heading "1/24 environment"
bash launch/setup_env.sh corpus quantize
bin=${MEGALM_VENV:-.venv}/bin

gpus=$("$bin/python" -c "import torch; print(torch.cuda.device_count())")
if [ "$gpus" -lt 2 ]; then # the runs below are of two processes, and a GPU serves one
    echo "$gpus GPU(s) here, two are needed: everything runs on the CPU"
    export CUDA_VISIBLE_DEVICES=""
fi

# bf16 where this processor multiplies in it at least as fast as in fp32
dtype=$("$bin/python" - <<'PYTHON'
import time, torch

def seconds(dtype):
    x = torch.ones(512, 512, dtype=dtype)
    x @ x
    begin = time.perf_counter()
    x @ x
    return time.perf_counter() - begin

on_gpu = torch.cuda.is_available()
print("bf16" if on_gpu or seconds(torch.bfloat16) <= seconds(torch.float32) else "fp32")
PYTHON
)
echo "trained in $dtype"

heading "2/24 pages: Python's documentation, crawled from its own server on this machine"
rm -rf "$work/pages.warc.gz" "$work/corpus" "$work/strict" "$work/documents.jsonl" "$work/tokenizer" "$work/data" "$work/run" "$work/sft" "$work/kinds" "$work/reward" "$work/dpo" "$work/ppo" "$work/hf" "$work/small" "$work/sweep" \
    "$work/service" "$work/improve"
"$bin/python" launch/quickstart_pages.py "$work/pages.warc.gz" --max-pages "$pages"

heading "3/24 corpus: their text, cleaned and without duplicates; and what rules made for prose would leave of it"
for recipe in pydoc=corpus pydoc_strict=strict; do
    "$bin/megalm" corpus build "configs/corpus/${recipe%=*}.yaml" "sources.0.path=$work/pages.warc.gz" \
        "output=$work/${recipe#*=}" --workers 2
done

heading "4/24 text: the standard library's docstrings and sources"
"$bin/python" launch/quickstart_text.py "$work/documents.jsonl" --max-bytes "$text_bytes"

text=("$work/corpus/documents" "$work/documents.jsonl")

heading "5/24 tokenizer: byte-level BPE, 4096 tokens, and how well it does on the pages"
"$bin/megalm" tokenizer train "${text[@]}" --vocab-size 4096 --output "$work/tokenizer"
"$bin/megalm" tokenizer info "$work/tokenizer" "$work/corpus/documents"

heading "6/24 dataset: token files for training, validation and test"
"$bin/megalm" dataset build "${text[@]}" --tokenizer "$work/tokenizer" \
    --output-prefix "$work/data/stdlib" --workers 2

train=("$bin/megalm" train configs/pretrain/quickstart.yaml --nproc 2
    "run.dir=$work/run" "tokenizer.path=$work/tokenizer" "train.steps=$steps" "precision.dtype=$dtype"
    "data.train=[{path: \"$work/data/stdlib_train\"}]" "data.valid=[{path: \"$work/data/stdlib_valid\"}]")

heading "7/24 plan: what each process will need, told without starting any"
"$bin/megalm" plan configs/pretrain/quickstart.yaml --nodes 1 --gpus-per-node 2 --device cpu \
    "tokenizer.path=$work/tokenizer" parallel.tensor_model_parallel_size=2

heading "8/24 pretraining on two processes that share each matrix (TP 2), stopped after $stop of $steps steps"
"${train[@]}" parallel.tensor_model_parallel_size=2 "train.exit_after_steps=$stop"

heading "9/24 the same run goes on under other layouts, and under another engine"
go_on() { # steps, then the layout
    echo "--- ${*:2}"
    "${train[@]}" --resume parallel.tensor_model_parallel_size=1 "train.exit_after_steps=$1" "${@:2}"
}
go_on "$hop" parallel.context_parallel_size=2                                                           # shared sequences
go_on "$hop" parallel.pipeline_model_parallel_size=2 parallel.virtual_pipeline_model_parallel_size=2     # interleaved pipeline
go_on "$hop" engine=deepspeed parallel.zero_stage=3                                                     # everything sharded
heading "10/24 and to its end as two copies with a sharded optimizer (DP 2, ZeRO-1)"
go_on "$steps" parallel.zero_stage=1

heading "11/24 text from the model"
"$bin/megalm" generate "$work/run" --prompt "def " --max-new-tokens 100 --temperature 0.8 --top-k 50

heading "12/24 fine-tuning on questions about the library with answers from its docstrings (TP 2), and an answer"
questions="$work/questions.jsonl"
"$bin/python" launch/quickstart_questions.py "$questions"
"$bin/megalm" dataset build "$questions" --chat auto --chat-template alpaca --max-length 256 --max-rejected 0.5 \
    --tokenizer "$work/tokenizer" --output-prefix "$work/data/chats" --splits 9,1
base=("run.load=$work/run" "tokenizer.path=$work/tokenizer" "precision.dtype=$dtype" "train.steps=$tune" "train.eval_interval=$tune")
"$bin/megalm" train configs/finetune/sft.yaml --nproc 2 parallel.tensor_model_parallel_size=2 "run.dir=$work/sft" "${base[@]}" \
    "data.train=[{path: \"$work/data/chats_train\"}]" "data.valid=[{path: \"$work/data/chats_valid\"}]" train.eval_at_start=true \
    'samples.prompts=[{prompt: "What is the function shutil.copytree for?"}]' samples.max_new_tokens=40
echo "What is the function shutil.copytree for?" | "$bin/megalm" chat "$work/sft" --max-new-tokens 40 --top-p 0.9

heading "13/24 a classifier: is it a function or a class that a docstring describes?"
"$bin/megalm" dataset build-labelled "$questions" --text-key output --label-key kind --tokenizer "$work/tokenizer" \
    --output-prefix "$work/data/kinds"
"$bin/megalm" train configs/finetune/classify.yaml --nproc 2 "run.dir=$work/kinds" "${base[@]}" optimizer.warmup_steps=5 batch.micro_batch_size=16 \
    "data.train=[{path: \"$work/data/kinds_train\"}]" "data.valid=[{path: \"$work/data/kinds_valid\"}]"
"$bin/megalm" classify "$work/kinds" --text "Return a copy of the list." --text "A dictionary that remembers its order."

heading "14/24 preferences: a reward model learns to tell a docstring from its words in disorder"
"$bin/python" launch/quickstart_preferences.py "$questions" "$work"
"$bin/megalm" dataset build-preferences "$work/preferences.jsonl" --chat-template alpaca --max-length 256 --max-rejected 0.5 \
    --tokenizer "$work/tokenizer" --output-prefix "$work/data/pairs" --splits 9,1
aligned=("run.load=$work/sft" "tokenizer.path=$work/tokenizer" "precision.dtype=$dtype" "train.steps=$align" "train.eval_interval=$align")
pairs=("data.train=[{path: \"$work/data/pairs_train\"}]" "data.valid=[{path: \"$work/data/pairs_valid\"}]")
"$bin/megalm" train configs/align/reward.yaml --nproc 2 "run.dir=$work/reward" "${aligned[@]}" "${pairs[@]}"

heading "15/24 direct preference optimisation of the answering model on the same pairs"
"$bin/megalm" train configs/align/dpo.yaml --nproc 2 "run.dir=$work/dpo" "dpo.cache=$work/data/reference" "${aligned[@]}" "${pairs[@]}"

heading "16/24 and PPO: it answers, the reward model judges, actor (TP 2) and critic (two copies) learn"
"$bin/megalm" train configs/align/ppo.yaml --nproc 2 parallel.tensor_model_parallel_size=2 rlhf.critic.tensor_model_parallel_size=1 \
    "run.dir=$work/ppo" "run.load=$work/sft" "rlhf.prompts=[{path: \"$work/prompts.jsonl\"}]" \
    "rlhf.eval_prompts=[{path: \"$work/prompts_held_out.jsonl\"}]" rlhf.rewards.0.checkpoint="$work/reward" \
    "train.steps=$learn" "train.eval_interval=$learn" "precision.dtype=$dtype"

heading "17/24 the answering model in the form of Hugging Face's LLaMA"
"$bin/megalm" convert "$work/sft" "$work/hf" --no-check

methods=(--method int8 --method wanda:0.5 --method drop:1)
if [ "$dtype" = bf16 ]; then methods+=(--method bf16); fi
heading "18/24 smaller: fewer bits, fewer weights, fewer layers, and what each costs"
"$bin/megalm" compress compare "$work/run" "$work/small" "${methods[@]}" \
    --calibration "$work/data/stdlib_train" --held-out "$work/data/stdlib_valid" --held-out-samples 16 --plot "$work/small.png"

heading "19/24 evaluation: bits a byte of a text that none of them has seen, this project's README, before and after fine-tuning"
cp README.md "$work/unseen.txt"
for model in run sft; do
    "$bin/megalm" eval "$work/$model" --text "$work/unseen.txt"
done

heading "20/24 a look into the model: where its heads look, which tokens a prediction rests on, what each layer would say"
"$bin/megalm" inspect "$work/run" --text "def copy(self):" --output "$work/inspect.html"

heading "21/24 service: a page and OpenAI's API, moderated; answers are asked for, two each, and compared by a rule that stands in for people"
"$bin/megalm" moderate configs/moderation/default.yaml "Write to ann@example.com."
"$bin/megalm" feedback promote "$work/sft" --release "$work/service/chat.release.json" --first
"$bin/megalm" serve "chat=$work/service/chat.release.json" --port 0 --feedback "sqlite:///$work/service/feedback.db" \
    --moderation configs/moderation/personal_data.yaml >"$work/service/address.txt" 2>"$work/service/log.txt" &
server=$!
trap 'kill $server 2>/dev/null || true' EXIT
until grep -q http "$work/service/address.txt"; do
    kill -0 $server || { cat "$work/service/log.txt"; exit 1; }
    sleep 0.5
done
address=$(grep -o "http.*" "$work/service/address.txt")
echo "serving on $address, its page on ${address%/v1}/"
"$bin/python" launch/quickstart_feedback.py "$address" "$questions" "$work/service/tasks" --count "$ask"
"$bin/megalm" feedback stats --store "sqlite:///$work/service/feedback.db"

heading "22/24 improvement: what was said of the answers trains a candidate, which takes over if it is better and nowhere worse"
"$bin/megalm" launch configs/improve.yaml --cluster local "dir=$work/improve" "values.release=$work/service/chat.release.json" \
    "values.store=sqlite:///$work/service/feedback.db" values.export=--unfinished "values.data=$work/service/tasks" "values.tokenizer=$work/tokenizer" "values.steps=$align" \
    "values.tasks=$work/service/tasks/docstrings.yaml" "values.safety=$work/service/tasks/docstrings.yaml"
"$bin/megalm" runs wait "$work/improve/promote" --every 2 || true # it ends with 1 where the candidate is refused, too
judgement=$("$bin/megalm" runs logs "$work/improve/promote")
echo "$judgement"
grep -Eq "^(promoted|refused):" <<<"$judgement"
"$bin/megalm" feedback versions "$work/service/chat.release.json"
kill $server
wait $server

heading "23/24 reports: the pretraining and the PPO run side by side, a model card, and where the converted model comes from"
"$bin/megalm" report "$work/run" "$work/ppo" --output "$work/report.html"
"$bin/megalm" report "$work/ppo" --card "$work/model_card.md"
"$bin/megalm" lineage "$work/hf" || true # it ends with 1 where files have changed since, as in a second quick start

heading "24/24 jobs: two learning rates as a sweep in the background, as on a cluster"
"$bin/megalm" launch configs/pretrain/quickstart.yaml --cluster local --sweep optimizer.lr=1e-3,3e-3 \
    "run.dir=$work/sweep" "tokenizer.path=$work/tokenizer" train.steps=8 optimizer.warmup_steps=2 checkpoint.interval=8 "precision.dtype=$dtype" \
    "data.train=[{path: \"$work/data/stdlib_train\"}]" "data.valid=[{path: \"$work/data/stdlib_valid\"}]"
"$bin/megalm" runs wait "$work/sweep/lr=1e-3" "$work/sweep/lr=3e-3" --every 2
"$bin/megalm" runs list "$work/sweep"

heading "done"
echo "report     $work/report.html, $work/ppo/report.html, $work/model_card.md"
echo "run        $work/run (config.yaml, metrics.jsonl, checkpoints, learning curve)"
echo "corpus     $work/corpus (report.html; megalm corpus show $work/corpus)"
echo "tokenizer  $work/tokenizer"
echo "data       $work/data"
echo "fine-tuned $work/sft, $work/kinds (confusion_matrix.png), $work/hf"
echo "aligned    $work/reward (reward_calibration.png), $work/dpo, $work/ppo (rollouts.jsonl)"
echo "service    $work/service (feedback.db, chat.release.json), $work/improve"
echo "inspect    $work/inspect.html"
echo "sweep      $work/sweep"
echo "compressed $work/small (small.png)"
