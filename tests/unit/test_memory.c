/* TAILNET_MEMORY_SIZE against what a node really takes: never less, hardly more. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include "tn_test.h"

/* links and tls as a desc has them; tls 0 stands for tls_by_caller. */
static void one(unsigned peers, unsigned sessions, unsigned links, unsigned tls)
{
    tailnet_desc d;
    size_t       needed, given = TAILNET_MEMORY_SIZE(peers, sessions, links, tls);
    memset(&d, 0, sizeof d);
    d.max_peers     = (uint16_t)peers;
    d.max_sessions  = (uint16_t)sessions;
    d.max_links     = (uint8_t)links;
    d.max_tls       = (uint8_t)tls;
    d.tls_by_caller = tls == 0;
    needed          = tailnet_memory_needed(&d);
    if (given < needed || given > needed + needed / 50)
        printf("%u peers, %u sessions, %u links, %u TLS: needed %lu, given %lu\n", peers, sessions,
               links, tls, (unsigned long)needed, (unsigned long)given);
    CHECK(given >= needed);
    CHECK(given <= needed + needed / 50);
}

static void covers_every_size(void)
{
    static const uint16_t peers[]    = { 1, 2, 3, 15, 16, 17, 100, 1001, 4096 };
    static const uint16_t sessions[] = { 1, 3, 4, 9, 64, 501 };
    size_t                i, k;
    unsigned              links, tls;
    for (i = 0; i < sizeof peers / sizeof peers[0]; i++)
        for (k = 0; k < sizeof sessions / sizeof sessions[0]; k++)
            for (links = 2; links <= 8; links++)
                for (tls = 0; tls <= links; tls++) one(peers[i], sessions[k], links, tls);
}

/* The line of the manual: a constant, aligned, and tailnet_init takes it. */
static TAILNET_MEMORY(memory, 16, 4, 2, 1);

static void is_what_the_manual_shows(void)
{
    tailnet_desc d;
    memset(&d, 0, sizeof d);
    d.max_peers    = 16;
    d.max_sessions = 4;
    d.max_links    = 2;
    d.max_tls      = 1;
    CHECK(sizeof memory >= tailnet_memory_needed(&d));
    CHECK(((uintptr_t)&memory & 7u) == 0);
    CHECK(tailnet_memory_needed(NULL) == 0);
}

int main(void)
{
    TEST(covers_every_size);
    TEST(is_what_the_manual_shows);
    return tn_test_end();
}
