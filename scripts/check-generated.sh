#!/usr/bin/env bash
# Fails if entangled/v1 is not what proto/ generates.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mktemp -d); trap 'rm -rf "$out"' EXIT
python -m grpc_tools.protoc -Iproto --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" proto/entangled/v1/*.proto
for file in "$out"/entangled/v1/*; do
  cmp -s "$file" "entangled/v1/$(basename "$file")" || { echo "entangled/v1/$(basename "$file") is not what proto/ generates: make proto" >&2; exit 1; }
done
echo "generated code is up to date"
