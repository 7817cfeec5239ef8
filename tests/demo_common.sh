# What the demos share. $demo is the name of the one that reads this file.

command -v curl >/dev/null || { echo "$demo: needs curl" >&2; exit 1; }

fail() {
    echo "$demo: $*" >&2
    exit 1
}

# Tries a command for as many tenths of a second as $patience says.
until_true() {
    tries=0
    until "$@"; do
        tries=$((tries + 1))
        [ "$tries" -lt "$patience" ] || return 1
        sleep 0.1
    done
}

# A proxy for the outside world is of no use between processes of one machine.
export NO_PROXY=127.0.0.1 no_proxy=127.0.0.1
unset RUST_LOG
