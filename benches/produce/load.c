/* What rdkafka_performance does not measure, on the same librdkafka.
 *
 *   load latency BOOTSTRAP TOPIC PARTITIONS BYTES_PER_S SIZE SECONDS [KEY=VALUE…]
 *       Open loop: every millisecond the records of that millisecond are due, whatever became of those before them, and
 *       their latency is the time from when they were due to their acknowledgement. The first two seconds are not counted. Prints JSON.
 *   load bare DIRECTORY BYTES_PER_S SECONDS
 *       No broker: every millisecond what has come due is written to two preallocated files, one after the other, O_DIRECT
 *       and synced, as an acknowledgement of Isobar waits for WAL and metadata. Latency as above, and how late a bare timer is.
 *   load first-ack BOOTSTRAP TOPIC [KEY=VALUE…]
 *       Sends one record as soon as a broker is there; prints the moment of its acknowledgement (CLOCK_MONOTONIC, s).
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <librdkafka/rdkafka.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define WARMUP_NS 2000000000ULL

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

static void fail(const char *what, const char *why) {
    fprintf(stderr, "load: %s: %s\n", what, why);
    exit(1);
}

static uint64_t start_ns;      /* when record 0 is due */
static double interval_ns;     /* between two records */
static uint32_t *latency_us;   /* by record; UINT32_MAX until it is acknowledged */
static _Atomic uint64_t acked; /* with or without an error */
static _Atomic uint64_t failed;
static _Atomic uint64_t last_ack_ns;
static _Atomic int stop_polling;

/* By whole milliseconds: a timer for every record takes most of a core, and the broker needs it. */
static uint64_t due_ns(uint64_t i) { return start_ns + (uint64_t)((double)i * interval_ns) / 1000000 * 1000000; }

static void on_delivery(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque) {
    (void)rk;
    (void)opaque;
    uint64_t t = now_ns(), i = (uint64_t)(uintptr_t)m->_private;
    if (m->err)
        atomic_fetch_add(&failed, 1);
    else if (latency_us)
        latency_us[i] = (uint32_t)((t - due_ns(i)) / 1000);
    atomic_store(&last_ack_ns, t);
    atomic_fetch_add(&acked, 1);
}

static rd_kafka_t *producer(const char *bootstrap, char **pairs, int count) {
    char error[512];
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    rd_kafka_conf_set_dr_msg_cb(conf, on_delivery);
    rd_kafka_conf_set(conf, "bootstrap.servers", bootstrap, error, sizeof error);
    for (int i = 0; i < count; i++) {
        char *equals = strchr(pairs[i], '=');
        if (!equals)
            fail("not KEY=VALUE", pairs[i]);
        *equals = 0;
        if (rd_kafka_conf_set(conf, pairs[i], equals + 1, error, sizeof error) != RD_KAFKA_CONF_OK)
            fail(pairs[i], error);
    }
    rd_kafka_t *rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, error, sizeof error);
    if (!rk)
        fail("rd_kafka_new", error);
    return rk;
}

static void *poll_loop(void *rk) {
    while (!atomic_load(&stop_polling))
        rd_kafka_poll(rk, 100);
    return NULL;
}

