/* A producer and a consumer at the end of the log, one record after the other's time.
 *
 *   tail BOOTSTRAP TOPIC RECORDS_PER_S SIZE SECONDS
 *       Open loop: every millisecond the records of that millisecond are due, whatever became of those before them. Latency
 *       is the time from when a record was due until the consumer had it. The first two seconds are not counted. Prints JSON.
 */
#define _GNU_SOURCE
#include <librdkafka/rdkafka.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define WARMUP_NS 2000000000ULL

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

static void fail(const char *what, const char *why) {
    fprintf(stderr, "tail: %s: %s\n", what, why);
    exit(1);
}

static _Atomic uint64_t failed, acked;
static _Atomic int done_producing;

static void on_delivery(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque) {
    (void)rk;
    (void)opaque;
    atomic_fetch_add(m->err ? &failed : &acked, 1);
}

static void set(rd_kafka_conf_t *conf, const char *key, const char *value) {
    char why[256];
    if (rd_kafka_conf_set(conf, key, value, why, sizeof why) != RD_KAFKA_CONF_OK)
        fail(key, why);
}

static void *poll_loop(void *rk) {
    while (!atomic_load(&done_producing))
        rd_kafka_poll(rk, 50);
    return NULL;
}

struct consumer {
    rd_kafka_t *rk;
    uint32_t *latency_us;
    uint64_t count, got, start_ns;
};

static void *consume(void *opaque) {
    struct consumer *c = opaque;
    uint64_t deadline = 0;
    while (c->got < c->count) {
        rd_kafka_message_t *m = rd_kafka_consumer_poll(c->rk, 100);
        uint64_t now = now_ns();
        if (atomic_load(&done_producing) && !deadline)
            deadline = now + 10000000000ULL;
        if (deadline && now > deadline)
            break;
        if (!m)
            continue;
        if (!m->err && m->len >= 16) {
            uint64_t head[2];
            memcpy(head, m->payload, sizeof head);
            if (head[0] < c->count && head[1] >= c->start_ns) {
                c->latency_us[head[0]] = (uint32_t)((now - head[1]) / 1000);
                c->got++;
            }
        }
        rd_kafka_message_destroy(m);
    }
    return NULL;
}

static int by_value(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv) {
    if (argc != 6)
        fail("usage", "tail BOOTSTRAP TOPIC RECORDS_PER_S SIZE SECONDS");
    double rate = atof(argv[3]);
    size_t size = (size_t)atol(argv[4]);
    uint64_t count = (uint64_t)(rate * atof(argv[5]));
    if (size < 16 || count == 0)
        fail("usage", "SIZE is at least 16");
    char why[256], *payload = calloc(1, size);
    uint32_t *latency_us = malloc(count * sizeof *latency_us);
    memset(latency_us, 0xff, count * sizeof *latency_us);

    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    set(conf, "bootstrap.servers", argv[1]);
    set(conf, "group.id", "tail");
    set(conf, "enable.auto.commit", "false");
    set(conf, "fetch.wait.max.ms", "100");
    rd_kafka_t *reader = rd_kafka_new(RD_KAFKA_CONSUMER, conf, why, sizeof why);
    if (!reader)
        fail("consumer", why);
    rd_kafka_topic_partition_list_t *at = rd_kafka_topic_partition_list_new(1);
    rd_kafka_topic_partition_list_add(at, argv[2], 0)->offset = RD_KAFKA_OFFSET_END;
    rd_kafka_assign(reader, at);
    rd_kafka_poll_set_consumer(reader);

    conf = rd_kafka_conf_new();
    set(conf, "bootstrap.servers", argv[1]);
    set(conf, "enable.idempotence", "true");
    set(conf, "linger.ms", "0");
    rd_kafka_conf_set_dr_msg_cb(conf, on_delivery);
    rd_kafka_t *writer = rd_kafka_new(RD_KAFKA_PRODUCER, conf, why, sizeof why);
    if (!writer)
        fail("producer", why);
    rd_kafka_topic_t *topic = rd_kafka_topic_new(writer, argv[2], NULL);

    /* The reader stands at the end before the first record comes. */
    for (int i = 0; i < 20; i++) {
        rd_kafka_message_t *m = rd_kafka_consumer_poll(reader, 100);
        if (m)
            rd_kafka_message_destroy(m);
    }
    struct consumer c = {reader, latency_us, count, 0, now_ns()};
    pthread_t polling, consuming;
    pthread_create(&polling, NULL, poll_loop, writer);
    pthread_create(&consuming, NULL, consume, &c);
    uint64_t start = now_ns() + 1000000;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t due = start + (uint64_t)((double)i * 1e9 / rate) / 1000000 * 1000000, now = now_ns();
        if (now < due) {
            struct timespec t = {(time_t)(due / 1000000000ULL), (long)(due % 1000000000ULL)};
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
        }
        uint64_t head[2] = {i, due};
        memcpy(payload, head, sizeof head);
        while (rd_kafka_produce(topic, 0, RD_KAFKA_MSG_F_COPY, payload, size, NULL, 0, NULL) == -1)
            rd_kafka_poll(writer, 1);
    }
    rd_kafka_flush(writer, 30000);
    atomic_store(&done_producing, 1);
    pthread_join(polling, NULL);
    pthread_join(consuming, NULL);

    uint64_t counted = 0, missing = 0, first = (uint64_t)((double)WARMUP_NS / 1e9 * rate);
    for (uint64_t i = first; i < count; i++) {
        if (latency_us[i] == UINT32_MAX)
            missing++;
        else
            latency_us[counted++] = latency_us[i];
    }
    if (counted == 0)
        fail("tail", "nothing arrived");
    qsort(latency_us, counted, sizeof *latency_us, by_value);
    printf("{\"count\": %lu, \"missing\": %lu, \"failed\": %lu, \"p50_ms\": %.2f, \"p99_ms\": %.2f, \"p999_ms\": %.2f, "
           "\"max_ms\": %.2f}\n",
           (unsigned long)counted, (unsigned long)missing, (unsigned long)atomic_load(&failed),
           latency_us[counted / 2] / 1e3, latency_us[counted * 99 / 100] / 1e3, latency_us[counted * 999 / 1000] / 1e3,
           latency_us[counted - 1] / 1e3);
    rd_kafka_consumer_close(reader);
    rd_kafka_destroy(reader);
    return 0;
}
