# Source this after setting defaults: `--name value` sets the variable `name`, `-- KEY=VALUE ...` goes to the array `overrides`.
# The comment at the top of the sourcing script is its help.

overrides=()
while [ $# -gt 0 ]; do
    case "$1" in
    -h | --help)
        sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "${0##*/}"
        exit 0
        ;;
    --)
        shift
        overrides=("$@")
        break
        ;;
    --*)
        _name=${1#--}
        if [[ ! $_name =~ ^[a-z_]+$ ]] || [ -z "${!_name+set}" ]; then
            echo "error: ${0##*/} has no option $1; see ./${0##*/} --help" >&2
            exit 2
        elif [ $# -lt 2 ]; then
            echo "error: $1 needs a value" >&2
            exit 2
        fi
        printf -v "$_name" %s "$2"
        shift 2
        ;;
    *)
        echo "error: unexpected '$1'; overrides of YAML keys come after --, see ./${0##*/} --help" >&2
        exit 2
        ;;
    esac
done
for _name in stage stop_stage; do
    if [[ ! ${!_name} =~ ^[0-9]+$ ]] || [ "${!_name}" -gt "$last_stage" ]; then
        echo "error: --$_name ${!_name}: stages are 0 to $last_stage; see ./${0##*/} --help" >&2
        exit 2
    fi
done
