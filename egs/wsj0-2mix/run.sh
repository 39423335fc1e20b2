#!/usr/bin/env bash
# Two-step separation of two (or three) speakers or sounds, WSJ0-2mix and its relatives.
#
#   stage 0  corpus      make the mini corpus, or look at the one given
#   stage 1  mixtures    mix, list and check them
#   stage 2  first step  of training (front end; the only one of joint systems)
#   stage 3  other steps of training (separator, fine-tuning)
#   stage 4  evaluation  on the test set, with the unprocessed mixture and oracle masks
#   stage 5  comparison  of all experiments: RESULTS.md, report.html
#
#   --corpus    mini, or DIR: wsj0-2mix tree | WSJ0 as wav + MERL lists | LibriMix CSVs | TRAIN_DIR,TEST_DIR of single speakers
#               or classes of sounds | ESC-50 | several joined: DIR+DIR
#   --n_src (2 or 3), --sample_rate (8000 or 16000), --mode (min or max)
set -euo pipefail

n_src=2
sample_rate=8000
mode=min
. "$(dirname "$(realpath -- "$0")")/../../utils/stages.sh"

whole_number n_src sample_rate
find_corpus --pair --joined
find_conf conf/two_step_tdcn.yml conf/mini_two_step_tdcn.yml
name_experiment
manifests=data/$name/manifests/${n_src}spk_$((sample_rate / 1000))k_$mode
data_options+=(--n_src "$n_src" --sample_rate "$sample_rate" --mode "$mode")
keys=(system.init_args.n_src="$n_src" system.init_args.sample_rate="$sample_rate")

if runs 0 "corpus"; then $python local/prepare_corpus.py "${data_options[@]}"; fi
if runs 1 "mixtures"; then $python local/make_mixtures.py "${data_options[@]}"; fi
if runs 2 "first training step"; then train first "${keys[@]}"; fi
if runs 3 "other training steps"; then train rest "${keys[@]}"; fi
if runs 4 "evaluation"; then evaluate; fi
if runs 5 "comparison"; then report; fi
