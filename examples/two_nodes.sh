#!/bin/sh
# Train T-maze on two nodes of one host: two network namespaces, joined by a virtual cable.
# Needs root and iproute2: examples/two_nodes.sh [option=value ...]
set -eu
first=mtxl_a
second=mtxl_b
clean() {
    ip netns del $first 2>/dev/null || true
    ip netns del $second 2>/dev/null || true
}
clean
trap clean EXIT
ip netns add $first
ip netns add $second
ip link add cable netns $first type veth peer name cable netns $second
address=1
for node in $first $second; do
    ip -n $node link set lo up
    ip -n $node addr add 10.77.0.$address/24 dev cable
    ip -n $node link set cable up
    address=$((address + 1))
done

# GLOO_SOCKET_IFNAME: the host's name does not resolve to the cable's address.
rank=0
pids=""
for name in $first $second; do
    ip netns exec $name env GLOO_SOCKET_IFNAME=cable OMP_NUM_THREADS=1 "${PYTHON:-python}" -m \
        torch.distributed.run --nnodes=2 --node-rank=$rank --nproc-per-node="${PROCESSES:-1}" \
        --master-addr=10.77.0.1 --master-port=29400 -m mtxl_rl.train env=TMaze device=cpu "$@" &
    pids="$pids $!"
    rank=$((rank + 1))
done
for pid in $pids; do
    wait "$pid"
done
