/* The simulator: many nodes, the self-hosted server, routers and lines, in virtual time from one
 * seed. The header is the real one. `sim --help` lists what it does; a seed that fails prints
 * the command that repeats it and a script that was made as short as possible. */
#define _GNU_SOURCE
#include "sim_big.h"

#include <sys/wait.h>

/* ---- one seed in a child, so that a crash is a failure like others ---- */

typedef struct verdict {
    bool     failed, done;
    uint64_t hash, node_ms, sent, delivered, grams, polls, idle, directs, cuts, boots, spurious;
    uint64_t tls;
    char     why[256];
} verdict;

static void verdict_take(verdict *v)
{
    uint32_t i;
    memset(v, 0, sizeof *v);
    v->done      = true;
    v->failed    = W->failed;
    v->hash      = W->hash;
    v->node_ms   = W->node_ms;
    v->sent      = W->sent;
    v->delivered = W->delivered;
    v->grams     = W->grams;
    v->idle      = W->idle;
    v->directs   = W->directs;
    v->cuts      = W->cuts;
    v->boots     = W->boots;
    v->spurious  = W->spurious;
    v->tls       = W->handshakes;
    for (i = 0; i < W->count; i++) v->polls += W->m[i].polls;
    memcpy(v->why, W->why, sizeof v->why);
}

typedef struct script { action *list; size_t count; bool given; } script;

static void run_seed(uint64_t seed, const script *s, bool verbose, verdict *v)
{
    uint64_t r = seed;
    size_t   i;
    bool     stale = false;
    (void)world_make(seed, 16);
    W->verbose = verbose;
    random_places(&r);
    random_script(&r);
    if (s->given) {
        W->action_count = 0;
        for (i = 0; i < s->count; i++) {
            const action *x = &s->list[i];
            action_add(x->at_ms, x->what, x->a, x->b, x->value, x->more);
        }
    }
    for (i = 0; i < W->action_count; i++)
        stale = stale || (memcmp(W->actions[i].what, "cut", 3) == 0 && W->actions[i].b != 0);
    W->talk_ms = W->heal_ms + (stale ? STALE_MS : TALK_MS);
    W->end_ms  = W->talk_ms + DIRECT_MS;
    plan(W->heal_ms, EV_HEAL, 0, 0, NULL);
    plan(W->talk_ms, EV_TALK, 0, 0, NULL);
    plan(W->end_ms, EV_DIRECT, 0, 0, NULL);
    world_start();
    run_until(W->end_ms);
    world_sum();
    verdict_take(v);
    world_end();
    free(W);
}

static void run_forked(uint64_t seed, const script *s, verdict *v)
{
    int   ends[2], status = 0;
    pid_t child;
    memset(v, 0, sizeof *v);
    fflush(stdout);
    if (pipe(ends) != 0 || (child = fork()) < 0) exit(2);
    if (child == 0) {
        run_seed(seed, s, false, v);
        if (write(ends[1], v, sizeof *v) != (ssize_t)sizeof *v) _exit(3);
        _exit(0);
    }
    close(ends[1]);
    if (read(ends[0], v, sizeof *v) != (ssize_t)sizeof *v) memset(v, 0, sizeof *v);
    close(ends[0]);
    (void)waitpid(child, &status, 0);
    if (v->done && status == 0) return;
    v->failed = true;
    snprintf(v->why, sizeof v->why, "it crashed, status %d", status);
}

/* ---- scripts in files ---- */

static void script_print(FILE *f, const action *list, size_t count)
{
    size_t i;
    for (i = 0; i < count; i++)
        fprintf(f, "%lu %s %u %u %llu %llu\n", (unsigned long)list[i].at_ms, list[i].what,
                list[i].a, list[i].b, (unsigned long long)list[i].value,
                (unsigned long long)list[i].more);
}

