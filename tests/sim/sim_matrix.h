/* Every kind of NAT with every other: which path comes about and when, what gets lost, what
 * happens when the path is blocked, and whether everybody is silent when nobody talks. */
#ifndef SIM_MATRIX_H
#define SIM_MATRIX_H

#include "sim_run.h"

enum { KINDS = 12 };

static const char *const kind_names[KINDS] = {
    "public", "public+fw", "one2one", "full cone", "easyAF", "easy", "easy+pm", "easy+pm+fw",
    "hard", "hard+pm", "hard+fwd", "UDP blocked"
};

/* Rows and columns in that order; the table is symmetric. */
static const char *const kind_wants[KINDS] = {
    "DDDDDDDDDDDR", "DDDDDDDDRDDR", "DDDDDDDDDDDR", "DDDDDDDDDDDR", "DDDDDDDDDDDR",
    "DDDDDDDDRDDR", "DDDDDDDDDDDR", "DDDDDDDDRDDR", "DRDDDRDRRDDR", "DDDDDDDDDDDR",
    "DDDDDDDDDDDR", "RRRRRRRRRRRR"
};

static void kind_forward(machine *m)
{
    end4     in, none = { 0, 0 };
    mapping *p;
    in.ip    = m->ip4;
    in.port  = SIM_PORT;
    p        = mapping_new(&W->box[m->box], in, none);
    p->fixed = true;
    p->port  = SIM_PORT;
    m->forwarded = true;
}

static machine *kind_make(unsigned kind)
{
    int      box = -1;
    machine *m;
    if (kind == 2 || kind == 3) box = router_make(-1, NAT_EIM, NAT_ANY);
    if (kind == 4) box = router_make(-1, NAT_EIM, NAT_ADF);
    if ((kind >= 5 && kind <= 7) || kind == 11) box = router_make(-1, NAT_EIM, NAT_APDF);
    if (kind >= 8 && kind <= 10) box = router_make(-1, NAT_APDM, NAT_APDF);
    if (box >= 0) {
        W->box[box].timeout_ms = 30000;
        W->box[box].keep_port  = kind == 2;
        W->box[box].grants     = kind == 6 || kind == 7 || kind == 9;
        W->box[box].no_udp     = kind == 11;
    }
    m = machine_make(box);
    m->host_fw = kind == 1 || kind == 7;
    if (kind == 10) kind_forward(m);
    return m;
}

typedef struct cell {
    bool     direct, again, failed;
    uint32_t first_ms, direct_ms, lost, stall_ms, back_ms, idle_grams, wake_ms;
    char     why[256];
} cell;

static bool both_direct(void) { return W->m[0].direct_ms[1] != NEVER &&
                                       W->m[1].direct_ms[0] != NEVER; }

/* Runs until both are direct; how long it took, or more than most_ms. */
static uint32_t until_direct(uint32_t most_ms)
{
    uint64_t begin = W->now_ms;
    while (!both_direct() && W->now_ms - begin <= most_ms && !W->failed) {
        run_until(W->now_ms + 10);
        W->now_ms += 10;
    }
    return (uint32_t)(W->now_ms - begin);
}

static void run_for(uint64_t ms)
{
    uint64_t end = W->now_ms + ms;
    run_until(end);
    W->now_ms = end;
}

static void talk(uint32_t from, uint32_t to, uint64_t ms)
{
    flow_plan f;
    f.from     = from;
    f.to       = to;
    f.every_ms = 100;
    f.size     = 300;
    f.port     = APP_PORT;
    f.six      = false;
    f.end_ms   = W->now_ms + ms;
    flow_begin(&f);
}

/* The longest time without an answer, the requests without one, when the first one came. */
static void look_back(uint64_t since_ms, uint64_t till_ms, cell *c, bool first)
{
    uint64_t last = since_ms;
    uint32_t lost = 0, stall = 0;
    size_t   i;
    for (i = 0; i < W->packet_count; i++) {
        const packet *p = &W->packets[i];
        if (p->at_ms < since_ms || p->at_ms >= till_ms) continue;
        if (!p->got && p->at_ms >= since_ms + 500) lost++;   /* before it nobody had keys */
        if (!p->got || !p->echo) continue;
        if (first) c->first_ms = (uint32_t)(p->at_ms - since_ms);
        first = false;
        if (p->at_ms - last > stall) stall = (uint32_t)(p->at_ms - last);
        last = p->at_ms;
    }
    c->lost     = lost;
    c->stall_ms = stall;
}

