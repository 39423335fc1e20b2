# Reads the options of a run.sh: `--name value` sets the variable `name`, `-- KEY=VALUE ...` goes to the array `overrides`.
# Sourced by utils/stages.sh. The options that all recipes have get their defaults here; a recipe sets those of its own
# before. The comment at the top of run.sh is the first part of its help.

stage=0
stop_stage=5
corpus=mini
name=
conf=
tag=
nj=$(nproc)
device=auto
trust=
overrides=()
_last_stage=5
_user_folder=$PWD # what the user gives is relative to it
_script=$(realpath -- "$0")
cd -- "$(dirname -- "$_script")"

fail() {
    echo "error: $*" >&2
    exit 2
}

_print_help() {
    sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$_script"
    cat <<'HELP'

  ./run.sh [--stage N] [--stop_stage N] [--conf conf/x.yml] [--corpus WHAT] [--tag TAG] [--nj N] [-- KEY=VALUE ...]

  --conf      the system, see conf/
  --tag       added to the experiment's name, e.g. for another seed
  --name      of data/NAME and the experiments, if the corpus's own name is taken
  --nj        parallel jobs
  --device    of the evaluation: auto, cpu, cuda
  --trust     Python package whose networks a model file may name from which a step starts
  KEY=VALUE   any key of the YAML, e.g. -- seed=1 runtime.devices=4
HELP
}

while [ $# -gt 0 ]; do
    case "$1" in
    -h | --help)
        _print_help
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
