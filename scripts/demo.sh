#!/usr/bin/env bash
# The whole recipe on a tiny model: build it, teach it the sample data by heart, ask it. No GPU or network
# needed once the packages are installed. A second run asks the model of the first.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh requirements.txt

data=data/yayi_train_example*.json # a pattern, which the commands take
base=checkpoints/tiny-bloom
tuned=checkpoints/demo

if [ ! -e $base/config.json ]; then
    echo "== building a tiny random Bloom in $base"
    rm -rf $base
    python -m training.tiny_bloom --data-path "$data" --output-dir $base
fi

# An earlier version had the model of a run at the root of its directory.
if [ ! -e $tuned/model/config.json ] && [ ! -e $tuned/config.json ]; then
    cards=$(python -c 'import torch; print(torch.cuda.device_count())')
    ranks=$((cards ? cards : 2))
    echo "== fine-tuning it on $data with $ranks $([ "$cards" -gt 0 ] && echo cards || echo "CPU ranks")"
    rm -rf $tuned # what an interrupted demo left
    # Most processors multiply bfloat16 slower than float32, and this model is small.
    precision=$([ "$cards" -gt 0 ] && echo --bf16 || echo --no-bf16)
    deepspeed --num_gpus=$ranks --module training.trainer \
        --data-path "$data" \
        --input-model $base \
        --deepspeed config/deepspeed_zero2_bf16_no_offload.json \
        --local-output-dir checkpoints --run-name demo \
        --test-size 0 \
        --epochs 20 --lr 5e-3 --lr-scheduler linear --warmup-steps 20 \
        --per-device-train-batch-size $((ranks < 8 ? 8 / ranks : 1)) --no-gradient-checkpointing $precision \
        --logging-steps 25 --save-steps 100000
fi

for question in 你是谁 【金融风控领域任务】什么是洗钱？; do
    echo "== $question"
    python -m inference.chat --model $tuned --temperature 0 --prompt "$question"
done

if grep -qF '<|Tool|>' $tuned/model/tokenizer.json 2> /dev/null; then # an earlier version taught no tools
    echo "== with the tools of data/tools_example.py, each question in a dialogue of its own"
    for question in 【金融风控领域任务】现在1美元兑多少人民币？ 【金融风控领域任务】泰铢的汇率是多少？ \
        【金融风控领域任务】我在金穗财富投了钱，该打哪个区的热线反映？ \
        【媒体宣传领域任务】给征文启事写截止日期：2025年5月6日起30天。 \
        【公共安全领域任务】东岭区发现井盖丢失，该拨哪个热线？ 你是谁; do
        printf '%s\n/reset\n' "$question"
    done | python -m inference.chat --model $tuned --tools data/tools_example.py --yes \
        --temperature 0 --repetition-penalty 1
fi
echo "== talk to it: source .venv/bin/activate && python -m inference.chat --model $tuned"