static int by_value(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static double quantile_ms(const uint32_t *sorted, uint64_t count, double q) {
    uint64_t at = (uint64_t)(q * (double)count);
    return sorted[at < count ? at : count - 1] / 1000.0;
}

static int latency(int argc, char **argv) {
    if (argc < 8)
        fail("usage", "load latency BOOTSTRAP TOPIC PARTITIONS BYTES_PER_S SIZE SECONDS [KEY=VALUE…]");
    const char *topic = argv[3];
    int partitions = atoi(argv[4]);
    double rate = atof(argv[5]);
    size_t size = (size_t)atol(argv[6]);
    double seconds = atof(argv[7]);
    uint64_t count = (uint64_t)(rate / (double)size * (seconds + WARMUP_NS / 1e9));
    rd_kafka_t *rk = producer(argv[2], argv + 8, argc - 8);
    rd_kafka_topic_t *rkt = rd_kafka_topic_new(rk, topic, NULL);
    char *payload = malloc(size);
    memset(payload, 'x', size);
    latency_us = malloc(count * sizeof *latency_us);
    memset(latency_us, 0xff, count * sizeof *latency_us);

    /* The topic, its leaders and a producer id are known before the clock starts. */
    pthread_t poller;
    pthread_create(&poller, NULL, poll_loop, rk);
    start_ns = now_ns();
    for (int p = 0; p < partitions; p++)
        if (rd_kafka_produce(rkt, p, RD_KAFKA_MSG_F_COPY, payload, size, NULL, 0, (void *)0) != 0)
            fail("produce", rd_kafka_err2str(rd_kafka_last_error()));
    if (rd_kafka_flush(rk, 30000) != 0 || atomic_load(&failed))
        fail("warm-up", "records without an acknowledgement after 30 s");
    atomic_store(&acked, 0);
    latency_us[0] = UINT32_MAX;

    prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
    interval_ns = 1e9 * (double)size / rate;
    start_ns = now_ns();
    uint64_t late = 0; /* records sent a millisecond or more after they were due: the generator's own fault */
    for (uint64_t i = 0; i < count; i++) {
        uint64_t due = due_ns(i), now = now_ns();
        if (now < due) {
            struct timespec t = {.tv_sec = (time_t)(due / 1000000000ULL), .tv_nsec = (long)(due % 1000000000ULL)};
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
        } else if (now - due > 1000000)
            late++;
        int32_t p = (int32_t)(i % (uint64_t)partitions);
        while (rd_kafka_produce(rkt, p, RD_KAFKA_MSG_F_COPY, payload, size, NULL, 0, (void *)(uintptr_t)i) != 0) {
            if (rd_kafka_last_error() != RD_KAFKA_RESP_ERR__QUEUE_FULL)
                fail("produce", rd_kafka_err2str(rd_kafka_last_error()));
            struct timespec t = {.tv_nsec = 100000};
            nanosleep(&t, NULL);
        }
    }
    rd_kafka_flush(rk, 60000);
    atomic_store(&stop_polling, 1);
    pthread_join(poller, NULL);

    uint64_t kept = 0, from = (uint64_t)(WARMUP_NS / interval_ns);
    for (uint64_t i = from; i < count; i++)
        if (latency_us[i] != UINT32_MAX)
            latency_us[kept++] = latency_us[i];
    if (kept == 0)
        fail("latency", "nothing was acknowledged");
    qsort(latency_us, kept, sizeof *latency_us, by_value);
    double took = (double)(atomic_load(&last_ack_ns) - start_ns) / 1e9;
    printf("{\"sent\": %llu, \"acked\": %llu, \"failed\": %llu, \"late\": %llu, \"mb_s\": %.2f, \"p50_ms\": %.3f, "
           "\"p99_ms\": %.3f, \"p999_ms\": %.3f, \"max_ms\": %.3f}\n",
           (unsigned long long)count, (unsigned long long)(atomic_load(&acked) - atomic_load(&failed)),
           (unsigned long long)atomic_load(&failed), (unsigned long long)late, (double)count * (double)size / took / 1e6,
           quantile_ms(latency_us, kept, 0.5), quantile_ms(latency_us, kept, 0.99), quantile_ms(latency_us, kept, 0.999),
           latency_us[kept - 1] / 1000.0);
    return atomic_load(&failed) != 0;
}

#define FILE_BYTES (64 << 20)
#define BLOCK 4096

static int zeroed(const char *directory, const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_DIRECT, 0600);
    void *zeros;
    if (fd < 0 || unlink(path) || posix_memalign(&zeros, BLOCK, 1 << 20))
        fail(path, "cannot be made");
    memset(zeros, 0, 1 << 20);
    for (int i = 0; i < FILE_BYTES >> 20; i++)
        if (pwrite(fd, zeros, 1 << 20, (off_t)i << 20) != 1 << 20)
            fail(path, "cannot be filled");
    if (fsync(fd))
        fail(path, "cannot be synced");
    free(zeros);
    return fd;
}

