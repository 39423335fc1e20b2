#!/usr/bin/env bash
# Two to four speakers in a room, as many microphones: AuxIVA with a learnt surrogate source model.
#
#   stage 0  corpus      make the mini corpus, or look at the one given
#   stage 1  mixtures    rooms for training, test sets of 2, 3 and 4 speakers, a check of every file
#   stage 2  training    on mixtures of n_src speakers
#   stage 4  evaluation  unchanged on 2, 3 and 4 speakers, with AuxIVA, ILRMA, oracle beamformers and the mixture
#   stage 5  comparison  of all experiments: RESULTS_<n>spk.md; scores by T60, distance and noise; convergence curves
#
#   --corpus    mini, or DIR: WSJ0/WSJ1 as wav | train.csv and test.csv | TRAIN_DIR,TEST_DIR | wsj1_2345_db | SMS-WSJ
#   --n_src (speakers in training), --sample_rate, --n_rooms, --n_test (0: by corpus)
set -euo pipefail

n_src=2
sample_rate=16000
n_rooms=0
n_test=0
. "$(dirname "$(realpath -- "$0")")/../../utils/stages.sh"

whole_number n_src sample_rate n_rooms n_test
find_corpus --pair
find_conf conf/surrogate_iss.yml conf/mini_surrogate_iss.yml
name_experiment
manifests=data/$name/manifests/${n_src}spk_$((sample_rate / 1000))k
data_options+=(--n_src "$n_src" --sample_rate "$sample_rate" --n_rooms "$n_rooms" --n_test "$n_test")

if runs 0 "corpus"; then $python local/prepare_corpus.py "${data_options[@]}"; fi
if runs 1 "mixtures"; then $python local/make_mixtures.py "${data_options[@]}"; fi
if runs 2 "training"; then train all system.init_args.sample_rate="$sample_rate"; fi
if runs 4 "evaluation"; then $python local/evaluate_all.py --exp "$exp" --data "data/$name" --nj "$nj" --device "$device"; fi
if runs 5 "comparison"; then
    for n in 2 3 4; do
        report --data-set "test_${n}spk" --out "RESULTS_${n}spk.md" --html "report_${n}spk.html"
    done
    $python local/breakdown.py --exp "$exp" exp/reference-"$name"-*/auxiva_gauss_ip2_10 --out "exp/$name-breakdown"
    $python local/convergence.py --exp "$exp" --data "data/$name" --out "exp/$name-convergence" --nj "$nj"
fi
