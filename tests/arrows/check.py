"""The crate graph of DESIGN.md, section 11: an arrow goes only downwards. Reads `cargo metadata`, or a graph made up."""

import json
import subprocess
import sys

# Highest first; crates of one row may not know each other. `sim` is a test of everything below it (tests/sim).
ROWS = [
    ["sim"], ["isobar"], ["broker"], ["admin"], ["registry", "link"], ["security", "client"], ["store"], ["wal"], ["raft"],
    ["metadata"], ["groups"], ["journal"], ["rpc"], ["protocol"], ["host"], ["testkit", "model"],
]
# Crates that are nothing but tests.
TESTS = {"sim"}
HEIGHT = {name: len(ROWS) - i for i, row in enumerate(ROWS) for name in row}

# What a crate may not know although it lies lower, or comes from outside (docs/architecture.md, "must not know").
_MACHINE = {"host", "tokio", "futures-util", "object_store", "openraft", "rustix", "socket2", "tracing"}
FORBIDDEN = {
    "metadata": _MACHINE,  # pure: no tasks, no clocks, no I/O
    "groups": _MACHINE,
    "protocol": _MACHINE - {"tracing"},  # bytes in, bytes out
    "rpc": {"protocol", "kafka-protocol", "openraft", "object_store"},
    "journal": {"protocol", "rpc", "openraft", "object_store"},
    "raft": {"protocol", "kafka-protocol", "object_store"},
    "admin": {"protocol", "kafka-protocol", "broker"},
    "broker": {"journal", "openraft", "object_store"},
    "client": {"metadata", "raft", "wal", "store", "groups"},
}


def crate(package):
    return package.removeprefix("isobar-")


def read():
    out = subprocess.run(
        ["cargo", "metadata", "--format-version", "1", "--no-deps"], check=True, capture_output=True, text=True
    ).stdout
    graph = {}
    for package in json.loads(out)["packages"]:
        graph[crate(package["name"])] = [(crate(d["name"]), d["kind"] or "normal") for d in package["dependencies"]]
    return graph


def faults(name, dependencies):
    """What is wrong with this crate's dependencies, as sentences."""
    if name not in HEIGHT:
        return [f"{name} has no place in the graph"]
    found = []
    for other, kind in dependencies:
        if other in HEIGHT and HEIGHT[other] >= HEIGHT[name] and other != name:
            found.append(f"{name} -> {other}: the arrow does not go down")
        if other == "model":
            found.append(f"{name} -> model: it stands beside the product")
        if kind == "normal" and other == "testkit" and name not in TESTS:
            found.append(f"{name} -> testkit: only tests may use it")
        if kind == "normal" and other in FORBIDDEN.get(name, ()):
            found.append(f"{name} may not know {other}")
    return found


# Each must be found at fault, or this test proves nothing.
BAD = {
    "an arrow up": ("store", [("broker", "normal")]),
    "an arrow up in tests only": ("journal", [("wal", "dev")]),
    "an arrow along its row": ("registry", [("link", "normal")]),
    "a pure crate with tasks": ("metadata", [("tokio", "normal")]),
    "a pure crate with the machine": ("groups", [("host", "normal")]),
    "a crate nobody placed": ("utils", []),
    "the product knowing its tests": ("isobar", [("sim", "dev")]),
    "testkit outside tests": ("broker", [("testkit", "normal")]),
    "anyone using the models": ("metadata", [("model", "dev")]),
    "the quorum knowing Kafka": ("raft", [("kafka-protocol", "normal")]),
}


def main():
    passed = failed = 0

    def tell(good, name, why=""):
        nonlocal passed, failed
        passed, failed = passed + good, failed + (not good)
        print(f"{'ok  ' if good else 'FAIL'} {name}{': ' + why if why else ''}")

    for what, (name, dependencies) in BAD.items():
        tell(bool(faults(name, dependencies)), f"finds {what}")
    graph = read()
    tell("isobar" in graph and len(graph) > 5, "the graph was read")
    for name, dependencies in sorted(graph.items()):
        wrong = faults(name, dependencies)
        tell(not wrong, f"crate {name}", "; ".join(wrong))
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