static void script_read(script *s, const char *path)
{
    FILE              *f = fopen(path, "r");
    size_t             cap = 0;
    action             x;
    unsigned long long at, value, more;
    if (f == NULL) {
        fprintf(stderr, "sim: cannot read %s\n", path);
        exit(2);
    }
    memset(&x, 0, sizeof x);
    while (fscanf(f, "%llu %15s %u %u %llu %llu", &at, x.what, &x.a, &x.b, &value, &more) == 6) {
        x.at_ms  = at;
        x.value  = value;
        x.more   = more;
        s->list  = (action *)grown(s->list, s->count, &cap, sizeof x);
        s->list[s->count++] = x;
    }
    s->given = true;
    fclose(f);
}

/* The script that a seed stands for. */
static void script_of(uint64_t seed, script *s)
{
    uint64_t r = seed;
    (void)world_make(seed, 16);
    random_places(&r);
    random_script(&r);
    s->list  = W->actions;
    s->count = W->action_count;
    s->given = true;
}

/* ---- making a failing script short ---- */

/* Are two failures of one kind? Numbers do not count. */
static bool alike(const char *a, const char *b)
{
    for (;;) {
        while (*a >= '0' && *a <= '9') a++;
        while (*b >= '0' && *b <= '9') b++;
        if (*a != *b) return false;
        if (*a == '\0') return true;
        a++;
        b++;
    }
}

/* Leaves out what is not needed for a failure, halves first, then less and less. */
static void shrink(uint64_t seed, script *s, const char *why)
{
    size_t   step = s->count / 2 == 0 ? 1 : s->count / 2, at, n;
    unsigned tries = 60;
    script   t = *s;
    verdict  v;
    while (step != 0 && tries != 0) {
        bool less = false;
        for (at = 0; at < s->count && tries != 0;) {
            n      = s->count - at < step ? s->count - at : step;
            t.list = (action *)need(s->count, sizeof(action));
            memcpy(t.list, s->list, at * sizeof(action));
            memcpy(t.list + at, s->list + at + n, (s->count - at - n) * sizeof(action));
            t.count = s->count - n;
            tries--;
            run_forked(seed, &t, &v);
            if (v.failed && alike(v.why, why)) {
                s->list  = t.list;
                s->count = t.count;
                less     = true;
            } else {
                free(t.list);
                at += n;
            }
        }
        if (!less || step == 1) step /= 2;
    }
}

static void explain(uint64_t seed, const verdict *v)
{
    script s;
    char   path[64];
    FILE  *f;
    printf("seed %llu FAILED: %s\n  again: build/sim/sim --seed %llu -v\n",
           (unsigned long long)seed, v->why, (unsigned long long)seed);
    script_of(seed, &s);
    shrink(seed, &s, v->why);
    snprintf(path, sizeof path, "sim-%llu.script", (unsigned long long)seed);
    f = fopen(path, "w");
    if (f != NULL) script_print(f, s.list, s.count);
    if (f != NULL) fclose(f);
    printf("  shortest: build/sim/sim --seed %llu --script %s -v, where the script is\n",
           (unsigned long long)seed, path);
    script_print(stdout, s.list, s.count);
    fflush(stdout);
}

/* ---- many seeds ---- */

