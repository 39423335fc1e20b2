#!/usr/bin/env bash
# Two to four speakers in a room, as many microphones: AuxIVA with a learnt surrogate source model.
#
#   ./run.sh [--stage N] [--stop_stage N] [--conf conf/x.yml] [--corpus WHAT] [--tag TAG] [--nj N] [-- KEY=VALUE ...]
#
#   stage 0  corpus      make the mini corpus, or look at the one given
#   stage 1  mixtures    rooms for training, test sets of 2, 3 and 4 speakers, a check of every file
#   stage 2  training    on mixtures of n_src speakers
#   stage 4  evaluation  unchanged on 2, 3 and 4 speakers, with AuxIVA, ILRMA, oracle beamformers and the mixture
#   stage 5  comparison  of all experiments: RESULTS_<n>spk.md; scores by T60, distance and noise; convergence curves
#
#   --corpus       mini, or DIR: WSJ0/WSJ1 as wav | train.csv and test.csv | TRAIN_DIR,TEST_DIR | wsj1_2345_db | SMS-WSJ
#   --conf         the system, see conf/
#   --tag          added to the experiment's name, e.g. for another seed
#   --name         of data/NAME and the experiments, if the corpus's own name is taken
#   --n_src (training), --sample_rate, --n_rooms, --n_test (0: by corpus), --nj (parallel jobs), --device (of the evaluation)
#   KEY=VALUE      any key of the YAML, e.g. -- seed=1 steps.joint.epochs=100
set -euo pipefail

n_src=2
sample_rate=16000
n_rooms=0
n_test=0
. "$(dirname "$(realpath -- "$0")")/../../utils/options.sh"
. ../../utils/env.sh

whole_number n_src sample_rate n_rooms n_test
find_corpus --pair
find_conf "$([ "$corpus" = mini ] && echo conf/mini_surrogate_iss.yml || echo conf/surrogate_iss.yml)"
manifests=data/$name/manifests/${n_src}spk_$((sample_rate / 1000))k
exp=exp/$name-$(basename "$conf" .yml)${tag:+-$tag}
corpus_options=(--corpus="$corpus" --name="$name" --nj "$nj")
corpus_options+=(--n_src "$n_src" --sample_rate "$sample_rate" --n_rooms "$n_rooms" --n_test "$n_test")

if runs 0 "corpus"; then $python local/prepare_corpus.py "${corpus_options[@]}"; fi
if runs 1 "mixtures"; then $python local/make_mixtures.py "${corpus_options[@]}"; fi
if runs 2 "training"; then
    $python -m utils.train --conf "$conf" --manifests "$manifests" --exp "$exp" -- \
        system.init_args.sample_rate="$sample_rate" "${overrides[@]}"
fi
if runs 4 "evaluation"; then $python local/evaluate_all.py --exp "$exp" --data "data/$name" --nj "$nj" --device "$device"; fi
if runs 5 "comparison"; then
    for n in 2 3 4; do
        $python -m utils.report --exp exp --data-set "test_${n}spk" --out "RESULTS_${n}spk.md" --html "report_${n}spk.html"
    done
    $python local/breakdown.py --exp "$exp" exp/reference-"$name"-*/auxiva_gauss_ip2_10 --out "exp/$name-breakdown"
    $python local/convergence.py --exp "$exp" --data "data/$name" --out "exp/$name-convergence" --nj "$nj"
fi
