#!/bin/bash
# Build Uklfile.example, boot it, talk to the Redis in it, and stop it again.
set -euo pipefail
cd "$(dirname "$0")/.."

if ((EUID != 0)); then
    # Base images are made by root; and who is not root could not end what sudo has started.
    command -v sudo >/dev/null || { echo "demo: run it as root, for there is no sudo" >&2 && exit 1; }
    exec sudo --preserve-env=UKLIMG_STORE,UKLIMG_CONFIG,UKLIMG_DEBIAN_MIRROR,http_proxy,https_proxy,no_proxy scripts/demo.sh
fi
uklimg=.venv/bin/uklimg
log=$(mktemp)
guest=

say() {
    if [[ -t 1 ]]; then printf '\n\033[1m%s\033[0m\n' "$1"; else printf '\n%s\n' "$1"; fi
}

stop() {
    if [[ -n $guest ]] && kill -0 "$guest" 2>/dev/null; then
        kill -TERM "$guest"
        wait "$guest" || true
    fi
    guest=
}

fail() {
    echo "demo: $1" >&2
    [[ -s $log ]] && { echo "demo: the last lines of the guest's console:" >&2 && tail -n 20 "$log" >&2; }
    exit 1
}

trap 'stop; rm -f "$log"' EXIT
trap 'exit 130' INT TERM

free_port() {
    .venv/bin/python - <<'PYTHON'
import socket
for port in (6379, 0):
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        print(probe.getsockname()[1])
        break
PYTHON
}

say "Building Uklfile.example: an unmodified Redis, linked into a Linux kernel"
echo "(The first time this builds a container and a kernel: ten minutes or more. After that it is seconds.)"
[[ -e Uklfile.lock ]] || cp scripts/example.lock Uklfile.lock
if ! "$uklimg" build -f Uklfile.example -t redis .; then
    # Debian's archive drops superseded versions after a while.
    echo "Once more, with the newest Redis of the archive"
    "$uklimg" lock --update redis -f Uklfile.example . && "$uklimg" build -f Uklfile.example -t redis . ||
        fail "the build failed"
fi

port=$(free_port)
say "Booting it, with port $port of this machine leading to the guest's 6379"
"$uklimg" run -p "$port:6379" redis >"$log" 2>&1 &
guest=$!
cli=(redis-cli -h 127.0.0.1 -p "$port")
for _ in $(seq 180); do
    kill -0 "$guest" 2>/dev/null || { guest=; fail "the guest ended before Redis answered"; }
    [[ $(timeout 5 "${cli[@]}" PING 2>/dev/null || true) == PONG ]] && break
    sleep 0.5
done
[[ $(timeout 5 "${cli[@]}" PING 2>/dev/null || true) == PONG ]] || fail "Redis did not answer in time"
grep -a -v '^$' "$log" | tail -n 4

say "Talking to it"
for words in "PING" "SET greeting hello" "GET greeting" "INCR visits" "INFO server"; do
    read -r -a command <<<"$words"
    echo "\$ redis-cli -p $port $words"
    timeout 20 "${cli[@]}" "${command[@]}" | tr -d '\r' | grep -E -v '^(#|$)' | sed -n 1,6p ||
        fail "Redis does not answer any more"
done

say "Stopping it"
stop
tail -n 2 "$log"

say "How to go on"
[[ -z ${SUDO_USER-} ]] || uklimg="sudo $uklimg" # the image is in root's store
cat <<EOF
  $uklimg images                        what there is
  $uklimg inspect redis                 what is in it
  $uklimg run -p $port:6379 redis        boot it again (Ctrl-C ends it)
  $uklimg push redis HOST/redis         send it to a registry
Uklfile.example explains every line of itself; docs/ has the rest.
EOF
