#!/usr/bin/env bash
# A real run in containers, checked from the host: its results and their owner, what the images hold, health, stopping.
#
# Needs a Docker engine and Compose (2, or docker-compose 1.29). Prints times and sizes; leaves nothing but the images.
set -euo pipefail
cd "$(dirname "$0")/.."

LIMIT_MB=300 # that the coordinator's image may add to its base
BUILD_SECONDS=1800
RUN_SECONDS=600
HEALTHY_SECONDS=120

say() { echo "compose test: $*"; }
fail() {
  echo "compose test failed: $*" >&2
  exit 1
}

docker info >/dev/null 2>&1 || fail "no Docker engine answers"
if docker compose version >/dev/null 2>&1; then
  COMPOSE=(docker compose)
elif command -v docker-compose >/dev/null; then
  COMPOSE=(docker-compose)
else
  fail "neither 'docker compose' nor docker-compose is here"
fi

user=$(id -u) group=$(id -g)
if [ "$user" = 0 ]; then # root owns what nobody took care of, too
  user=1234 group=1235
fi
scratch=$(mktemp -d)
runs_owner=$(stat -c %u:%g runs 2>/dev/null || true)
experiment=smoke run=

compose() {
  timeout "$([ "$1" = build ] && echo "$BUILD_SECONDS" || echo "$RUN_SECONDS")" env UID="$user" GID="$group" EXPERIMENT="$experiment" RUN="$run" \
    COMPOSE_PROJECT_NAME=entangled-test "${COMPOSE[@]}" "$@"
}
container() { compose ps -aq "$1"; }
inspect() { docker inspect -f "$2" "$(container "$1")"; }

clean_up() {
  status=$?
  if [ $status != 0 ]; then
    compose logs --tail 20 >&2 || true
  fi
  compose down -v >"$scratch/down.log" 2>&1 || cat "$scratch/down.log" >&2
  rm -rf "$scratch" "runs/compose-test-$$"*
  if [ -n "$runs_owner" ]; then
    [ "$(stat -c %u:%g runs)" = "$runs_owner" ] || chown "$runs_owner" runs
  else
    rmdir runs 2>/dev/null || true
  fi
}
trap clean_up EXIT

# ---- build

SECONDS=0
compose build >"$scratch/build.log" 2>&1 || {
  tail -40 "$scratch/build.log" >&2
  fail "the images cannot be built"
}
say "built in $SECONDS s"

# ---- a run ends by itself, and its folder is here and ours

run=compose-test-$$
SECONDS=0
compose up --no-color >"$scratch/up.log" 2>&1 || fail "'up' did not end well within $RUN_SECONDS s"
say "the $experiment experiment ran in $SECONDS s"
for service in folder coordinator cnn mlp; do
  code=$(inspect $service '{{.State.ExitCode}}')
  [ "$code" = 0 ] || fail "$service ended with exit code $code"
done

python3 - "runs/$run" <<'PYTHON' || fail "the run's folder is not as it should be"
import json, sys, zipfile
from pathlib import Path

run = Path(sys.argv[1])
summary = json.loads((run / "summary.json").read_text())
if set(summary["peers"]) != {"cnn", "mlp"}:
    sys.exit(f"summary.json is about {set(summary['peers'])}")
partitions = sorted(run.glob("exchange/epoch=*/*.parquet"))
for path in partitions:
    content = path.read_bytes()
    if not content[:4] == content[-4:] == b"PAR1":
        sys.exit(f"{path} is no Parquet file")
for name, values in summary["peers"].items():
    peer = run / "peers" / name
    epochs = len((peer / "metrics.jsonl").read_text().splitlines())
    if not 0 < epochs == len(partitions):
        sys.exit(f"{name} trained {epochs} epochs; the log has {len(partitions)}")
    if not zipfile.is_zipfile(peer / "final.keras"):
        sys.exit(f"{peer}/final.keras is no Keras file")
    if not values["test_accuracy"] > 0.5:
        sys.exit(f"{name} has learnt nothing: {values}")
    print(f"compose test: {name}: test accuracy {values['test_accuracy']:.2%} after {epochs} epochs")
print(f"compose test: {summary['exchanges']} exchanges in {summary['wall_seconds']:.1f} s")
PYTHON
foreign=$(find "runs/$run" ! '(' -uid "$user" -gid "$group" ')')
[ -z "$foreign" ] || fail "not owned by $user:$group: $foreign"
say "all $(find "runs/$run" -type f | wc -l) files in the run's folder belong to $user:$group"

# ---- what the images hold

