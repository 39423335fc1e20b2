# What the run.sh of all recipes share. Source this behind the defaults of the recipe's own options:
#
#   . "$(dirname "$(realpath -- "$0")")/../../utils/stages.sh"
#   find_corpus                                 sets name, corpus and data_options
#   find_conf conf/DEFAULT.yml [conf/MINI.yml]  sets conf
#   manifests=data/$name/manifests              folder of train.csv, valid.csv, test.csv
#   name_experiment                             sets exp
#   if runs 2 "training"; then train all; fi
#
# It goes to the recipe's folder, reads the options (utils/options.sh) and sets $python (utils/env.sh).

. "$(dirname "${BASH_SOURCE[0]}")/options.sh"
. ../../utils/env.sh

# find_corpus [--pair] [--joined] [--downloaded NAME]: the corpus's name and place, by the rules of utils/data/corpus.py
# and from where the user stands; stops if data/NAME is of another corpus. Of the options see there.
find_corpus() {
    local _found=()
    mapfile -d '' _found < <($python -m utils.data.corpus --corpus="$corpus" --name="$name" --base="$_user_folder" "$@")
    [ "${#_found[@]}" -eq 2 ] || exit 2 # the message is there
    name=${_found[0]}
    corpus=${_found[1]}
    data_options=(--corpus="$corpus" --name="$name" --nj "$nj") # of the scripts of stages 0 and 1
}

# find_conf DEFAULT [MINI]: the YAML, relative to the recipe or to where the user stands; MINI is the default of the
# mini corpus.
find_conf() {
    local _default=$1
    [ "$corpus" != mini ] || _default=${2:-$1}
    conf=${conf:-$_default}
    [ -f "$conf" ] || [ ! -f "$_user_folder/$conf" ] || conf=$_user_folder/$conf
}

# name_experiment [SETTING]: the folder of the experiment, of corpus, SETTING of the data, YAML and tag.
name_experiment() {
    exp=exp/$name${1:+-$1}-$(basename "$conf" .yml)${tag:+-$tag}
}

# runs NUMBER TITLE: whether a stage is to run; says so.
runs() {
    [ "$stage" -le "$1" ] && [ "$stop_stage" -ge "$1" ] && echo "== stage $1: $2 =="
}

# train STEPS [KEY=VALUE ...]: training steps (all, first, rest) with keys of the recipe, which those of the user override.
train() {
    $python -m utils.train --conf "$conf" --manifests "$manifests" --exp "$exp" --steps "$1" ${trust:+--trust="$trust"} -- "${@:2}" "${overrides[@]}"
}

# evaluate [OPTION ...]: on test.csv, with options of utils.evaluate.
evaluate() {
    $python -m utils.evaluate --exp "$exp" --manifest "$manifests/test.csv" --nj "$nj" --device "$device" "$@"
}

# report [OPTION ...]: the comparison of all experiments, with options of utils.report.
report() {
    $python -m utils.report --exp exp "$@"
}
