#!/usr/bin/env bash
# Singing voice and accompaniment: Masker and Denoiser on MUSDB18 and MIR-1K.
#
#   ./run.sh [--stage N] [--stop_stage N] [--conf conf/x.yml] [--corpus WHAT] [--tag TAG] [--nj N] [-- KEY=VALUE ...]
#
#   stage 0  corpus      make the mini corpus, download, decode stems, or look at the directory given
#   stage 1  manifests   accompaniments, split, lists, a check of every file
#   stage 2  training
#   stage 3  nothing     (these systems are trained in one step)
#   stage 4  evaluation  on the test songs, with the mixture and ideal masks
#   stage 5  comparison  of all experiments: RESULTS.md, report.html; of MUSDB18 also with SiSEC 2018
#
#   --corpus       mini | download (MUSDB18-HQ, 22 GB) | DIR with MUSDB18-HQ, MUSDB18 stems, or MIR-1K
#   --conf         the system, see conf/
#   --tag          added to the experiment's name, e.g. for another seed
#   --name         of data/NAME and the experiments, if the corpus's own name is taken
#   --nj (parallel jobs), --device (of the evaluation: auto, cpu, cuda)
#   KEY=VALUE      any key of the YAML, e.g. -- seed=1 steps.joint.epochs=100
set -euo pipefail

. "$(dirname "$(realpath -- "$0")")/../../utils/options.sh"
. ../../utils/env.sh

find_corpus --downloaded musdb18hq
corpus_options=(--corpus="$corpus" --name="$name" --nj "$nj")

if runs 0 "corpus"; then $python local/prepare_corpus.py "${corpus_options[@]}"; fi
if runs 1 "manifests"; then $python local/make_manifests.py "${corpus_options[@]}"; fi
rate=44100
manifests=data/$name/manifests/44k
default=mdl1
extra=()
if [ -d "data/$name/manifests/16k" ]; then
    rate=16000
    manifests=data/$name/manifests/16k
    default=mir1k_mdl1
    extra=(--extra gnsdr)
fi
[ "$corpus" != mini ] || default=mini_mad
find_conf "conf/$default.yml"
exp=exp/$name-$(basename "$conf" .yml)${tag:+-$tag}
if runs 2 "training"; then
    $python -m utils.train --conf "$conf" --manifests "$manifests" --exp "$exp" -- system.init_args.sample_rate="$rate" "${overrides[@]}"
fi
if runs 4 "evaluation"; then
    $python -m utils.evaluate --exp "$exp" --manifest "$manifests/test.csv" --suite music "${extra[@]}" --references references.yml \
        --nj "$nj" --device "$device"
fi
if runs 5 "comparison"; then
    $python -m utils.report --exp exp --data-set test --out RESULTS.md
    $python local/compare_sisec.py --exp exp
fi
