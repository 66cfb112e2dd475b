/* A thousand nodes in one process: all join, each talks to its neighbour. */
#ifndef SIM_MANY_H
#define SIM_MANY_H

#include "sim_matrix.h"

/* What a node costs beside its own memory must not depend on how many there are. */
static int run_many(uint32_t count, bool verbose)
{
    uint32_t i, talking = 0, up = 0;
    uint64_t memory = 0, begin;
    bool     failed;
    if (count < 2 || count > 1022) {
        printf("2 to 1022 nodes\n");
        return 1;
    }
    (void)world_make(count, count);
    W->verbose = verbose;
    W->end_ms  = NEVER;
    for (i = 0; i < count; i++) {
        bool     home = i % 4 != 0;
        machine *m = machine_make(home ? router_make(-1, i % 4 == 3 ? NAT_APDM : NAT_EIM, NAT_APDF)
                                       : -1);
        if (home) W->box[m->box].timeout_ms = 60000;
        m->lat_ms           = i % 17;
        m->desc.max_peers   = 4;
        m->desc.max_sessions = 4;
    }
    world_start();
    run_for(30000 + 20ul * count);
    for (i = 0; i < count; i++) {
        flow_plan f;
        f.from     = i;
        f.to       = (i + 1) % count;
        f.every_ms = 5000;
        f.size     = 100;
        f.port     = APP_PORT;
        f.six      = false;
        f.end_ms   = NEVER;
        flow_begin(&f);
        run_for(10);
    }
    begin = W->now_ms + 60000;
    run_for(90000);
    for (i = 0; i < count; i++) {
        memory += W->m[i].size;
        up += tailnet_get_state(W->m[i].n) == TAILNET_STATE_RUNNING;
        talking += talked(i, (i + 1) % count, begin, false);
    }
    world_sum();
    world_end();
    failed = W->failed || up != count || talking != count;
    printf("%u nodes, %.0f KiB each: %u run, %u get through to their neighbour; %llu datagrams, "
           "%.1f node-hours, hash %016llx%s%s\n", (unsigned)count,
           (double)memory / 1024.0 / (double)count, (unsigned)up, (unsigned)talking,
           (unsigned long long)W->grams, (double)W->node_ms / 3600000.0,
           (unsigned long long)W->hash, W->failed ? "; " : "", W->why);
    printf("%d passed, %d failed\n", !failed, failed);
    free(W);
    return failed ? 1 : 0;
}

#endif
