#!/usr/bin/env bash
# confluent-kafka against the broker at $BOOTSTRAP (tests/lib/broker.py sets it); arguments choose cases by name.
. "$(dirname "$0")/../../lib/common.sh"
python=$(venv confluent confluent-kafka==2.16.0)/bin/python
exec "$python" "$REPO/tests/clients/confluent/cases.py" "$@"
