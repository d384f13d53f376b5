#!/usr/bin/env bash
# A run of several Compose projects, as on several hosts: over mutual TLS, through a published port, each with its own run
# folder; a peer's container is killed and comes back. compose-hosts-test.sh REFERENCE compares the result, to the bit, with
# that of the run folder REFERENCE (of the experiment `smoke`); scripts/compose-test.sh calls it.
set -euo pipefail
cd "$(dirname "$0")/.."

RUN_SECONDS=300
reference=$1

say() { echo "compose hosts test: $*"; }
fail() {
  echo "compose hosts test failed: $*" >&2
  exit 1
}

if docker compose version >/dev/null 2>&1; then COMPOSE=(docker compose); else COMPOSE=(docker-compose); fi
user=$(id -u) group=$(id -g)
if [ "$user" = 0 ]; then # root owns what nobody took care of, too
  user=1234 group=1235
fi
scratch=$(mktemp -d)
run=compose-hosts-test-$$
host=$(docker network inspect bridge -f '{{(index .IPAM.Config 0).Gateway}}')
# Docker 20 may name the bridge's gateway only after its second start.
[ -n "$host" ] || host=$(ip -4 -o addr show docker0 | sed 's/.* inet \([0-9.]*\).*/\1/')
port=$((20000 + $$ % 10000))

# project NAME FILE ARGUMENTS…: as on the host of that name
project() {
  local name=$1 file=$2
  shift 2
  timeout "$RUN_SECONDS" env UID="$user" GID="$group" EXPERIMENT=smoke RUN="$run-$name" PORT="$port" PEER="$name" COORDINATOR="$host:$port" \
    CERTS="$scratch/certs" "${COMPOSE[@]}" -p "hosts-test-$name" -f "compose/$file.yml" "$@"
}
container() { project "$1" "$2" ps -aq "$3"; }

clean_up() {
  status=$?
  if [ $status != 0 ]; then
    project coordinator coordinator logs --tail 20 >&2 || true
    for peer in cnn mlp; do project $peer peer logs --tail 20 >&2 || true; done
  fi
  project coordinator coordinator down -v >"$scratch/down.log" 2>&1 || cat "$scratch/down.log" >&2
  for peer in cnn mlp; do project $peer peer down -v >"$scratch/down.log" 2>&1 || cat "$scratch/down.log" >&2; done
  rm -rf "$scratch" "runs/$run"*
}
trap clean_up EXIT

SECONDS=0
project coordinator coordinator build >"$scratch/build.log" 2>&1 || fail "$(tail -20 "$scratch/build.log")"
project cnn peer build >"$scratch/build.log" 2>&1 || fail "$(tail -20 "$scratch/build.log")"
say "built in $SECONDS s"

chmod 755 "$scratch"
mkdir "$scratch/certs" && chown "$user:$group" "$scratch/certs"
docker run --rm --user "$user:$group" -v "$scratch/certs:/certs" entangled-coordinator \
  certs init smoke --host "$host" --dir /certs >"$scratch/certs.log" || fail "no certificates: $(cat "$scratch/certs.log")"

SECONDS=0
for peer in cnn mlp; do # before there is a coordinator: they wait for one
  project $peer peer up -d >"$scratch/up.log" 2>&1 || fail "$peer: $(tail -3 "$scratch/up.log")"
done
project coordinator coordinator up -d >"$scratch/up.log" 2>&1 || fail "coordinator: $(tail -3 "$scratch/up.log")"
coordinator=$(container coordinator coordinator coordinator)
cnn=$(container cnn peer peer)
until [ -e "runs/$run-coordinator/exchange/epoch=0001.arrow" ]; do
  [ "$(docker inspect -f '{{.State.Running}}' "$coordinator")" = true ] || fail "the coordinator has ended"
  [ $SECONDS -lt $RUN_SECONDS ] || fail "no second epoch within $RUN_SECONDS s"
  sleep 0.1
done
docker kill -s KILL "$cnn" >/dev/null
say "killed the container of cnn in epoch 1"
project coordinator coordinator run --rm log summary >"$scratch/summary" || fail "the log cannot be read while the run is on"
grep -q "cnn" "$scratch/summary" || fail "the log's summary has no cnn: $(cat "$scratch/summary")"
project cnn peer up -d >"$scratch/up.log" 2>&1 || fail "cnn: $(tail -3 "$scratch/up.log")"
[ "$(container cnn peer peer)" = "$cnn" ] || fail "another container took the place of the killed one"
for one in "$coordinator" "$cnn" "$(container mlp peer peer)"; do
  code=$(timeout "$RUN_SECONDS" docker wait "$one") || fail "the run did not end"
  [ "$code" = 0 ] || fail "$(docker inspect -f '{{.Name}}' "$one") ended with exit code $code"
done
say "the run took $SECONDS s"

docker run --rm --user "$user:$group" -v "$PWD/runs:/runs:ro" entangled-coordinator \
  log diff "/runs/${reference#runs/}" "/runs/$run-coordinator" >"$scratch/diff" || fail "$(cat "$scratch/diff")"
python3 - "$reference" "runs/$run" <<'PYTHON' || fail "the result is not the single host's"
import json, sys, zipfile
from pathlib import Path

reference, run = Path(sys.argv[1]), sys.argv[2]
summaries = [json.loads((folder / "summary.json").read_text())["peers"] for folder in (reference, Path(f"{run}-coordinator"))]
if summaries[0] != summaries[1]:
    sys.exit(f"{summaries[0]} is not {summaries[1]}")
for name in ("cnn", "mlp"):
    one, other = (
        zipfile.ZipFile(folder / "peers" / name / "final.keras").read("model.weights.h5") for folder in (reference, Path(f"{run}-{name}"))
    )
    if one != other:
        sys.exit(f"the final weights of {name} differ")
PYTHON
foreign=$(find "runs/$run-"* ! '(' -uid "$user" -gid "$group" ')')
[ -z "$foreign" ] || fail "not owned by $user:$group: $foreign"
say "every exchange and every weight is the single host's, to the bit; all files belong to $user:$group"
say "passed"
