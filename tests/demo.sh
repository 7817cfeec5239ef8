#!/bin/sh
# make demo: a server and three agents on this machine, and what they do.
#
# On a terminal: the machines, a command on all of them, the address of the page, three things to try; it stays until
# Ctrl-C. Without a terminal: the README's example task and its answer as JSON, then it ends by itself.
# In both cases everything that was started is ended, after a failure and an interrupt as well.
#
# Usage: tests/demo.sh PATH_OF_SIDEBIKE
set -eu

sidebike=$1
demo=demo
# Ten seconds.
patience=100
. "$(dirname "$0")/demo_common.sh"
is_terminal=
if [ -t 0 ] && [ -t 1 ]; then is_terminal=yes; fi
folder=$(mktemp -d)
pids=
ended_by_user=130

end() {
    code=$?
    # The cleanup itself must not be interrupted.
    trap '' INT TERM HUP
    trap - EXIT
    # The agents first: they say goodbye to the server. The last one started may not be listed yet.
    for pid in ${!:-} $pids; do
        kill "$pid" 2>/dev/null || :
        wait "$pid" 2>/dev/null || :
    done
    if [ "$code" -ne 0 ]; then
        cat "$folder"/*.log >&2 || :
    fi
    rm -rf "$folder"
    exit "$code"
}
trap end EXIT
trap 'exit $ended_by_user' INT
trap 'exit 143' TERM HUP

# Ctrl-C reaches the whole process group of the terminal. The server must outlive the agents, so both are kept out of it.
apart=
if [ -n "$is_terminal" ] && command -v setsid >/dev/null; then apart=setsid; fi

# The server takes a free port, and its first log line says which.
find_address() {
    address=$(sed -n 's/.* listens on //p' "$folder/server.log")
    [ -n "$address" ]
}

three_online() {
    online=$(curl -sS "http://$address/api/v1/machine?state=online" | grep -o '"instance"' | wc -l)
    [ "$online" -eq 3 ]
}

start_server() {
    : >"$folder/server.log"
    $apart "$sidebike" server --listen 127.0.0.1:0 2>>"$folder/server.log" &
    pids=$!
    until_true find_address || fail 'the server does not start'
}

start_agent() {
    SIDEBIKE_MACHINE_LABEL=$1 SIDEBIKE_REGISTRY_ADDRESS=$address \
        $apart "$sidebike" agent 2>"$folder/agent-$1.log" &
    pids="$! $pids"
}

if [ -n "$is_terminal" ]; then
    echo '$ sidebike server & sidebike agent &      # three agents: web-1, web-2, db-1'
    start_server
    for label in web-1 web-2 db-1; do
        start_agent "$label"
    done
    until_true three_online || fail 'the agents do not reach the server'
    export SIDEBIKE_REGISTRY_ADDRESS="$address"
    echo '$ sidebike machines'
    "$sidebike" machines
    command='echo "I am $SIDEBIKE_MACHINE_LABEL, on $(uname -sr)"'
    printf '\n%s\n' "\$ sidebike run -- '$command'"
    "$sidebike" run -- "$command"
    cat <<END

The page: http://$address/
Three things to try, in this folder and another terminal:
  export SIDEBIKE_REGISTRY_ADDRESS=$address
  $sidebike run -m '^web-' -- 'date; sleep 5; date'
  $sidebike run -- 'test \$SIDEBIKE_MACHINE_LABEL = db-1'
  curl 'http://$address/api/v1/task?limit=1'
Ctrl-C ends the server and the agents.
END
    # From here on Ctrl-C is the usual end.
    ended_by_user=0
    while :; do
        wait "${pids##* }" || :
        kill -0 "${pids##* }" 2>/dev/null || fail 'the server has ended'
    done
fi

pretty() {
    if command -v jq >/dev/null; then
        jq .
    elif command -v python3 >/dev/null; then
        python3 -m json.tool
    else
        cat
        echo
    fi
}

echo '$ sidebike server --listen 127.0.0.1:0'
start_server
for n in 1 2 3; do
    echo "\$ SIDEBIKE_MACHINE_LABEL=MY_MACHINE_$n SIDEBIKE_REGISTRY_ADDRESS=$address sidebike agent"
    start_agent "MY_MACHINE_$n"
done
until_true three_online || fail 'the agents do not reach the server'

# A small container may have no ps.
command='ps -ef | grep sidebike'
command -v ps >/dev/null || command='echo this is $SIDEBIKE_MACHINE_LABEL'
cat >"$folder/newtask.json" <<END
{
  "name": "MY_TASK_1",
  "machinePattern": ".*",
  "detail": {"command": "$command", "workspace": "/tmp", "timeout": 15}
}
END
echo '$ cat newtask.json'
cat "$folder/newtask.json"

echo "\$ curl -X POST --data @newtask.json 'http://$address/api/v1/task?wait=30s'"
curl -sS -X POST --data "@$folder/newtask.json" "http://$address/api/v1/task?wait=30s" \
    >"$folder/answer.json"
pretty <"$folder/answer.json"

grep -q '"state":"succeeded","createdAt"' "$folder/answer.json" || fail 'the task did not succeed'
grep -q '"succeeded":3' "$folder/answer.json" || fail 'not all three machines ran it'
echo 'demo: three machines ran it, all is well'
