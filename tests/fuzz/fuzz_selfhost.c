/* A connection to examples/selfhost.c, behind TLS and Noise: HTTP/1 heads, HTTP/2 with HPACK and
 * JSON of a control connection, frames of a relay connection. First byte: which; second: how the
 * bytes are cut. The tables have to stay in order, and nothing but this connection may end. */
#define main selfhost_main
#include "examples/selfhost.c"
#undef main

#define DEMAND(x) do { if (!(x)) abort(); } while (0)

enum { NODES = 4 };

static host H;

static void world(void)
{
    uint32_t i;
    node    *nodes = H.nodes;
    conn    *conns = H.conns;
    if (nodes == NULL) {
        nodes = (node *)calloc(NODES, sizeof *nodes);
        conns = (conn *)calloc(2, sizeof *conns);
        for (i = 0; i < 2; i++) conns[i].told = (told *)calloc(NODES, sizeof(told));
        for (i = 0; i < 2; i++) conns[i].b = (body *)calloc(1, sizeof(body));
    }
    memset(&H, 0, sizeof H);
    memset(nodes, 0, NODES * sizeof *nodes);
    H.nodes           = nodes;
    H.conns           = conns;
    H.conn_count      = 2;
    H.opt.max_nodes   = NODES;
    H.opt.domain      = "tail.lab";
    H.opt.url         = "https://127.0.0.1:1";
    H.opt.keepalive_s = 1;
    H.opt.open_login  = true;
    H.now_ms          = 100000;
    H.wall_ms         = 1790000000000u;
    H.next_id         = 1;
    huffman_init(&H.huff);
    (void)add_rule(&H, "*>*:*");
    add_key(&H, "fuzz:reusable:tag:a");
    for (i = 0; i < 2; i++) {
        uint8_t key[32];
        told   *t = conns[i].told;
        body   *b = conns[i].b;
        node   *n;
        memset(key, (int)i + 1, sizeof key);
        n = node_add(&H, key);
        strcpy(n->name, i == 0 ? "one" : "two");
        node_set_key(&H, n, key);
        n->shown = true;
        memset(&conns[i], 0, sizeof conns[i]);
        conns[i].told        = t;
        conns[i].b           = b;
        conns[i].fd          = -1;
        conns[i].tls         = true;
        conns[i].deadline_ms = TN_NEVER;
    }
}

static void as_relay(conn *c, node *n)
{
    become_relay(&H, c, true);
    c->from = c->to = c->frame = 0;
    relay_of(c)->slot         = slot_of(&H, n);
    relay_of(c)->id           = n->id;
    relay_of(c)->derp.begun   = true;
    relay_of(c)->keepalive_ms = TN_NEVER;
    memcpy(relay_of(c)->key, n->key, 32);
    n->relay[c->region] = c;
}

static void as_control(conn *c, const node *n)
{
    control *k = control_of(c);
    memset(k, 0, sizeof *k);
    c->stage    = AT_CONTROL;
    k->nz.state = TN_NZ_OPEN;
    k->hp.limit = HP_TABLE;
    k->idle_ms  = H.now_ms;
    memcpy(k->machine, n->machine, 32);
    tn_h2_begin(&k->h2, TN_H2_SERVER);
}

/* Each frame of the queue is whole. */
static void look_at_queue(conn *c)
{
    size_t at;
    DEMAND(c->from <= c->to && c->to <= OUT_MAX);
    if (c->stage != AT_RELAY) return;
    for (at = first_frame(c); at < c->to; at += 5 + (size_t)tn_get_u32be(c->b->out + at + 1)) {}
    DEMAND(at == c->to);
}

int LLVMFuzzerTestOneInput(const uint8_t *src, size_t len)
{
    conn    *c;
    uint32_t cut, i;
    unsigned kind;
    if (len < 2) return 0;
    world();
    c    = &H.conns[0];
    kind = src[0] % 4;
    cut  = src[1];
    src += 2;
    len -= 2;
    as_relay(&H.conns[1], &H.nodes[1]);
    if (kind == 1) as_control(c, &H.nodes[0]);
    if (kind == 2) as_relay(c, &H.nodes[0]);
    if (kind == 3) become_relay(&H, c, false);
    if (kind == 0) {
        c->stage = AT_HTTP;
        tn_h1_begin_request(&c->b->u.http.h1, c->b->u.http.handshake);
    }
    while (len != 0 && !c->gone && !c->leaving) {
        size_t   n = 1 + (size_t)(cut = cut * 1103515245u + 12345u) % (cut % 7 == 0 ? 7u : 3000u);
        uint8_t *piece;
        if (n > len) n = len;
        piece = (uint8_t *)malloc(n);
        memcpy(piece, src, n);
        if (c->stage == AT_CONTROL && kind == 1) control_plain(&H, c, piece, n);
        else                                     conn_input(&H, c, piece, n);
        free(piece);
        src += n;
        len -= n;
        H.now_ms += cut % 97;
        if (c->stage != AT_HTTP && !c->gone) conn_output(&H, c);
        look_at_queue(c);
        look_at_queue(&H.conns[1]);
        took_out(c, cut % 3 == 0 ? c->to - c->from : (c->to - c->from) / 2);
    }
    DEMAND(!H.conns[1].gone);
    if (c->stage == AT_CONTROL) poll_ends(&H, c);
    if (c->stage == AT_RELAY) relay_end(&H, c);
    for (i = 0; i < NODES; i++) DEMAND(H.nodes[i].polls == 0 && H.nodes[i].relay != c);
    return 0;
}
