#!/usr/bin/env bash
# Apache's Java client, with its Admin, against the broker at $BOOTSTRAP (tests/lib/broker.py sets it); arguments choose
# cases by name. MAIN=Alive is another program of the same client, for tests/members.
. "$(dirname "$0")/../../lib/common.sh"
here=$REPO/tests/clients/java
debian javac=openjdk-17-jdk-headless
jars=$(jars java-client "$here/pom.xml")
classes=$CACHE/classes-java-client/$(cat "$here"/src/*.java | sha256sum | cut -c1-16)
if [ ! -f "$classes/Main.class" ]; then
    mkdir -p "$classes"
    javac -Xlint:all,-serial -Werror -cp "$jars/*" -d "$classes" "$here"/src/*.java
fi
exec java -Xmx512m -Dorg.slf4j.simpleLogger.defaultLogLevel=error -cp "$classes:$jars/*" "${MAIN:-Main}" "$@"
