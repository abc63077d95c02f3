#!/usr/bin/env bash
# Debian's kcat against the broker at $BOOTSTRAP (tests/lib/broker.py sets it); arguments choose cases by name.
. "$(dirname "$0")/../../lib/common.sh"
debian kcat=kcat
exec python3 "$REPO/tests/clients/kcat/cases.py" "$@"
