# Sourced after common.sh: object stores on loopback, installed once, started and ended by the suite that sources this.
# Versions are pinned here and nowhere else.
VERSITYGW_VERSION=v1.8.0
MINIO_VERSION=v0.0.0-20260212201848-7aac2a2c5b7c
AZURITE_VERSION=3.35.0

# go_tool NAME MODULE VERSION : prints the path of a Go program, built once.
go_tool() {
    local name=$1 module=$2 version=$3 dir
    dir=$CACHE/go-$name-$version
    if [ ! -x "$dir/$name" ]; then
        debian go=golang-go
        say "go install $module@$version"
        locked "go-$name" bash -c '
            [ -x "$1/$2" ] || GOBIN=$1 go install "$3@$4"
        ' _ "$dir" "$name" "$module" "$version" >&2
    fi
    echo "$dir/$name"
}

versitygw() { go_tool versitygw github.com/versity/versitygw/cmd/versitygw "$VERSITYGW_VERSION"; }
minio() { go_tool minio github.com/minio/minio "$MINIO_VERSION"; }

# The directory that holds node_modules/.bin/azurite-blob.
azurite() {
    local dir=$CACHE/npm-azurite-$AZURITE_VERSION
    if [ ! -e "$dir/node_modules/.bin/azurite-blob" ]; then
        debian npm=npm
        say "npm install azurite@$AZURITE_VERSION"
        locked npm-azurite bash -c '
            [ -e "$1/node_modules/.bin/azurite-blob" ] ||
                { mkdir -p "$1" && npm install --silent --no-fund --no-audit --prefix "$1" "azurite@$2"; }
        ' _ "$dir" "$AZURITE_VERSION" >&2
    fi
    echo "$dir/node_modules/.bin/azurite-blob"
}
