#!/usr/bin/env bash
# Runs the commands of README.md as a newcomer would and checks what they print. Each command is looked up in the README
# first, so that neither can change without the other.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v curl >/dev/null || { echo 'readme: curl, which the README asks the API with, was not found: install the package curl' >&2; exit 1; }
# Nodes that somebody runs beside this are none of ours. Before `cleanup`, which removes it.
XDG_RUNTIME_DIR=$(mktemp -d)
export XDG_RUNTIME_DIR
work=$(mktemp -d)
pids=()
cleanup() {
    for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
    rm -rf "$work" "$XDG_RUNTIME_DIR"
}
trap cleanup EXIT
export PATH="${CARGO_TARGET_DIR:-$PWD/target}/release:$PATH"

fail() {
    echo "readme: $*" >&2
    for log in "$work"/*; do
        [ ! -f "$log" ] || { echo "--- $log" >&2; tail -n 20 "$log" >&2; }
    done
    exit 1
}
# The README's line, with ADDR still in it, must be there word for word.
says() { grep -qF -- "$1" README.md || fail "README.md no longer contains: $1"; }
# Starts a command in the background: name, then the command. Its stdout goes to $work/name.
background() {
    local name=$1
    shift
    # A background job of a shell that is not interactive ignores Ctrl-C; Python's exec undoes that.
    python3 -c 'import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); os.execvp(sys.argv[1], sys.argv[1:])' \
        "$@" >"$work/$name" 2>"$work/$name.err" &
    pids+=($!)
}
# Waits until a line that starts with a text is in a job's output and prints the rest of that line.
await() {
    for _ in $(seq 300); do
        if grep -q "^$2" "$work/$1" 2>/dev/null; then
            sed -n "s|^$2||p" "$work/$1" | head -n 1
            return
        fi
        sleep 0.2
    done
    fail "$1 never printed: $2"
}

says 'cargo run --release -- demo'
cargo run --release --locked --quiet -- demo | tee "$work/demo"
grep -q '4' <(sed -n '/^> What is 2+2?/,/^hops/p' "$work/demo" | sed 1d) || fail 'the demonstration does not know what 2+2 is'

says 'sepal bootstrap --listen /ip4/127.0.0.1/tcp/31337 --identity bootstrap.key'
background bootstrap sepal bootstrap --listen /ip4/127.0.0.1/tcp/31337 --identity "$work/bootstrap.key"
addr=$(await bootstrap 'listening ')
says 'sepal serve demo --blocks 0:4 --initial-peers ADDR_OF_THE_BOOTSTRAP'
background first sepal serve demo --blocks 0:4 --initial-peers "$addr"
says 'sepal serve demo --blocks 4:8 --initial-peers ADDR_OF_THE_BOOTSTRAP'
background second sepal serve demo --blocks 4:8 --initial-peers "$addr"
await first 'online demo-hf 0:4' >/dev/null
await second 'online demo-hf 4:8' >/dev/null
says 'sepal generate demo --initial-peers ADDR_OF_THE_BOOTSTRAP --prompt "What is 2+2?"'
answer=$(sepal generate demo --initial-peers "$addr" --prompt "What is 2+2?" 2>"$work/generate.err") || fail 'generate failed'
echo "What is 2+2? $answer"
grep -q 4 <<<"$answer" || fail "generate answered: $answer"

says 'sepal generate org/model --initial-peers ADDR --receipts receipts.jsonl --prompt "A cat in French is"'
sepal generate demo --initial-peers "$addr" --receipts "$work/receipts.jsonl" --prompt "What is 2+2?" >/dev/null 2>"$work/receipts.err" ||
    fail 'generate with receipts failed'
says 'sepal receipts verify receipts.jsonl'
sepal receipts verify "$work/receipts.jsonl" >"$work/verified" || fail 'the receipts are not valid'
grep -q '^valid: ' "$work/verified" || fail 'the receipts are not called valid'

says 'sepal generate org/model --initial-peers ADDR --private-ends 2 --prompt "A cat in French is"'
private=$(sepal generate demo --initial-peers "$addr" --private-ends 2 --prompt "What is 2+2?" --json 2>"$work/private.err") ||
    fail 'generate with private ends failed'
python3 -c 'import json, sys
answer = json.loads(sys.argv[1])
assert answer["text"].strip() == sys.argv[2].strip(), answer
places = [hop["blocks"] for hop in answer["route"] if hop["peer"] == "here"]
assert places == ["0:2", "6:8"], answer' "$private" "$answer" || fail 'the client did not hold both ends, or the text is another'
says 'sepal generate org/model --initial-peers ADDR --draft org/small --prompt "A cat in French is"'
drafted=$(sepal generate demo --initial-peers "$addr" --draft demo --speculate 4 --prompt "What is 2+2?" --json 2>"$work/draft.err") ||
    fail 'generate with a draft model failed'
python3 -c 'import json, sys
answer = json.loads(sys.argv[1])
assert answer["text"].strip() == sys.argv[2].strip(), answer
assert answer["accepted_by_model"] > 0, answer' "$drafted" "$answer" ||
    fail 'the draft model guessed nothing right, or the text is another'
says 'cargo run --release --example what_servers_see'
cargo run --release --locked --quiet --example what_servers_see | tee "$work/seen"
[ "$(grep -c ' %' "$work/seen")" = 8 ] || fail 'there is no line for each block'

says 'sepal chat org/model --initial-peers ADDR --system "Answer in French." <questions.txt'
printf 'What is 2+2?\nWhat is 7 plus 5?\n/stats\n' >"$work/questions.txt"
sepal chat demo --initial-peers "$addr" --temperature 0 --system "Answer in French." <"$work/questions.txt" | tee "$work/chat"
grep -qx '2 + 2 = 4.' "$work/chat" && grep -qx '7 + 5 = 12.' "$work/chat" || fail 'the chat does not know what 2+2 and 7+5 are'

says 'sepal api org/model --initial-peers ADDR  '
background api sepal api demo --initial-peers "$addr" --http 127.0.0.1:0
url=$(await api 'api: ')
question=$(grep -F 'curl http://127.0.0.1:8080/v1/chat/completions' README.md | sed "s|.* -d '||; s|'$||")
answer=$(curl -sS "$url/chat/completions" -H 'content-type: application/json' -d "$question") || fail 'the API does not answer'
python3 -c 'import json, sys; print(json.load(sys.stdin)["choices"][0]["message"]["content"])' <<<"$answer" | tee "$work/api.answer"
grep -qx '2 + 2 = 4.' "$work/api.answer" || fail "the API answered: $answer"
openai=$(scripts/openai-env.sh)
sed -n '/^```python$/,/^```$/{/^```/!p}' README.md | sed "s|http://127.0.0.1:8080/v1|$url|" >"$work/client.py"
[ "$("$openai" "$work/client.py")" = '2 + 2 = 4.' ] || fail 'the client of OpenAI got no answer'
says 'sepal demo --http 127.0.0.1:8080  '
background stage sepal demo --http 127.0.0.1:0
curl -sSf "$(await stage 'api: ')/models" | grep -q '"id":"demo"' || fail 'the API of the demonstration does not answer'

says 'sepal route org/model --initial-peers ADDR --why'
sepal route demo --initial-peers "$addr" --why | tee "$work/route"
grep -q '^demo-hf, 8 blocks, .* through 2 hop(s)$' "$work/route" && grep -q '^measured over 8 tokens: ' "$work/route" \
    || fail 'the route is not explained'
[ "$(grep -c ' online .* hop [12]$' "$work/route")" = 2 ] || fail 'the route leaves out a server'

says 'cargo run --release --example whois -- demo-hf 8 ADDR'
cargo run --release --locked --quiet --example whois -- demo-hf 8 "$addr" | tee "$work/whois"
[ "$(grep -c ' online ' "$work/whois")" = 8 ] || fail 'whois does not see a server for each of the 8 blocks'

says 'sepal health --initial-peers ADDR  '
sepal health --initial-peers "$addr" | tee "$work/health"
grep -q '^demo (demo-hf) is healthy, 8 blocks' "$work/health" || fail 'the swarm is not healthy'
says 'sepal health --initial-peers ADDR --json'
covered=$(sepal health --initial-peers "$addr" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["totals"]["blocks_covered"])')
[ "$covered" = 8 ] || fail "$covered of 8 blocks are served"
says 'sepal health --initial-peers ADDR --http 127.0.0.1:8080'
background map sepal health --initial-peers "$addr" --http 127.0.0.1:0
python3 - "$(await map 'health map ')" <<'END' || fail 'the map does not answer'
import json, sys, urllib.request
def get(path):
    return urllib.request.urlopen(sys.argv[1] + path, timeout=20).read().decode()
assert get("").startswith("<!doctype html>")
state = json.loads(get("api/v1/state"))["model_reports"][0]
assert state["state"] == "healthy" and len(state["server_rows"]) == 2, state
peer = state["server_rows"][0]["peer_id"]
assert json.loads(get("api/v1/is_reachable/" + peer))["success"] is True
assert '\nsepal_model_blocks_covered{model="demo-hf"} 8\n' in get("metrics")
END

# The name of a job's node among those that run here.
name_of() {
    local listening
    listening=$(await "$1" 'listening ')
    echo "${listening: -8}"
}
node=$(name_of first)
says 'sepal status   '
if sepal status 2>"$work/status.err"; then fail 'sepal status does not ask which node is meant'; fi
grep -q "^  $node " "$work/status.err" || fail 'sepal status does not list the first server'
sepal status --node "$node" | tee "$work/status"
grep -q '^model .* online: blocks 0:4 of 8' "$work/status" || fail 'the status leaves out the blocks'
says 'sepal sessions   '
sepal sessions --node "$node"
says 'sepal peers   '
sepal peers --node "$node" | tee "$work/peers"
grep -q ' sepal/' "$work/peers" || fail 'nobody is connected to the first server'
says 'sepal top   '
python3 - "$node" <<'END' || fail 'sepal top does not draw, or does not end with q'
import fcntl, os, pty, struct, sys, termios
pid, terminal = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    os.environ["TERM"] = "xterm"
    os.execvp("sepal", ["sepal", "top", "--node", sys.argv[1]])
seen = b""
while b"arrows scroll" not in seen:
    seen += os.read(terminal, 65536)
os.write(terminal, b"q")
try:
    while os.read(terminal, 65536):
        pass
except OSError:
    pass
assert os.waitpid(pid, 0)[1] == 0
END
says 'sepal pause   '
[ "$(sepal pause --node "$node" | head -n 1)" = 'paused, was online' ] || fail 'the first server is not paused'
says 'sepal resume   '
[ "$(sepal resume --node "$node" | head -n 1)" = 'online, was paused' ] || fail 'the first server does not go on'
says 'sepal swarms   '
sepal swarms --node "$node" | tee "$work/swarms"
grep -q '^1 .* online .* demo-hf 0:4 ' "$work/swarms" || fail 'the first server does not say which swarm it is in'
background other sepal bootstrap --listen /ip4/127.0.0.1/tcp/0
other=$(await other 'listening ')
says 'sepal connect ADDR --name friends   '
sepal connect "$other" --name friends --node "$node" | tee "$work/friends"
grep -q '^2 .*friends .* online .* demo-hf 0:4 ' "$work/friends" || fail 'the first server is in no other swarm'
says 'sepal disconnect friends   '
[ "$(sepal disconnect friends --node "$node")" = 'left friends' ] || fail 'the first server does not leave the other swarm'
sepal stop --node "$(name_of other)" >/dev/null
wait "${pids[-1]}" || fail 'the node of the other swarm did not end with 0'
unset 'pids[-1]'
says 'sepal log debug   '
sepal log debug --node "$node" | grep -q '^logging sepal=debug,info, was ' || fail 'the first server does not log more'
for order in 'drain --timeout 600' stop; do
    says "sepal $order   "
    background short sepal bootstrap --listen /ip4/127.0.0.1/tcp/0
    sepal $order --node "$(name_of short)" | tee "$work/order"
    grep -qx stopped "$work/order" || fail "sepal $order does not say that the node stopped"
    wait "${pids[-1]}" || fail "sepal $order did not end the node with 0"
    unset 'pids[-1]'
    rm "$work/short"
done

says 'sepal serve org/model --initial-peers ADDR --max-cpu 50% --max-bandwidth up=10mbit,down=50mbit'
says 'sepal serve org/model --initial-peers ADDR --schedule "mon-fri 18:00-08:00, sat-sun"'
another_day=$(LC_ALL=C date -d '3 days' +%a)
background polite sepal serve demo --blocks 0:1 --initial-peers "$addr" --max-cpu 50% --max-bandwidth up=10mbit,down=50mbit --schedule "$another_day"
await polite 'online demo-hf 0:1' >/dev/null
polite=$(name_of polite)
sepal status --node "$polite" | tee "$work/polite.status"
grep -q "^state .* paused by the schedule until $another_day 00:00" "$work/polite.status" || fail 'the schedule does not pause the server'
sepal stop --node "$polite"
wait "${pids[-1]}" || fail 'the polite server did not end with 0'
unset 'pids[-1]'

says 'sepal doctor demo --initial-peers ADDR'
sepal doctor demo --initial-peers "$addr" --listen /ip4/127.0.0.1/tcp/0 | tee "$work/doctor" || fail 'the doctor finds something wrong'
grep -q '^healthy: ' "$work/doctor" || fail 'the doctor does not say that all is well'

says 'sepal info --save'
XDG_CACHE_HOME="$work/cache" sepal info --save | tee "$work/info"
grep -q '^kernels ' "$work/info" && grep -q '^q4_0 .* at most ' "$work/info" || fail 'sepal info leaves something out'

says 'sepal eligible'
XDG_CACHE_HOME="$work/cache" sepal eligible | tee "$work/eligible"
names=$(sed -n '/^model  *blocks/,/^```/p' README.md | sed '1d; $d' | cut -d' ' -f1)
[ "$(wc -l <<<"$names")" -gt 20 ] || fail 'the README has no sample of sepal eligible'
for name in $names; do grep -q "^$name " "$work/eligible" || fail "sepal eligible does not know $name"; done
says 'sepal eligible org/model --quant q4_k --initial-peers ADDR'
sepal eligible demo --quant q4_k --initial-peers "$addr" | tee "$work/lacking"
grep -q 'blocks 0:8 once more' "$work/lacking" || fail 'sepal eligible does not say what the swarm lacks'
says 'sepal benchmark org/model --initial-peers ADDR'
sepal benchmark demo --initial-peers "$addr" | tee "$work/benchmark"
grep -q '^announced in bfloat16: ' "$work/benchmark" && grep -q 'measured by an echo with' "$work/benchmark" \
    || fail 'the benchmark does not explain what is announced'

mkdir "$work/.folder" # no log, which the others in there are
says 'sepal init -- serve demo --blocks 0:4 --initial-peers ADDR  '
(cd "$work/.folder" && sepal init -- serve demo --blocks 0:4 --initial-peers "$addr")
says 'sepal config  '
(cd "$work/.folder" && sepal config) | tee "$work/config"
grep -q '^blocks = \["0:4"\]  *# sepal.toml:[0-9]*$' "$work/config" || fail 'sepal config does not say where the blocks are set'
says 'SEPAL_SERVE_BLOCKS=4:8 sepal serve  '
background configured env -C "$work/.folder" SEPAL_SERVE_BLOCKS=4:8 sepal serve
await configured 'online demo-hf 4:8' >/dev/null

says 'sepal swarm-key swarm.key'
sepal swarm-key "$work/swarm.key"
says 'sepal serve demo --new-swarm --swarm-key swarm.key'
background keyed sepal serve demo --new-swarm --swarm-key "$work/swarm.key" --listen /ip4/127.0.0.1/tcp/0
private=$(await keyed 'listening ')
await keyed 'online demo-hf 0:8' >/dev/null
says 'sepal generate demo --initial-peers ADDR --swarm-key swarm.key --prompt "What is 2+2?"'
answer=$(sepal generate demo --initial-peers "$private" --swarm-key "$work/swarm.key" --prompt "What is 2+2?" 2>"$work/generate.err") \
    || fail 'generate failed in the private swarm'
grep -q 4 <<<"$answer" || fail "the private swarm answered: $answer"
if sepal generate demo --initial-peers "$private" --prompt "What is 2+2?" >/dev/null 2>"$work/generate.err"; then
    fail 'a client without the key got into the private swarm'
fi
grep -q -- '--swarm-key' "$work/generate.err" || fail 'the client without the key is not told what it lacks'

says 'cargo run --release --example tensor_exchange -- --listen /ip4/0.0.0.0/tcp/31400'
cargo build --release --locked --quiet --example tensor_exchange
exchange="${CARGO_TARGET_DIR:-$PWD/target}/release/examples/tensor_exchange"
background exchange "$exchange" --listen /ip4/0.0.0.0/tcp/31400
says 'cargo run --release --example tensor_exchange -- --connect ADDR --send'
"$exchange" --connect "$(await exchange 'listening ')" --send | tee "$work/exchanged"
[ "$(grep -c 'hash ok' "$work/exchanged")" = 18 ] || fail 'not every tensor arrived'

# Ctrl-C: the servers say goodbye and exit with 0.
for pid in "${pids[@]}"; do kill -INT "$pid"; done
for pid in "${pids[@]}"; do wait "$pid" || fail "process $pid did not exit with 0 after Ctrl-C"; done
pids=()
echo "readme: all commands do what they say"