frameworks() {
  docker run --rm --entrypoint python "$1" -c '
from importlib.metadata import distributions
from importlib.util import find_spec
found = {d.name.lower() for d in distributions()} | {n for n in ("tensorflow", "keras", "torch", "jax") if find_spec(n)}
print(*sorted(n for n in found if n.startswith(("tensorflow", "keras", "torch", "jax"))))'
}
base=$(sed -n 's/^ARG BASE=//p' Dockerfile)
docker image inspect "$base" >/dev/null 2>&1 || docker pull -q "$base"
base_bytes=$(docker image inspect -f '{{.Size}}' "$base")
for service in coordinator cnn; do
  image=$(inspect $service '{{.Image}}')
  added=$((($(docker image inspect -f '{{.Size}}' "$image") - base_bytes + 999999) / 1000000))
  owner=$(docker image inspect -f '{{.Config.User}}' "$image")
  case ${owner%%:*} in '' | 0 | root) fail "the image of $service runs as root" ;; esac
  holds=$(frameworks "$image")
  say "the image of $service adds $added MB to the $((base_bytes / 1000000)) MB of $base; frameworks: ${holds:-none}"
  case $service in
    coordinator)
      [ -z "$holds" ] || fail "the coordinator's image holds $holds"
      [ "$added" -le "$LIMIT_MB" ] || fail "the coordinator's image adds $added MB; $LIMIT_MB are allowed"
      ;;
    *) [ -n "$holds" ] || fail "a peer's image holds no framework" ;;
  esac
done
compose down -v >"$scratch/down.log" 2>&1

# ---- health, the processes' user, stopping: one peer waits for another that does not come

run=compose-test-$$-waiting
compose up -d cnn >"$scratch/up.log" 2>&1 || fail "'up -d cnn' failed: $(tail -3 "$scratch/up.log")"
for service in coordinator cnn; do
  SECONDS=0
  until [ "$(inspect $service '{{.State.Health.Status}}')" = healthy ]; do
    [ "$(inspect $service '{{.State.Running}}')" = true ] || fail "$service has ended"
    [ $SECONDS -lt $HEALTHY_SECONDS ] || fail "$service is not healthy: $(inspect $service '{{json .State.Health}}')"
    sleep 1
  done
  users=$(docker top "$(container $service)" -eo pid,uid | awk 'NR > 1 {print $2}' | sort -u)
  [ "$users" = "$user" ] || fail "processes of $service run as $users, not as $user"
  say "$service is healthy and runs as user $users"
done
answer=$(docker exec "$(container cnn)" python -m entangled.launch.health --peer mlp 2>&1) && fail "mlp counts as healthy"
say "for the peer that has not come, the check says: $answer"
[[ $answer == *"no connection to peer mlp"* ]] || fail "that is not why it should fail"

compose stop -t 20 cnn >"$scratch/stop.log" 2>&1
code=$(inspect cnn '{{.State.ExitCode}}')
[ "$code" = 130 ] || fail "a stopped peer ended with exit code $code, not 130"
[ "$(inspect coordinator '{{.State.Running}}')" = true ] || fail "the coordinator did not wait for the stopped peer"
say "a stopped peer is waited for"
compose down -v >"$scratch/down.log" 2>&1

# ---- a peer and the coordinator are killed; they come back, and the result is the same

first=compose-test-$$ run=compose-test-$$-killed
compose up -d >"$scratch/up.log" 2>&1 || fail "'up -d' failed: $(tail -3 "$scratch/up.log")"
killed=$(container cnn) coordinator=$(container coordinator)
until [ -e "runs/$run/exchange/epoch=0001.arrow" ]; do
  [ "$(docker inspect -f '{{.State.Running}}' "$coordinator")" = true ] || fail "the coordinator has ended"
  sleep 0.1
done
docker kill -s KILL "$killed" "$coordinator" >/dev/null
say "killed cnn and the coordinator in epoch 1"
compose up -d >"$scratch/up.log" 2>&1 || fail "'up -d' failed: $(tail -3 "$scratch/up.log")"
[ "$(container cnn)" = "$killed" ] || fail "another container took the place of the killed one"
code=$(timeout "$RUN_SECONDS" docker wait "$(container coordinator)") || fail "the run did not end"
[ "$code" = 0 ] || fail "after a kill, the coordinator ended with exit code $code"
python3 - "runs/$first" "runs/$run" <<'PYTHON' || fail "the kill changed the result"
import json, sys
from pathlib import Path

one, other = (json.loads((Path(run) / "summary.json").read_text())["peers"] for run in sys.argv[1:])
if one != other:
    sys.exit(f"{one} is not {other}")
PYTHON
say "they came back, and every figure is the undisturbed run's"
compose down -v >"$scratch/down.log" 2>&1

# ---- the log, read in a container

run=$first
compose run --rm log summary --json >"$scratch/summary" || fail "the log cannot be read in a container"
grep -q '"peer": "mlp"' "$scratch/summary" || fail "the log's summary has no mlp: $(cat "$scratch/summary")"
say "docker compose run --rm log summary reads it"

# ---- the same as on several hosts

scripts/compose-hosts-test.sh "runs/$first"
say "passed"