static int run_seeds(uint64_t first, uint64_t last, bool each)
{
    verdict  v, sum;
    uint64_t seed, hash = 0xcbf29ce484222325u;
    unsigned passed = 0, failed = 0;
    script   none = { NULL, 0, false };
    memset(&sum, 0, sizeof sum);
    for (seed = first; seed <= last; seed++) {
        run_forked(seed, &none, &v);
        hash_number(&hash, v.hash);
        if (v.failed) failed++;
        else          passed++;
        if (v.failed && failed <= 5 && getenv("SIM_BRIEF") == NULL) explain(seed, &v);
        else if (v.failed) printf("seed %llu FAILED: %s\n", (unsigned long long)seed, v.why);
        if (each) printf("seed %llu %016llx\n", (unsigned long long)seed,
                         (unsigned long long)v.hash);
        fflush(stdout);
        sum.node_ms += v.node_ms;
        sum.sent += v.sent;
        sum.delivered += v.delivered;
        sum.grams += v.grams;
        sum.polls += v.polls;
        sum.idle += v.idle;
        sum.directs += v.directs;
        sum.cuts += v.cuts;
        sum.spurious += v.spurious;
        sum.tls += v.tls;
    }
    printf("%.1f node-hours; %llu packets sent, %llu delivered; %llu datagrams; direct %llu times; "
           "%llu power cuts; "
           "%llu TLS handshakes\n%llu polls, %llu for nothing, %llu unasked\nhash %016llx\n",
           (double)sum.node_ms / 3600000.0, (unsigned long long)sum.sent,
           (unsigned long long)sum.delivered, (unsigned long long)sum.grams,
           (unsigned long long)sum.directs, (unsigned long long)sum.cuts,
           (unsigned long long)sum.tls,
           (unsigned long long)sum.polls, (unsigned long long)sum.idle,
           (unsigned long long)sum.spurious, (unsigned long long)hash);
    printf("%u passed, %u failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}

static int run_one(uint64_t seed, const script *s, bool verbose)
{
    verdict v;
    run_seed(seed, s, verbose, &v);
    if (v.failed) printf("seed %llu FAILED: %s\n", (unsigned long long)seed, v.why);
    printf("%.2f node-hours, hash %016llx\n%d passed, %d failed\n",
           (double)v.node_ms / 3600000.0, (unsigned long long)v.hash, !v.failed, v.failed);
    return v.failed ? 1 : 0;
}

static const char help[] =
    "sim --seeds A..B [--each]              worlds from these seeds; --each: their hashes\n"
    "sim --seed N [--script FILE] [-v]      one of them, perhaps with another script\n"
    "sim --matrix [-v]                      every kind of NAT with every other\n"
    "sim --many N                           so many nodes in one process\n"
    "sim --big                              a tailnet of ten thousand, memory for three\n"
    "In the environment: SIM_CELL=100*row+column and SIM_CHATTY=1 for one cell of the matrix,\n"
    "SIM_BRIEF=1 for no shortest scripts.\n";

int main(int argc, char **argv)
{
    script   s = { NULL, 0, false };
    uint64_t first = 1, last = 0, seed = 0, many = 0;
    bool     verbose = false, each = false, one = false, matrix = false, big = false;
    int      i;
    for (i = 1; i < argc; i++) {
        const char *next = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "-v") == 0) verbose = true;
        else if (strcmp(argv[i], "--each") == 0) each = true;
        else if (strcmp(argv[i], "--matrix") == 0) matrix = true;
        else if (strcmp(argv[i], "--big") == 0) big = true;
        else if (strcmp(argv[i], "--seed") == 0) {
            one  = true;
            seed = strtoull(next, NULL, 10);
            i++;
        } else if (strcmp(argv[i], "--many") == 0) {
            many = strtoull(next, NULL, 10);
            i++;
        } else if (strcmp(argv[i], "--seeds") == 0) {
            char *end;
            first = strtoull(next, &end, 10);
            last  = strncmp(end, "..", 2) == 0 ? strtoull(end + 2, NULL, 10) : first;
            i++;
        } else if (strcmp(argv[i], "--script") == 0) {
            script_read(&s, next);
            i++;
        } else {
            fputs(help, stdout);
            return 1;
        }
    }
    if (big) return run_big(verbose);
    if (matrix) return run_matrix(verbose, getenv("SIM_CELL"));
    if (many != 0) return run_many((uint32_t)many, verbose);
    if (one) return run_one(seed, &s, verbose);
    if (last >= first) return run_seeds(first, last, each);
    fputs(help, stdout);
    return 1;
}
