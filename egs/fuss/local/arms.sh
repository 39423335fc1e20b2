# Arms: experiments that go on from the PIT model of one other, so that they differ by their second step alone.

# with_own_keys COMMAND ...: without the user's keys of steps that the YAML does not have, but other arms do.
with_own_keys() (
    _own=()
    for _key in "${overrides[@]}"; do
        _step=${_key#steps.}
        if [ -z "$arms" ] || [[ $_key != steps.* ]] || [ "${_step%%.*}" = pit ] || grep -q "^  ${_step%%.*}:" "$conf"; then
            _own+=("$_key")
        fi
    done
    overrides=("${_own[@]}")
    "$@"
)

# each_arm COMMAND ...: for each YAML of --arms, in a folder that has the step `pit` of --conf's.
each_arm() {
    local _base=$exp _arm
    for _arm in ${arms//,/ }; do (
        conf=conf/$_arm.yml
        [ -f "$conf" ] || fail "--arms $_arm: there is no $conf"
        name_experiment "$room"
        mkdir -p "$exp"
        if [ ! -d "$exp/pit" ]; then
            # Whole or not there.
            rm -rf "$exp/.pit"
            cp -r "$_base/pit" "$exp/.pit"
            mv "$exp/.pit" "$exp/pit"
        fi
        cmp -s "$_base/pit/done.json" "$exp/pit/done.json" ||
            fail "$exp went on from another model than $_base/pit: delete it to train it anew"
        with_own_keys "$@"
    ); done
}
