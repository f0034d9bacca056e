#!/usr/bin/env bash
# examples/demo.sh [SSMJIT [FOLDER]]: from a model's Hugging Face config to its kernels. With a GPU it measures them too.
# Exit 0: all that this machine can do went well.
set -euo pipefail
ssmjit=$(realpath "${1:-build/release/ssmjit}")
out=$(realpath -m "${2:-$(dirname "$ssmjit")/demo}")
cd "$(dirname "$0")/.."
mkdir -p "$out"
spec=$out/nemotron3-super-tp8.json
batches=1,4,16,64,256,1024
title() { printf '\n== %s\n' "$*"; }
indent() { sed 's/^/   /'; }
# The same, without the SPEC's path at the start of a line.
short() { sed "s|^$spec:update ||; s|^|   |"; }
# Notes and progress are for a terminal; after a failure they are shown in any case.
quietly() { "$@" 2>"$out/stderr.txt" || { local rc=$?; cat "$out/stderr.txt" >&2; return $rc; }; }
run() { if [ -t 2 ]; then "$@"; else quietly "$@"; fi; }

title "1. The config of a model, for one of 8 tensor-parallel ranks"
echo "   dt and the weights D, dt_bias are set to fp32, as the shipped table was measured. By the config alone they are"
echo "   bf16: another kernel of the same cost, for which the table's answer is \"similar\" in place of \"exact\"."
hf=(--from-hf examples/configs/nemotron3-super.config.json:update --tp 8 --set "dt=fp32,weights=fp32")
"$ssmjit" describe "${hf[@]}" --batches "$batches" | grep -v '^  json:\|^  sizes from:' | indent
"$ssmjit" describe "${hf[@]}" --json >"$spec"

title "2. Looked up, not measured here: the plan for each batch in the tables of an H200"
"$ssmjit" table lookup "$spec" --device h200 --batches "$batches" >"$out/lookup.txt"
short <"$out/lookup.txt"

title "3. Those plans as CUDA C++ and as cubins for sm_90a: compiled here, past the cache; no GPU is needed"
grep -o 'block_m=[^ ]*' "$out/lookup.txt" | sort -u >"$out/plans.txt"
number=0
while read -r plan; do
  number=$((number + 1))
  file=$out/update_$number.cu
  quietly "$ssmjit" emit "$spec" --arch sm_90a --plan "$plan" -o "$file"
  echo "   $file ($(wc -l <"$file") lines)"
  quietly "$ssmjit" compile "$spec" --arch sm_90a --plan "$plan" --no-cache | grep -v '^compiled 1, failed 0' | short
done <"$out/plans.txt"

title "4. Those files verified here against the double-precision recurrence, on the GPU if there is one, else on the CPU"
for file in $(seq -f "$out/update_%g.cu" "$number"); do
  quietly "$ssmjit" verify "$spec" --source "$file" >"$out/verified.txt" || [ $? = 3 ] || { cat "$out/verified.txt"; exit 1; }
  printf '   %s: ' "$(basename "$file")"
  sed -n 's/.*  ok: //p; /^verified/p' "$out/verified.txt" | paste -sd' '
done

machine=$("$ssmjit" doctor || true)
if ! grep -q '^ok   gpu 0' <<<"$machine"; then
  title "5. Not measured: this machine has no GPU"
  sed -n 's/^lack gpu  */   /p' <<<"$machine"
  echo "   With one, this program goes on to tune and time the kernels on it."
  exit 0
fi

title "5. Tuned here: 24 of the legal plans at three batches (leave --sample out for all)"
rm -f "$out/tuned.jsonl"
run "$ssmjit" tune "$spec" --sample 24 --batches 1,64,1024 --budget 60 --journal "$out/tuned.jsonl" -o "$out/tuned.json" |
  indent

title "6. Timed here: the plans of the tables in force, then those of the sweep above"
run "$ssmjit" bench "$spec" --batches 1,64,1024 | short
SSMJIT_TABLES=$out/tuned.json run "$ssmjit" bench "$spec" --batches 1,64,1024 | sed 1,2d | short

title "7. What the sweep found, as one page for a browser"
"$ssmjit" report "$out/tuned.jsonl" --table "$out/tuned.json" -o "$out/report.html" | indent
