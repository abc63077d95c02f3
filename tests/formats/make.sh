#!/usr/bin/env bash
# `make.sh BIN NAME`: packs what the isobar at BIN writes as tests/formats/NAME.tar.xz, which tests/suites/formats reads from
# then on with every later isobar. One for each release, and for each commit that changes a format; never made anew.
. "$(dirname "$0")/../lib/common.sh"
[ $# -eq 2 ] || { say "usage: make.sh BIN NAME"; exit 2; }
exec "$(venv confluent confluent-kafka==2.16.0)/bin/python" "$REPO/tests/formats/make.py" "$@"