static void block(bool on)
{
    W->m[0].no_udp = W->m[1].no_udp = on;
}

/* One cell: x talks first. */
static void run_cell(unsigned x, unsigned y, bool verbose, cell *c)
{
    uint64_t begin, grams;
    cell     later;
    (void)world_make(100u * x + y + 1, 4);
    memset(c, 0, sizeof *c);
    W->verbose = verbose;
    W->end_ms  = NEVER;
    W->chatty  = getenv("SIM_CHATTY") != NULL;
    W->regions = 2;
    W->region_place[0] = 20;
    W->region_place[1] = 40;
    (void)kind_make(x);
    (void)kind_make(y);
    world_start();
    run_for(9000);
    begin = W->now_ms;
    talk(0, 1, 60000);
    c->direct_ms = until_direct(30000);
    c->direct    = both_direct();
    run_for(50000 - c->direct_ms);
    look_back(begin, W->now_ms - 2000, c, true);
    if (c->direct) {
        talk(0, 1, 60000);
        block(true);
        begin = W->now_ms;
        run_for(30000);
        block(false);
        c->back_ms = until_direct(20000);
        look_back(begin, W->now_ms - 500, &later, false);
        c->stall_ms = later.stall_ms;
    }
    run_for(60000 + 50000);                 /* the flows end; heartbeats 45 s later        */
    grams = W->grams;
    run_for(60000);
    c->idle_grams = (uint32_t)(W->grams - grams);
    begin = W->now_ms;
    talk(1, 0, 40000);                      /* mappings are gone; the other one begins     */
    c->wake_ms = until_direct(30000);
    c->again   = both_direct();
    run_for(30000);
    c->failed = W->failed;
    memcpy(c->why, W->why, sizeof c->why);
    world_end();
    free(W);
}

/* What of a cell is not as it has to be. */
static const char *cell_verdict(const cell *c, unsigned x, unsigned y)
{
    bool direct = kind_wants[x][y] == 'D';
    bool mapped = x == 6 || x == 7 || x == 9 || y == 6 || y == 7 || y == 9;
    if (c->failed) return c->why;
    if (c->direct != direct) return "the wrong path";
    if (c->first_ms > 2000) return "a late first answer";
    if (c->lost != 0) return "lost packets at the switch";
    if (direct && c->stall_ms > 6600) return "a long stall when the path was blocked";
    if (direct && c->back_ms > 8000) return "late back to direct";
    if (c->idle_grams != 0 && !mapped) return "datagrams although idle";
    if (direct && !c->again) return "not direct again after a sleep";
    return NULL;
}

static int run_matrix(bool verbose, const char *only)
{
    unsigned x, y, passed = 0, failed = 0;
    printf("%-12s%-12s path  1st ms  direct ms  lost  stall ms  back ms  idle  after sleep\n",
           "from", "to");
    for (x = 0; x < KINDS; x++)
        for (y = 0; y < KINDS; y++) {
            cell        c;
            const char *why;
            if (only != NULL && 100 * x + y != strtoul(only, NULL, 10)) continue;
            run_cell(x, y, verbose, &c);
            why = cell_verdict(&c, x, y);
            if (why == NULL) passed++;
            else             failed++;
            printf("%-12s%-12s  %c   %6u  %9u  %4u  %8u  %7u  %4u  %11u%s%s\n", kind_names[x],
                   kind_names[y], c.direct ? 'D' : 'R', c.first_ms,
                   c.direct ? c.direct_ms : 0, c.lost, c.stall_ms, c.back_ms, c.idle_grams,
                   c.again ? c.wake_ms : 0, why == NULL ? "" : "  FAILED: ",
                   why == NULL ? "" : why);
            fflush(stdout);
        }
    printf("%u passed, %u failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}

#endif
