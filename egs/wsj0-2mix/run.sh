#!/usr/bin/env bash
# Two-step separation of two (or three) speakers, WSJ0-2mix and its relatives.
#
#   ./run.sh [--stage N] [--stop_stage N] [--conf conf/x.yml] [--corpus WHAT] [--tag TAG] [--nj N] [-- KEY=VALUE ...]
#
#   stage 0  corpus      make the mini corpus, or look at the one given
#   stage 1  mixtures    mix, list and check them
#   stage 2  first step  of training (front end; the only one of joint systems)
#   stage 3  other steps of training (separator, fine-tuning)
#   stage 4  evaluation  on the test set, with the unprocessed mixture and oracle masks
#   stage 5  comparison  of all experiments: RESULTS.md, report.html
#
#   --corpus       mini, or DIR: wsj0-2mix tree | WSJ0 as wav + MERL lists | LibriMix CSVs | TRAIN_DIR,TEST_DIR of single speakers
#   --conf         the system, see conf/
#   --tag          added to the experiment's name, e.g. for another seed
#   --name         of data/NAME and the experiments, if the corpus's own name is taken
#   --n_src, --sample_rate, --mode (min or max), --nj (parallel jobs), --device (of the evaluation: auto, cpu, cuda)
#   KEY=VALUE      any key of the YAML, e.g. -- seed=1 steps.separator.epochs=100
set -euo pipefail

n_src=2
sample_rate=8000
mode=min
. "$(dirname "$(realpath -- "$0")")/../../utils/options.sh"
. ../../utils/env.sh

whole_number n_src sample_rate
find_corpus --pair
find_conf "$([ "$corpus" = mini ] && echo conf/mini_two_step_tdcn.yml || echo conf/two_step_tdcn.yml)"
manifests=data/$name/manifests/${n_src}spk_$((sample_rate / 1000))k_$mode
exp=exp/$name-$(basename "$conf" .yml)${tag:+-$tag}
corpus_options=(--corpus="$corpus" --name="$name" --nj "$nj")
corpus_options+=(--n_src "$n_src" --sample_rate "$sample_rate" --mode "$mode")

if runs 0 "corpus"; then $python local/prepare_corpus.py "${corpus_options[@]}"; fi
if runs 1 "mixtures"; then $python local/make_mixtures.py "${corpus_options[@]}"; fi
train() {
    $python -m utils.train --conf "$conf" --manifests "$manifests" --exp "$exp" --steps "$1" -- \
        system.init_args.n_src="$n_src" system.init_args.sample_rate="$sample_rate" "${overrides[@]}"
}
if runs 2 "first training step"; then train first; fi
if runs 3 "other training steps"; then train rest; fi
if runs 4 "evaluation"; then
    $python -m utils.evaluate --exp "$exp" --manifest "$manifests/test.csv" --nj "$nj" --device "$device"
fi
if runs 5 "comparison"; then $python -m utils.report --exp exp --data-set test --out RESULTS.md; fi
