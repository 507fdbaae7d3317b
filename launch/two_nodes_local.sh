#!/bin/bash
# Two "hosts" on one Linux machine, to try what several machines do where there is only one: two network namespaces,
# joined by a virtual cable (a veth pair), each with its own `accelerate launch`, one process each, without a GPU.
#   sudo -E bash launch/two_nodes_local.sh [--cut] RECIPE [OPTIONS of foundation run]
# With --cut the cable of the second host is cut after the first checkpoint: both hosts must end with an error. Then it is
# mended, the same command is started again, and training goes on from the checkpoint.
# FOUNDATION_TIMEOUT_SECONDS (30 here): how long a host waits for the other. PORT (29500): where they meet.
# Exit codes: 0 trained to the end, 77 network namespaces are not permitted here, else something went wrong.
set -euo pipefail

cut=no
[[ ${1:-} != --cut ]] || { cut=yes; shift; }
[[ $# -gt 0 ]] || { echo "usage: two_nodes_local.sh [--cut] RECIPE [OPTIONS of foundation run]" >&2; exit 2; }
launch=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
runs=${FOUNDATION_RUNS:-runs}
export FOUNDATION_TIMEOUT_SECONDS=${FOUNDATION_TIMEOUT_SECONDS:-30}
# One core for each host; a GPU cannot be in two namespaces' process groups at once.
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=
# The cable's name inside a namespace; without it gloo takes the interface that the host's name resolves to.
export GLOO_SOCKET_IFNAME=cable

hosts=("foundation$$-0" "foundation$$-1")
addresses=(10.91.0.1 10.91.0.2)
pids=()
started=$(mktemp)
clean_up() {
  trap "" INT TERM
  rm -f "$started"
  [[ ${#pids[@]} -eq 0 ]] || kill "${pids[@]}" 2> /dev/null || true
  wait
  for host in "${hosts[@]}"; do ip netns delete "$host" 2> /dev/null || true; done
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

command -v ip > /dev/null || { echo "no network namespaces: the program ip (package iproute2) is missing" >&2; exit 77; }
for host in "${hosts[@]}"; do
  ip netns add "$host" || { echo "no network namespaces: run this as root" >&2; exit 77; }
  ip -n "$host" link set lo up
done
ip -n "${hosts[0]}" link add cable type veth peer name cable netns "${hosts[1]}"
for i in 0 1; do
  ip -n "${hosts[i]}" address add "${addresses[i]}/24" dev cable
  ip -n "${hosts[i]}" link set cable up
done

# Start both hosts; `codes` gets how each ended.
train() {
  pids=()
  for i in 0 1; do
    ip netns exec "${hosts[i]}" accelerate launch --config_file "$launch/nodes.yaml" \
      --num_machines 2 --num_processes 2 --machine_rank "$i" \
      --main_process_ip "${addresses[0]}" --main_process_port "${PORT:-29500}" \
      -m foundation run "$@" &
    pids+=($!)
  done
  if [[ $cut == yes ]]; then cut_cable; fi
  codes=()
  for pid in "${pids[@]}"; do
    code=0
    wait "$pid" || code=$?
    codes+=("$code")
  done
  pids=()
}

# Wait for a checkpoint that this script has made, then cut.
cut_cable() {
  until [[ -n $(find "$runs" -name COMMITTED -newer "$started" 2> /dev/null) ]]; do
    kill -0 "${pids[0]}" 2> /dev/null || { echo "training ended before it wrote a checkpoint" >&2; return; }
    sleep 0.2
  done
  ip -n "${hosts[1]}" link set cable down
  echo "the second host is cut off"
}

train "$@"
if [[ $cut == yes ]]; then
  echo "both hosts have ended, with the codes ${codes[*]}"
  [[ ${codes[0]} -ne 0 && ${codes[1]} -ne 0 ]] || { echo "a host did not notice that it is alone" >&2; exit 1; }
  cut=no
  ip -n "${hosts[1]}" link set cable up
  echo "the second host is back; the same command again"
  train "$@"
fi
echo "over the cable came $(ip netns exec "${hosts[0]}" cat /sys/class/net/cable/statistics/rx_bytes) bytes to the first host"
exit $((codes[0] > codes[1] ? codes[0] : codes[1]))
