# Source this as the first thing in run.sh, after its own defaults: it goes to the recipe's folder, reads the options, and
# sets $python. `--name value` sets the variable `name`, `-- KEY=VALUE ...` goes to the array `overrides`. The comment at
# the top of run.sh is its help. The options that all recipes have get their defaults here.

stage=0
stop_stage=5
corpus=mini
name=
conf=
tag=
nj=$(nproc)
device=auto
overrides=()
_last_stage=5
_user_folder=$PWD # what the user gives is relative to it
_script=$(realpath -- "$0")
cd -- "$(dirname -- "$_script")"

fail() {
    echo "error: $*" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case "$1" in
    -h | --help)
        sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$_script"
        exit 0
        ;;
    --)
        shift
        overrides=("$@")
        break
        ;;
    --*)
        _option=${1#--}
        # Names of the script's own variables begin with _.
        if [[ ! $_option =~ ^[a-z][a-z_]*$ ]] || [ -z "${!_option+set}" ]; then
            fail "run.sh has no option $1; see ./run.sh --help"
        fi
        [ $# -ge 2 ] || fail "$1 needs a value"
        printf -v "$_option" %s "$2"
        shift 2
        ;;
    *)
        fail "unexpected '$1'; overrides of YAML keys come after --, see ./run.sh --help"
        ;;
    esac
done

# whole_number OPTION ...: stop unless these options are whole numbers
whole_number() {
    for _option in "$@"; do
        [[ ${!_option} =~ ^(0|[1-9][0-9]{0,8})$ ]] || fail "--$_option ${!_option}: is not a whole number"
    done
}

for _option in stage stop_stage; do
    if [[ ! ${!_option} =~ ^[0-9]$ ]] || [ "${!_option}" -gt "$_last_stage" ]; then
        fail "--$_option ${!_option}: stages are 0 to $_last_stage; see ./run.sh --help"
    fi
done
[ "$stage" -le "$stop_stage" ] || fail "--stage $stage comes after --stop_stage $stop_stage: there is nothing to do"
whole_number nj
[ "$nj" -gt 0 ] || fail "--nj 0: at least one job is needed"
if [[ ! $tag =~ ^[A-Za-z0-9._=+-]{0,100}$ ]] || [ "$tag" = . ] || [ "$tag" = .. ]; then
    fail "--tag $tag: a tag has at most 100 letters, digits and . _ = + -"
fi

# Whether a stage is to run; says so.
runs() {
    [ "$stage" -le "$1" ] && [ "$stop_stage" -ge "$1" ] && echo "== stage $1: $2 =="
}

# find_corpus [--pair] [--downloaded NAME]: the corpus's name and place, by the rules of utils/data/corpus.py and from
# where the user stands; stops if data/NAME is of another corpus. Of --pair and --downloaded see there.
find_corpus() {
    local _found=()
    mapfile -d '' _found < <($python -m utils.data.corpus --corpus="$corpus" --name="$name" --base="$_user_folder" "$@")
    [ "${#_found[@]}" -eq 2 ] || exit 2 # the message is there
    name=${_found[0]}
    corpus=${_found[1]}
}

# find_conf DEFAULT: the YAML, relative to the recipe or to where the user stands.
find_conf() {
    conf=${conf:-$1}
    [ -f "$conf" ] || [ ! -f "$_user_folder/$conf" ] || conf=$_user_folder/$conf
}
