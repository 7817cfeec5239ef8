#!/bin/sh
# copy-into-pod.sh POD ADDRESS: an agent in a pod that runs already, until the pod is replaced.
# The container needs a shell only: no tar (kubectl cp needs that), no curl.
set -eu
pod=$1 address=$2
kubectl exec -i "$pod" -- sh -c 'cat > /tmp/sidebike && chmod +x /tmp/sidebike' < sidebike-x86_64-linux
kubectl exec "$pod" -- sh -c "SIDEBIKE_REGISTRY_ADDRESS=$address /tmp/sidebike agent > /tmp/sidebike.log 2>&1 &"
