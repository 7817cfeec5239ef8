#!/bin/sh
# make demo-servers: two PostgreSQL, three servers and five agents on this machine; the leader is killed while commands run.
#
# Prints what a user sees. Everything that was started is ended, after a failure and an interrupt as well.
#
# Usage: tests/demo_servers.sh PATH_OF_SIDEBIKE
set -eu

sidebike=$1
demo=demo-servers
# Half a minute: a takeover takes ten seconds.
patience=300
. "$(dirname "$0")/demo_common.sh"

# Debian keeps the server's programs out of PATH.
bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1)
bin=${bin:-$(dirname "$(command -v initdb || echo /none)")}
if [ ! -x "$bin/initdb" ]; then
    echo 'demo-servers: left out, there is no PostgreSQL (Debian: postgresql)'
    exit 0
fi

folder=$(mktemp -d)
chmod 755 "$folder"
pids=
pg_pids=

# PostgreSQL refuses to run as root.
as=
if [ "$(id -u)" -eq 0 ]; then
    user=postgres
    id "$user" >/dev/null 2>&1 || user=nobody
    chown "$user" "$folder"
    as="setpriv --reuid=$user --regid=$(id -g "$user") --clear-groups"
fi

end() {
    code=$?
    trap '' INT TERM HUP
    trap - EXIT
    # The agents first: they say goodbye to the servers.
    for pid in $pids; do
        kill "$pid" 2>/dev/null || :
    done
    for pid in $pids; do
        wait "$pid" 2>/dev/null || :
    done
    # INT: a fast end, without waiting for clients.
    for pid in $pg_pids; do
        kill -INT "$pid" 2>/dev/null || :
    done
    for pid in $pg_pids; do
        wait "$pid" 2>/dev/null || :
    done
    if [ "$code" -ne 0 ]; then
        tail -n 20 "$folder"/*.log >&2 || :
    fi
    rm -rf "$folder"
    exit "$code"
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Ports that are free, or the demo fails: what listens there would be asked in their place.
base=$((20000 + $$ % 10000))
primary=$base
second=$((base + 1))

sql() { $as "$bin/psql" -X -A -t -q -h 127.0.0.1 -p "$1" -U postgres -d "$2" -c "$3"; }
answers() { sql "$1" postgres 'SELECT 1' >/dev/null 2>&1; }
replicates() {
    [ "$(sql "$primary" postgres "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'")" = 1 ]
}

start_postgres() {
    (cd "$folder" && exec $as "$bin/postgres" -D "$folder/$1" -p "$2" -c listen_addresses=127.0.0.1 \
        -c "unix_socket_directories=$folder" -c shared_buffers=32MB) >>"$folder/$1.log" 2>&1 &
    pg_pids="$pg_pids $!"
    until_true answers "$2" || fail "PostgreSQL does not start"
}

echo '# Two PostgreSQL: the second one has every commit before it is acknowledged.'
$as "$bin/initdb" --no-sync -A trust -U postgres -D "$folder/one" >"$folder/initdb.log" 2>&1 || fail 'initdb failed'
start_postgres one "$primary"
$as "$bin/pg_basebackup" -R -X stream --checkpoint=fast --no-sync -h 127.0.0.1 -p "$primary" -U postgres \
    -D "$folder/two" >"$folder/basebackup.log" 2>&1 || fail 'pg_basebackup failed'
start_postgres two "$second"
sql "$primary" postgres "ALTER SYSTEM SET synchronous_standby_names = '*'"
sql "$primary" postgres 'SELECT pg_reload_conf()' >/dev/null
until_true replicates || fail 'the second PostgreSQL does not follow'
sql "$primary" postgres 'CREATE DATABASE sidebike'

export SIDEBIKE_DB="postgres://postgres@127.0.0.1:$primary,127.0.0.1:$second/sidebike"
start_server() {
    "$sidebike" server --listen "127.0.0.1:$1" 2>"$folder/server-$1.log" &
    eval "server_$1=$!"
    pids="$pids $!"
}
leads() { curl -fsS -o "$folder/answer" "http://127.0.0.1:$1/leader" 2>/dev/null; }
somebody_leads() {
    for port in $ports; do
        if leads "$port"; then
            leader=$port
            return 0
        fi
    done
    return 1
}

ports="$((base + 2)) $((base + 3)) $((base + 4))"
list=
for port in $ports; do
    echo "\$ SIDEBIKE_DB=postgres://… sidebike server --listen 127.0.0.1:$port"
    start_server "$port"
    list="$list${list:+,}127.0.0.1:$port"
done
until_true somebody_leads || fail 'no server leads'
echo "# $leader leads."

echo "\$ export SIDEBIKE_REGISTRY_ADDRESS=$list"
export SIDEBIKE_REGISTRY_ADDRESS="$list"
for n in 1 2 3 4 5; do
    SIDEBIKE_MACHINE_LABEL="web-$n" "$sidebike" agent 2>"$folder/agent-$n.log" &
    pids="$! $pids"
done
five_online() { [ "$("$sidebike" machines --json | grep -o '"state": *"online"' | wc -l)" -eq 5 ]; }
until_true five_online || fail 'the agents do not reach the servers'
echo '$ sidebike machines'
"$sidebike" machines

command='sleep 5; echo "done on $SIDEBIKE_MACHINE_LABEL"'
echo "\$ sidebike run -- '$command'"
"$sidebike" run -- "$command" >"$folder/run" 2>"$folder/run.log" &
run=$!
all_run() { [ "$("$sidebike" ps --json | grep -o '"running": *5' | wc -l)" -ge 1 ]; }
until_true all_run || fail 'the commands do not run'
eval "killed=\$server_$leader"
old=$leader
echo "# The leader is killed while they run: kill -9, port $old."
kill -9 "$killed"
since=$(date +%s)
wait "$run" || fail 'the task did not succeed'
cat "$folder/run"
[ "$(grep -c 'done on' "$folder/run")" -eq 5 ] || fail 'not all five machines ran it once'
until_true somebody_leads || fail 'no server leads'
echo "# $leader leads now, $(($(date +%s) - since)) s after the kill. What was done before is there:"
echo '$ sidebike ps'
"$sidebike" ps
[ "$leader" != "$old" ] || fail 'the killed server leads'
echo 'demo-servers: nothing was lost, nothing ran twice, all is well'