static int bare(int argc, char **argv) {
    if (argc != 5)
        fail("usage", "load bare DIRECTORY BYTES_PER_S SECONDS");
    const uint64_t ms = 1000000;
    double rate = atof(argv[3]);
    uint64_t ticks = (uint64_t)atoi(argv[4]) * 1000 + WARMUP_NS / ms;
    size_t bytes = ((size_t)(rate / 1000) + BLOCK - 1) / BLOCK * BLOCK;
    int files[2] = {zeroed(argv[2], "bare-0"), zeroed(argv[2], "bare-1")};
    void *buffer;
    if (posix_memalign(&buffer, BLOCK, bytes))
        fail("memory", "none");
    memset(buffer, 1, bytes);
    uint32_t *took_us = calloc(ticks, sizeof *took_us), *late_us = calloc(ticks, sizeof *late_us);
    if (!took_us || !late_us)
        fail("memory", "none");
    off_t at = 0;
    uint64_t start = now_ns() + 10 * ms, timed = 0;
    for (uint64_t i = 0; i < ticks; i++) {
        uint64_t due = start + i * ms;
        if (now_ns() < due) {
            struct timespec t = {(time_t)(due / 1000000000ULL), (long)(due % 1000000000ULL)};
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
            if (i * ms >= WARMUP_NS)
                late_us[timed++] = (uint32_t)((now_ns() - due) / 1000);
        }
        for (int file = 0; file < 2; file++)
            if (pwrite(files[file], buffer, bytes, at) != (ssize_t)bytes || fdatasync(files[file]))
                fail("write", "failed");
        at = (at + (off_t)bytes) % (FILE_BYTES - (off_t)bytes) / BLOCK * BLOCK;
        took_us[i] = (uint32_t)((now_ns() - due) / 1000);
    }
    uint32_t *counted = took_us + WARMUP_NS / ms;
    uint64_t count = ticks - WARMUP_NS / ms;
    qsort(counted, count, sizeof *counted, by_value);
    qsort(late_us, timed, sizeof *late_us, by_value);
    printf("{\"p50_ms\": %.3f, \"p99_ms\": %.3f, \"p999_ms\": %.3f, \"max_ms\": %.3f, \"timer_p50_ms\": %.3f, "
           "\"timer_p99_ms\": %.3f, \"timer_p999_ms\": %.3f, \"timer_max_ms\": %.3f}\n",
           quantile_ms(counted, count, 0.5), quantile_ms(counted, count, 0.99), quantile_ms(counted, count, 0.999),
           counted[count - 1] / 1e3, quantile_ms(late_us, timed, 0.5), quantile_ms(late_us, timed, 0.99),
           quantile_ms(late_us, timed, 0.999), late_us[timed - 1] / 1e3);
    return 0;
}

static int first_ack(int argc, char **argv) {
    if (argc < 4)
        fail("usage", "load first-ack BOOTSTRAP TOPIC [KEY=VALUE…]");
    rd_kafka_t *rk = producer(argv[2], argv + 4, argc - 4);
    rd_kafka_topic_t *rkt = rd_kafka_topic_new(rk, argv[3], NULL);
    if (rd_kafka_produce(rkt, 0, RD_KAFKA_MSG_F_COPY, "first", 5, NULL, 0, NULL) != 0)
        fail("produce", rd_kafka_err2str(rd_kafka_last_error()));
    while (atomic_load(&acked) == 0)
        rd_kafka_poll(rk, 100);
    if (atomic_load(&failed))
        fail("first-ack", "the record failed");
    printf("%.6f\n", (double)atomic_load(&last_ack_ns) / 1e9);
    return 0;
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "latency") == 0)
        return latency(argc, argv);
    if (argc > 1 && strcmp(argv[1], "bare") == 0)
        return bare(argc, argv);
    if (argc > 1 && strcmp(argv[1], "first-ack") == 0)
        return first_ack(argc, argv);
    fail("usage", "load latency|bare|first-ack …");
}
