#!/usr/bin/env bash
# Universal sound separation: one to four sounds of any kind, FUSS and its relatives.
#
#   stage 0  corpus      synthesise the clips of the mini corpus, download FUSS, or look at the directory given
#   stage 1  mixtures    make them of clips where there are none, list and check them
#   stage 2  first step  of training (PIT; the only one of joint systems)
#   stage 3  other steps of training (adversarial, or PIT continued), and of --arms
#   stage 4  evaluation  on the eval split, with the unprocessed mixture and oracle masks
#   stage 5  comparison  of all experiments: RESULTS.md, report.html, and a figure of spectral holes
#
#   --corpus    mini, download (8 to 9 GB), or DIR: a FUSS tree | clips of one source in a folder for each class
#   --room      reverb or dry
#   --arms      further YAMLs of conf/ that go on from the model of --conf, e.g. small_continued,small_waveform
#   --mixtures  TRAIN,VALIDATION,EVAL: how many are made of clips; --seconds: how long they are; --foregrounds MIN,MAX: of
#               how many clips, over a background; --levels lufs or rms; --responses DIR: every second room is a recorded one
set -euo pipefail

room=reverb arms=
mixtures='' seconds='' foregrounds=0,3 levels=lufs responses=
. "$(dirname "$(realpath -- "$0")")/../../utils/stages.sh"
. local/arms.sh

find_corpus --downloaded fuss
[ "$corpus" != mini ] || : "${mixtures:=200,20,40}" "${seconds:=4}"
[ "$corpus" != mini ] || [ -n "$conf" ] || arms=${arms:-mini_continued,mini_adversarial}
find_conf conf/adversarial_tdcnpp.yml conf/mini_pit.yml
name_experiment "$room"
manifests=data/$name/manifests/$room
data_options+=(--room "$room" --mixtures "${mixtures:-20000,1000,1000}" --seconds "${seconds:-10}")
data_options+=(--foregrounds="$foregrounds" --levels "$levels")
[ -z "$responses" ] || data_options+=(--responses="$(cd "$_user_folder" && realpath -m -- "$responses")")

if runs 0 "corpus"; then $python local/prepare_corpus.py "${data_options[@]}"; fi
if runs 1 "mixtures"; then $python local/make_mixtures.py "${data_options[@]}"; fi
if runs 2 "first training step"; then with_own_keys train first; fi
if runs 3 "other training steps"; then with_own_keys train rest && each_arm train rest; fi
if runs 4 "evaluation"; then evaluate --suite fuss && each_arm evaluate --suite fuss; fi
if runs 5 "comparison"; then report && $python local/plot_holes.py --exp exp --data-set test --out holes.png; fi
