#!/usr/bin/env bash
# One row of the tables in results/: train and evaluate a front end under a kind of training, all within one budget.
#
#   local/compare.sh NAME CORPUS FRONT_END TRAINING SEED [KEY=VALUE ...]
#
# NAME       of the data and of the experiments
# CORPUS     as of ./run.sh
# FRONT_END  published: ReLU code with biases, softmax masks
#            ratio:     ReLU code without biases, ratio masks
#            tied:      the same, decoded by the transposed encoder
#            logratio:  ratio, whose mask network hears logarithms
#            analytic:  pairs of learnt filters, ratio masks of magnitudes, decoded by the transposed encoder, logarithms
# TRAINING   si_sdr (the paper's), heard, decoder_metric: latent losses after step 1
#            source: decoder_metric, but with the codes of clean sources as targets
#            finetune: decoder_metric, the last epoch on waveforms; frontend_joint: step 1, then all on waveforms
#            joint: all on waveforms; convtasnet: the same with Asteroid's network and code (FRONT_END asteroid)
#
# TAG        of experiments with further keys
# EPOCHS (7) epochs of BATCHES (300) batches of four segments, of one second each; step 1 takes the first epoch.
set -euo pipefail
cd "$(dirname "$(realpath -- "$0")")/.."

name=$1
corpus=$2
front_end=$3
training=$4
seed=$5
epochs=${EPOCHS:-7}
keys=(seed="$seed" data.segment=1.0 data.epoch_size=$((4 * ${BATCHES:-300})) "${@:6}")

init=system.init_args
ratio=($init.bias=false $init.oracle_mask=ratio)
case $front_end in
    published | asteroid) ;;
    ratio) keys+=("${ratio[@]}") ;;
    tied) keys+=("${ratio[@]}" $init.decoder=tied) ;;
    logratio) keys+=("${ratio[@]}" $init.log_features=true) ;;
    analytic) keys+=("${ratio[@]}" $init.decoder=tied $init.filterbank=analytic_free $init.log_features=true) ;;
    *) echo "error: no front end $front_end" >&2; exit 2 ;;
esac

last=separator
case $training in
    si_sdr | heard | decoder_metric) keys+=($init.latent_loss="$training") ;;
    source) keys+=($init.latent_loss=decoder_metric $init.target=source) ;;
    finetune) keys+=($init.latent_loss=decoder_metric steps.separator.epochs=$((epochs - 2)) steps.finetune.epochs=1 steps.finetune.ema=0.99) ;;
    joint | frontend_joint | convtasnet) last=joint ;;
    *) echo "error: no training $training" >&2; exit 2 ;;
esac
case $training in
    joint) conf=small_joint_tdcn first=0 ;;
    convtasnet) conf=small_asteroid_convtasnet first=0 ;;
    frontend_joint) conf=small_frontend_joint_tdcn first=1 ;;
    finetune) conf=small_two_step_tdcn_finetune first=1 ;;
    *) conf=small_two_step_tdcn first=1 ;;
esac
if [ $first = 1 ]; then keys+=(steps.frontend.epochs=1); fi
if [ "$training" != finetune ]; then keys+=(steps.$last.epochs=$((epochs - first))); fi
keys+=(steps.$last.ema=0.99)

./run.sh --corpus "$corpus" --name "$name" --conf conf/$conf.yml --tag "$front_end-$training${EPOCHS:+-epochs$EPOCHS}${TAG:+-$TAG}-seed$seed" \
    --stage 2 --stop_stage 4 --nj 1 -- "${keys[@]}"
