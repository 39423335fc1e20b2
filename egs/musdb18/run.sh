#!/usr/bin/env bash
# Singing voice and accompaniment: Masker and Denoiser on MUSDB18 and MIR-1K.
#
#   stage 0  corpus      make the mini corpus, download, decode stems, or look at the directory given
#   stage 1  manifests   accompaniments, split, lists, a check of every file
#   stage 2  training
#   stage 3  nothing     (these systems are trained in one step)
#   stage 4  evaluation  on the test songs, with the mixture and ideal masks
#   stage 5  comparison  of all experiments: RESULTS.md, report.html; of MUSDB18 also with SiSEC 2018
#
#   --corpus    mini | download (MUSDB18-HQ, 22 GB) | DIR with MUSDB18-HQ, MUSDB18 stems, or MIR-1K
set -euo pipefail

. "$(dirname "$(realpath -- "$0")")/../../utils/stages.sh"

find_corpus --downloaded musdb18hq
if runs 0 "corpus"; then $python local/prepare_corpus.py "${data_options[@]}"; fi
if runs 1 "manifests"; then $python local/make_manifests.py "${data_options[@]}"; fi

# What the corpus is, MUSDB18 or MIR-1K, decides the rest.
default=mdl1
rate=44100
suite=(--suite music --references references.yml)
if [ -d "data/$name/manifests/16k" ]; then
    default=mir1k_mdl1
    rate=16000
    suite+=(--extra gnsdr)
fi
manifests=data/$name/manifests/$((rate / 1000))k
find_conf conf/$default.yml conf/mini_mad.yml
name_experiment

if runs 2 "training"; then train all system.init_args.sample_rate="$rate"; fi
if runs 4 "evaluation"; then evaluate "${suite[@]}"; fi
if runs 5 "comparison"; then
    report
    $python local/compare_sisec.py --exp exp
fi
