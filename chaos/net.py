"""A network of its own for a cluster: a bridge with a network namespace for each node on it, and what can go wrong on the way.

`enter_own` puts the driver into a network and a mount namespace of its own, so that nothing of this is seen outside, and nothing
is left of it however the driver ends. Clients, store and driver are at the bridge; each node is behind a cable.
"""

import ctypes
import os
import pathlib
import re
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "lib"))
from broker import die_with_parent  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
# The driver's and all clients' address, and the store's.
CLIENTS, STORE = "10.77.0.254", "10.77.0.253"
# By this the driver itself asks how the nodes are: it is never cut.
ADMIN_PORT = 9644
_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_INSIDE = "ISOBAR_CHAOS_INSIDE"


def run(*command, text=None, namespace=None):
    enter = namespace and (lambda: _checked(_LIBC.setns(namespace, _CLONE_NEWNET)))
    done = subprocess.run(command, input=text, capture_output=True, text=True, preexec_fn=enter, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _checked(result):
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def missing():
    """Why there can be no network of our own; None if there can."""
    if os.geteuid() != 0:
        return "not root"
    for tool in ("ip", "iptables-restore", "unshare"):
        if not any(os.access(f"{path}/{tool}", os.X_OK) for path in ("/usr/sbin", "/sbin", "/usr/bin", "/bin")):
            return f"no {tool}"
    tries = "ip link add name chaos-try type bridge && iptables -A INPUT -s 10.77.0.1 -j DROP"
    done = subprocess.run(["unshare", "--net", "--mount", "sh", "-c", tries], capture_output=True, text=True, check=False)
    return done.stderr.strip() or None if done.returncode else None


def enter_own():
    """Starts this program again in namespaces of its own, unless it is there already. A process that only ends this one's
    parents leaves it as it would be without."""
    if os.environ.get(_INSIDE):
        return
    os.environ[_INSIDE] = "1"
    own = ["unshare", "--net", "--mount", "--propagation", "private"]
    os.execvp(own[0], [*own, sys.executable, *sys.argv])


def sent_to(node):
    """Bytes of all packets that went to a node since its cable is there."""
    dev = pathlib.Path("/proc/self/net/dev").read_text()
    return int(re.search(rf"^ *node-{node}:(?: +(\d+)){{9}}", dev, re.MULTILINE)[1])


def is_own():
    return bool(os.environ.get(_INSIDE))


class Net:
    """Nodes are 1, 2, …; a peer is one of them, CLIENTS or STORE."""

    def __init__(self, size):
        self.faults, self.delays, self.holders, self.spaces = {}, {}, {}, {}
        # Packets that met a rule which is gone by now.
        self.met = 0
        self.healed = 0.0
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "name", "nodes", "type", "bridge")
        run("ip", "address", "add", f"{CLIENTS}/24", "dev", "nodes")
        run("ip", "address", "add", f"{STORE}/24", "dev", "nodes")
        run("ip", "link", "set", "nodes", "up")
        for node in range(1, size + 1):
            # The namespace is there as long as somebody is in it.
            holder = subprocess.Popen(["sleep", "infinity"], stdin=subprocess.DEVNULL, preexec_fn=self._new_namespace)
            self.holders[node] = holder
            self.spaces[node] = os.open(f"/proc/{holder.pid}/ns/net", os.O_RDONLY)
            run("ip", "link", "add", "name", f"node-{node}", "type", "veth", "peer", "name", "cable", "netns", str(holder.pid))
            run("ip", "link", "set", f"node-{node}", "master", "nodes", "up")
            for command in (("address", "add", f"{self.address(node)}/24", "dev", "cable"), ("link", "set", "cable", "up"),
                            ("link", "set", "lo", "up")):
                run("ip", *command, namespace=self.spaces[node])

    @staticmethod
    def _new_namespace():
        die_with_parent()
        _checked(_LIBC.unshare(_CLONE_NEWNET))

    @staticmethod
    def address(node):
        return f"10.77.0.{node}"

    def enter(self, node):
        """For a child process: goes into the node's namespace."""
        _checked(_LIBC.setns(self.spaces[node], _CLONE_NEWNET))

    def cut(self, name, node, peers, ways=("in", "out"), share=1.0):
        """The fault `name`: a share of the packets between a node and peers is lost, until `heal`."""
        chance = "" if share == 1.0 else f"-m statistic --mode random --probability {share:.4f} "
        self._add(name, node, [f"{way} {chance}-j DROP" for way in self._ways(peers, ways)])

    def slow(self, name, node, peers, delay_ms, jitter_ms, seed, ways=("in", "out")):
        """Each packet between a node and peers waits."""
        command = [sys.executable, str(HERE / "delay.py"), str(delay_ms), str(jitter_ms), str(seed)]
        enter = lambda: (die_with_parent(), self.enter(node))  # noqa: E731
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=enter)
        if process.stdout.readline() != "READY\n":
            raise OSError("delay.py did not start")
        self.delays.setdefault(name, []).append(process)
        self._add(name, node, [f"{way} -j NFQUEUE --queue-num 0 --queue-bypass" for way in self._ways(peers, ways)])

    def _ways(self, peers, ways):
        for peer in peers:
            address = peer if isinstance(peer, str) else self.address(peer)
            if "in" in ways:
                yield f"-A INPUT -s {address}"
            if "out" in ways:
                yield f"-A OUTPUT -d {address}"

    def heal(self, name):
        """Ends the fault; how many packets it met."""
        before = self.met
        for node in [node for node, faults in self.faults.items() if faults.pop(name, None)]:
            self._write(node)
        for process in self.delays.pop(name, ()):
            process.terminate()
            process.communicate(timeout=30)
        self.healed = time.monotonic()
        return self.met - before

    def was_broken(self, since):
        """A fault is on, or was since this moment of the monotonic clock."""
        return any(self.faults.values()) or self.healed > since

    def _add(self, name, node, rules):
        self.faults.setdefault(node, {}).setdefault(name, []).extend(rules)
        self._write(node)

    def _write(self, node):
        """The node's rules, all at once. What the old ones met is counted first."""
        counts = run("iptables-save", "-c", "-t", "filter", namespace=self.spaces[node])
        self.met += sum(int(n) for n in re.findall(r"^\[(\d+):\d+\].* -j (?:DROP|NFQUEUE)", counts, re.MULTILINE))
        rules = [rule for rules in self.faults[node].values() for rule in rules]
        admin = [f"-A INPUT -p tcp --dport {ADMIN_PORT} -j ACCEPT", f"-A OUTPUT -p tcp --sport {ADMIN_PORT} -j ACCEPT"]
        text = "\n".join(["*filter", ":INPUT ACCEPT", ":OUTPUT ACCEPT", *admin, *rules, "COMMIT", ""])
        run("iptables-restore", text=text, namespace=self.spaces[node])
