#!/usr/bin/env bash
# Universal sound separation: one to four sounds of any kind, FUSS and its relatives.
#
#   ./run.sh [--stage N] [--stop_stage N] [--conf conf/x.yml] [--corpus WHAT] [--tag TAG] [--nj N] [-- KEY=VALUE ...]
#
#   stage 0  corpus      synthesise the clips of the mini corpus, download FUSS, or look at the directory given
#   stage 1  mixtures    make them of clips where there are none, list and check them
#   stage 2  first step  of training (PIT; the only one of joint systems)
#   stage 3  other steps of training (adversarial, or PIT continued)
#   stage 4  evaluation  on the eval split, with the unprocessed mixture and oracle masks
#   stage 5  comparison  of all experiments: RESULTS.md, report.html, and a figure of spectral holes
#
#   --corpus       mini, download (8 to 9 GB), or DIR: a FUSS tree | clips of one source in a folder for each class
#   --room         reverb or dry
#   --mixtures     TRAIN,VALIDATION,EVAL: how many are made of clips; --seconds: how long they are
#   --conf         the system, see conf/
#   --tag          added to the experiment's name, e.g. for another seed
#   --name         of data/NAME and the experiments, if the corpus's own name is taken
#   --nj (parallel jobs), --device (of the evaluation: auto, cpu, cuda)
#   KEY=VALUE      any key of the YAML, e.g. -- seed=1 steps.adversarial.epochs=100
set -euo pipefail

room=reverb
mixtures=
seconds=
. "$(dirname "$(realpath -- "$0")")/../../utils/options.sh"
. ../../utils/env.sh

find_corpus --downloaded fuss
if [ "$corpus" = mini ]; then
    find_conf conf/mini_adversarial.yml
    : "${mixtures:=200,20,40}" "${seconds:=4}"
else
    find_conf conf/adversarial_tdcnpp.yml
fi
manifests=data/$name/manifests/$room
exp=exp/$name-$room-$(basename "$conf" .yml)${tag:+-$tag}
corpus_options=(--corpus="$corpus" --name="$name" --nj "$nj" --room "$room")
corpus_options+=(--mixtures "${mixtures:-20000,1000,1000}" --seconds "${seconds:-10}")

if runs 0 "corpus"; then $python local/prepare_corpus.py "${corpus_options[@]}"; fi
if runs 1 "mixtures"; then $python local/make_mixtures.py "${corpus_options[@]}"; fi
train() { $python -m utils.train --conf "$conf" --manifests "$manifests" --exp "$exp" --steps "$1" -- "${overrides[@]}"; }
if runs 2 "first training step"; then train first; fi
if runs 3 "other training steps"; then train rest; fi
if runs 4 "evaluation"; then
    $python -m utils.evaluate --exp "$exp" --manifest "$manifests/test.csv" --suite fuss --nj "$nj" --device "$device"
fi
if runs 5 "comparison"; then
    $python -m utils.report --exp exp --data-set test
    $python local/plot_holes.py --exp exp --data-set test --out holes.png
fi
