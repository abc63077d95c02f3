"""What the load felt, moment by moment, in memory that does not grow with the load: for the report and for each fault's figures.

    silences    stretches in which nothing was acknowledged (or read): by anyone, and for the partition that waited longest
    seconds     for each second acknowledgements, a sample of their latencies and the longest, records read
"""

import random
import threading
import time

# Shorter silences are not kept: a poll of a client takes so long.
LEAST_S = 0.1
# Of a second's latencies so many are kept, each as likely as any other.
SAMPLE = 300
EMPTY = {"acks": 0, "reads": 0, "longest": 0.0, "machine": 0.0, "sample": ()}
# Everybody, where a partition is asked for.
ALL = None


class Silences:
    """Of each of several keys, and of all together, when nothing came."""

    def __init__(self, keys):
        self.last = {}
        self.gaps = {key: [] for key in (*keys, ALL)}

    def start(self, now):
        self.last = dict.fromkeys(self.gaps, now)

    def came(self, key, now):
        for k in (key, ALL):
            if now - self.last.get(k, now) > LEAST_S:
                self.gaps[k].append((self.last[k], now))
            self.last[k] = now

    def longest(self, key, begin, end):
        """The longest part of [begin, end] without anything."""
        longest = 0.0
        for first, last in reversed([*self.gaps[key], (self.last[key], float("inf"))]):
            if last <= begin:
                break
            longest = max(longest, min(last, end) - max(first, begin))
        return longest

    def worst(self, begin, end):
        """The same of the key that waited longest."""
        return max(self.longest(key, begin, end) for key in self.gaps if key is not ALL)


class Timeline:
    def __init__(self, partitions):
        self.lock = threading.Lock()
        self.acks, self.reads = Silences(partitions), Silences(partitions)
        # When each producer last had an acknowledgement of each partition.
        self.served = {}
        self.seconds = {}
        self.began = None
        # Nothing is counted afterwards.
        self.ended = threading.Event()
        self.random = random.Random(1)

    def start(self):
        self.began = time.monotonic()
        self.acks.start(self.began)
        self.reads.start(self.began)

    def acked(self, producer, key, latency_s):
        with self.lock:
            if self.began is None or self.ended.is_set():
                return
            now = time.monotonic()
            self.served[producer, *key] = now
            self.acks.came(key, now)
            second = self._second(now)
            second["acks"] += 1
            second["longest"] = max(second["longest"], latency_s)
            sample = second["sample"]
            if len(sample) < SAMPLE:
                sample.append(latency_s)
            elif (at := self.random.randrange(second["acks"])) < SAMPLE:
                sample[at] = latency_s

    def read(self, key, count):
        with self.lock:
            if self.began is None or self.ended.is_set():
                return
            now = time.monotonic()
            self.reads.came(key, now)
            self._second(now)["reads"] += count

    def behind(self, since):
        """What has not been served since: (who, topic, partition)."""
        with self.lock:
            late = [who for who, last in self.served.items() if last <= since]
            return late + [("reader", *key) for key, last in self.reads.last.items() if key is not ALL and last <= since]

    def _second(self, now):
        return self.seconds.setdefault(int(now - self.began), dict(EMPTY, sample=[]))

    def machine(self, took_s):
        """What the probe measured."""
        with self.lock:
            second = self._second(time.monotonic())
            second["machine"] = max(second["machine"], took_s)

    def longest_of(self, what, begin, end):
        """In the seconds of [begin, end]: `longest`, the latency of what was acknowledged in them; `machine`, of the probe."""
        with self.lock:
            seconds = range(int(begin - self.began), int(end - self.began) + 1)
            return max(self.seconds.get(n, EMPTY)[what] for n in seconds)

    def table(self):
        """For each second: acknowledgements; p50, p99 and longest of their latency in ms (None: there were none); records read;
        and how long by its end the partition that waited longest had been silent, for producers and for the reader."""
        with self.lock:
            count = max(self.seconds, default=-1) + 1
            waited = [self._waited(silences, count) for silences in (self.acks, self.reads)]
            rows = []
            for n in range(count):
                second = self.seconds.get(n, EMPTY)
                ordered = sorted(second["sample"])
                quantiles = [ordered[int(q * (len(ordered) - 1))] if ordered else None for q in (0.5, 0.99)]
                latencies = [v and round(v * 1000, 1) for v in (*quantiles, second["longest"] or None)]
                rows.append([second["acks"], *latencies, second["reads"], round(waited[0][n], 2), round(waited[1][n], 2)])
            return rows

    def _waited(self, silences, count):
        """For each second the longest silence that touches it, as long as it had lasted by the second's end."""
        waited = [0.0] * count
        for key, gaps in silences.gaps.items():
            if key is not ALL:
                for first, last in [*gaps, (silences.last[key], self.began + count)]:
                    first, last = first - self.began, last - self.began
                    for n in range(int(first), min(count, int(last) + 1)):
                        waited[n] = max(waited[n], min(last, n + 1) - first)
        return waited
