/* The conversation with the control server, by a whole node in the world of
 * node_world.h: joining, logins, the map stream and every way it can end. */
#include "tn_test.h"
#include "node_world.h"

static uint16_t seen[9];                    /* arrows that any test drove         */

static void done(nw_world *w)
{
    unsigned i, k;
    for (i = 0; i < w->count; i++)
        for (k = 0; k < 9; k++) seen[k] = (uint16_t)(seen[k] | w->nodes[i].ctl_arrows[k]);
    nw_end(w);
}

/* The drawing of the manual, one line per state. */
static const char *const drawing[9] = {
    "IDLE: PAUSE",
    "KEY: PAUSE IDLE",
    "DIAL: UPGRADE PAUSE IDLE",
    "UPGRADE: REGISTER FOLLOWUP STREAM PAUSE IDLE",
    "REGISTER: REGISTER FOLLOWUP STREAM PAUSE IDLE",
    "FOLLOWUP: REGISTER FOLLOWUP STREAM PAUSE IDLE",
    "STREAM: REGISTER RUN PAUSE IDLE",
    "RUN: REGISTER PAUSE IDLE",
    "PAUSE: KEY DIAL IDLE"
};

static uint16_t drawn(unsigned row)
{
    static const char *const names[9] = { "IDLE", "KEY", "DIAL", "UPGRADE", "REGISTER", "FOLLOWUP",
                                          "STREAM", "RUN", "PAUSE" };
    unsigned bits = 0, i;
    char     line[80], *word;
    strcpy(line, drawing[row]);
    word = strtok(line, ": ");
    CHECK(strcmp(word, names[row]) == 0);
    while ((word = strtok(NULL, ": ")) != NULL)
        for (i = 0; i < 9; i++)
            if (strcmp(word, names[i]) == 0) bits |= 1u << i;
    return (uint16_t)bits;
}

static void table_is_the_drawing(void)
{
    unsigned i;
    for (i = 0; i < 9; i++) {
        CHECK(tn_ctl_arrows[i] == drawn(i));
        if (tn_ctl_arrows[i] != drawn(i)) printf("  row %u: %s\n", i, drawing[i]);
    }
}

/* Runs last: every arrow that leads to another state was driven by some test. */
static void every_arrow_was_driven(void)
{
    unsigned from, to;
    for (from = 0; from < 9; from++)
        for (to = 0; to < 9; to++) {
            bool is = ((unsigned)drawn(from) >> to & 1u) != 0 && from != to;
            CHECK(!is || ((unsigned)seen[from] >> to & 1u) != 0);
            if (is && ((unsigned)seen[from] >> to & 1u) == 0) printf("  not driven: %u to %u\n", from, to);
        }
}

static tailnet_problem problem_of(const nw_node *d)
{
    tailnet_problem p;
    memset(&p, 0, sizeof p);
    p.section = p.text = "";
    (void)tailnet_get_problem(d->n, &p);
    return p;
}

static nw_member *me(nw_node *d) { return nw_member_of(d->w, d); }

/* ---- joining ---- */

static void join_by_key(void)
{
    nw_world *w = nw_begin(1);
    nw_node  *a = nw_join(w, "alpha");
    char      key[80], text[80];
    tn_wr     t;
    tailnet_self self;

    CHECK(w->keys == 1 && w->registers == 1 && w->maps == 1);
    CHECK(strstr(w->last_register, "\"Version\":138") != NULL);
    CHECK(strstr(w->last_register, "\"AuthKey\":\"key-1\"") != NULL);
    CHECK(strstr(w->last_register, "\"Hostname\":\"alpha\"") != NULL);
    CHECK(strstr(w->last_register, "OldNodeKey") == NULL);
    CHECK(nw_json_text(w->last_map, "NodeKey", key, sizeof key) == 72);
    tn_wr_over(&t, text, sizeof text);
    tn_key_write(&t, TN_KEY_NODE, a->n->node_public);
    CHECK_BYTES(key, text, 72);
    CHECK(nw_json_text(w->last_map, "DiscoKey", key, sizeof key) == 73);
    nw_run(w, 3000);
    CHECK(w->lites >= 1);
    CHECK(strstr(w->last_lite, "\"OmitPeers\":true") != NULL);
    CHECK(strstr(w->last_lite, "\"PreferredDERP\":1") != NULL);
    CHECK(tailnet_get_self(a->n, &self) && self.control_up && self.id == 1);
    CHECK(strcmp(self.name, "alpha.tail.test") == 0);
    CHECK((a->events & TAILNET_EVENT_SAVE) != 0 && a->state_len == TN_KEY_STATE_LEN);
    CHECK((a->events & TAILNET_EVENT_STATE) != 0 && (a->events & TAILNET_EVENT_SELF) != 0);
    done(w);
}

static void join_at_any_split(void)
{
    uint64_t seed;
    for (seed = 100; seed < 130; seed++) {
        nw_world *w = nw_begin(seed);
        nw_node  *a = nw_add(w, "alpha");
        w->calm = seed == 100;
        if (seed % 3 == 0) a->sip = 1 + (uint32_t)(seed % 50);
        nw_up(a);
        CHECK(nw_until(a, TAILNET_STATE_RUNNING, 60000));
        if (!tn_test_ok) printf("  seed %lu\n", (unsigned long)seed);
        done(w);
    }
}

static void pinned_key_asks_for_none(void)
{
    nw_world *w = nw_begin(2);
    nw_node  *a = nw_add(w, "alpha");
    char      text[80];
    tn_wr     t;
    tn_wr_over(&t, text, sizeof text - 1);
    tn_key_write(&t, TN_KEY_MACHINE, w->control_public);
    text[tn_wr_len(&t)] = '\0';
    a->desc.control_key = text;
    nw_up(a);
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 10000));
    CHECK(w->keys == 0);
    text[8] = text[8] == '0' ? '1' : '0';   /* another server's key: never in     */
    nw_kill(a);
    a->state_len = 0;
    nw_up(a);
    nw_run(w, 60000);
    CHECK(nw_state(a) == TAILNET_STATE_CONNECTING && w->keys == 0);
    CHECK(problem_of(a).result == TAILNET_ERR_FORGED || problem_of(a).result == TAILNET_ERR_NETWORK);
    CHECK(strcmp(problem_of(a).section, "noise") == 0);
    done(w);
}

static void bad_pinned_key_is_refused(void)
{
    nw_world *w = nw_begin(2);
    nw_node  *a = nw_add(w, "alpha");
    a->desc.control_key = "mkey:0000000000000000000000000000000000000000000000000000000000000000";
    CHECK(nw_make(a) == TAILNET_ERR_ARGUMENT && a->n == NULL);
    a->desc.control_key = "mkey:12";
    CHECK(nw_make(a) == TAILNET_ERR_ARGUMENT && a->n == NULL);
    done(w);
}

static void key_answers_that_are_none(void)
{
    static const char *const body[] = {
        "", "{}", "[]", "null", "{\"publicKey\":\"mkey:12\"}", "{\"publicKey\":17}", "{\"publicKey\":",
        "{\"x\":{\"publicKey\":\"mkey:1111111111111111111111111111111111111111111111111111111111111111\"}}",
        "{\"publicKey\":\"mkey:0000000000000000000000000000000000000000000000000000000000000000\"}"
    };
    unsigned i;
    for (i = 0; i < sizeof body / sizeof body[0]; i++) {
        nw_world *w = nw_begin(3 + i);
        nw_node  *a = nw_add(w, "alpha");
        w->key_body = body[i];
        nw_up(a);
        nw_run(w, 60000);
        CHECK(nw_state(a) == TAILNET_STATE_CONNECTING);
        CHECK(strcmp(problem_of(a).section, "key") == 0);
        CHECK(w->keys >= 2 && w->keys < 20);
        w->key_body = NULL;                 /* it heals                           */
        CHECK(nw_until(a, TAILNET_STATE_RUNNING, 120000));
        done(w);
    }
}

static void server_too_old_or_too_new(void)
{
    nw_world *w = nw_begin(4);
    nw_node  *a = nw_add(w, "alpha");
    w->key_status = 400;
    w->key_body   = "unsupported";
    nw_up(a);
    nw_run(w, 3600000);
    CHECK(problem_of(a).result == TAILNET_ERR_UNSUPPORTED && problem_of(a).detail == 400);
    CHECK(w->keys < 40);                    /* minutes between tries               */
    done(w);

    w = nw_begin(5);
    a = nw_add(w, "alpha");
    w->register_status = 400;
    w->refuse_text     = "unsupported client version: (138)\n";
    nw_up(a);
    CHECK(nw_until(a, TAILNET_STATE_FAILED, 10000));
    CHECK(problem_of(a).result == TAILNET_ERR_UNSUPPORTED);
    CHECK(strncmp(problem_of(a).text, "unsupported client version", 26) == 0);
    nw_run(w, 3600000);
    CHECK(w->registers == 1);
    done(w);

    w = nw_begin(6);
    a = nw_add(w, "alpha");
    w->map_status  = 400;
    w->refuse_text = "unsupported client version: (138)";
    nw_up(a);
    CHECK(nw_until(a, TAILNET_STATE_FAILED, 10000));
    CHECK(problem_of(a).result == TAILNET_ERR_UNSUPPORTED && problem_of(a).detail == 400);
    done(w);
}

/* A redirect is not followed: the name that the user gave is the one that counts. */
static void key_redirect_is_refused(void)
{
    nw_world *w = nw_begin(8);
    nw_node  *a = nw_add(w, "alpha");
    w->key_moved = "http://control.test/keys/x?v=1";
    nw_up(a);
    nw_run(w, 30000);
    CHECK(nw_state(a) == TAILNET_STATE_CONNECTING && w->upgrades == 0);
    CHECK(problem_of(a).result == TAILNET_ERR_CONTROL && problem_of(a).detail == 302);
    done(w);
}

static void another_key_without_tls(void)
{
    nw_world *w = nw_begin(9);
    nw_node  *a = nw_join(w, "alpha");
    unsigned  before;
    nw_fill(&w->seed, w->control_private, 32);
    tn_cr_x25519_base(w->control_public, w->control_private);
    nw_cut(a, 0);
    before = w->keys;
    nw_run(w, 120000);
    CHECK(w->keys > before);                /* it asked again                     */
    CHECK(problem_of(a).result == TAILNET_ERR_FORGED);
    CHECK(strcmp(problem_of(a).section, "key") == 0 || strcmp(problem_of(a).section, "noise") == 0);
    CHECK(nw_state(a) == TAILNET_STATE_RUNNING);    /* on its last map             */
    done(w);
}

/* ---- registration ---- */

static void auth_key_refused(void)
{
    nw_world *w = nw_begin(10);
    nw_node  *a = nw_add(w, "alpha");
    w->auth_key = "key-2";
    nw_up(a);
    CHECK(nw_until(a, TAILNET_STATE_FAILED, 10000));
    CHECK(problem_of(a).result == TAILNET_ERR_CONTROL);
    CHECK(strcmp(problem_of(a).text, "invalid pre auth key") == 0);
    CHECK((a->events & TAILNET_EVENT_PROBLEM) != 0);
    nw_run(w, 3600000);
    CHECK(w->registers == 1 && nw_state(a) == TAILNET_STATE_FAILED);
    CHECK(tailnet_login(a->n, "key-2") == TAILNET_OK);
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 10000));
    done(w);
}

static void login_by_a_person(void)
{
    nw_world *w = nw_begin(11);
    nw_node  *a = nw_add(w, "alpha");
    char      key[80], again[80];
    a->desc.auth_key = NULL;
    w->register_body = "{\"AuthURL\":\"https://control.test/register/a?b=1\\u0026c\",\"Error\":\"\"}";
    w->hold_register = true;
    nw_up(a);
    CHECK(nw_until(a, TAILNET_STATE_NEEDS_LOGIN, 10000));
    CHECK(strcmp(tailnet_login_url(a->n), "https://control.test/register/a?b=1&c") == 0);
    CHECK((a->events & TAILNET_EVENT_LOGIN) != 0);
    nw_run(w, 100);
    CHECK(w->registers == 2);
    (void)nw_json_text(w->last_register, "NodeKey", key, sizeof key);
    CHECK(strstr(w->last_register, "\"Followup\":\"https://control.test/register/a?b=1&c\"") != NULL);
    nw_run(w, 900000);                      /* nobody comes; PINGs keep it alive   */
    CHECK(w->registers == 2 && w->upgrades == 1);
    CHECK(nw_state(a) == TAILNET_STATE_NEEDS_LOGIN);
    w->hold_register = false;
    w->register_body = NULL;
    a->events        = 0;
    {
        nw_conn   *c = nw_conn_to(a, 0);
        nw_stream *s = nw_stream_by_id(c, 3);
        CHECK(s != NULL);
        if (s != NULL) nw_take_register(w, c, s);
        nw_control_flush(w, c);
    }
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 10000));
    (void)nw_json_text(w->last_register, "NodeKey", again, sizeof again);
    CHECK(strcmp(key, again) == 0);
    CHECK(tailnet_login_url(a->n)[0] == '\0' && (a->events & TAILNET_EVENT_LOGIN) != 0);
    done(w);
}

static void login_url_changes(void)
{
    nw_world *w = nw_begin(12);
    nw_node  *a = nw_add(w, "alpha");
    unsigned  before;
    a->desc.auth_key = NULL;
    w->register_body = "{\"AuthURL\":\"https://control.test/register/1\"}";
    w->hold_register = true;
    nw_up(a);
    CHECK(nw_until(a, TAILNET_STATE_NEEDS_LOGIN, 10000));
    nw_run(w, 100);
    a->events = 0;
    nw_answer(nw_stream_by_id(nw_conn_to(a, 0), 3), 200, "{\"AuthURL\":\"https://control.test/register/2\"}");
    nw_control_flush(w, nw_conn_to(a, 0));
    nw_run(w, 100);
    CHECK(strcmp(tailnet_login_url(a->n), "https://control.test/register/2") == 0);
    CHECK((a->events & TAILNET_EVENT_LOGIN) != 0 && w->upgrades == 1);
    CHECK(strstr(w->last_register, "\"Followup\":\"https://control.test/register/2\"") != NULL);
    /* the connection is lost: the same URL is asked for on the next one */
    nw_cut(a, 0);
    nw_run(w, 5000);
    CHECK(w->upgrades == 2 && nw_state(a) == TAILNET_STATE_NEEDS_LOGIN);
    CHECK(strstr(w->last_register, "\"Followup\":\"https://control.test/register/2\"") != NULL);
    CHECK(strcmp(tailnet_login_url(a->n), "https://control.test/register/2") == 0);
    /* a server that answers the same URL at once is not asked without end */
    w->hold_register = false;
    w->register_body = "{\"AuthURL\":\"https://control.test/register/2\"}";
    before           = w->registers;
    nw_cut(a, 0);
    nw_run(w, 600000);
    CHECK(w->registers > before + 3 && w->registers < before + 40);
    CHECK(nw_state(a) == TAILNET_STATE_NEEDS_LOGIN);
    w->register_body = NULL;
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 120000));
    done(w);
}

/* A follow-up is silent for long; a dead connection shows by its PING. */
static void followup_on_a_dead_connection(void)
{
    nw_world *w = nw_begin(13);
    nw_node  *a = nw_add(w, "alpha");
    a->desc.auth_key = NULL;
    w->register_body = "{\"AuthURL\":\"https://control.test/register/1\"}";
    w->hold_register = true;
    nw_up(a);
    CHECK(nw_until(a, TAILNET_STATE_NEEDS_LOGIN, 10000));
    nw_run(w, 1000);
    nw_freeze(a, 0);
    nw_run(w, 60000);
    CHECK(w->upgrades == 1);
    nw_run(w, 30000);
    CHECK(w->upgrades == 2 && nw_state(a) == TAILNET_STATE_NEEDS_LOGIN);
    done(w);
}

static void expired_key_is_rotated_once(void)
{
    nw_world *w = nw_begin(14);
    nw_node  *a = nw_add(w, "alpha");
    char      first[80], second[80], old[80];
    w->register_body = "{\"NodeKeyExpired\":true,\"AuthURL\":\"\"}";
    nw_up(a);
    while (w->registers == 0) nw_run(w, 1);
    (void)nw_json_text(w->last_register, "NodeKey", first, sizeof first);
    w->register_body = NULL;
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 10000));
    CHECK(w->registers == 2);
    (void)nw_json_text(w->last_register, "NodeKey", second, sizeof second);
    CHECK(nw_json_text(w->last_register, "OldNodeKey", old, sizeof old) == 72);
    CHECK(strcmp(first, second) != 0 && strcmp(first, old) == 0);
    CHECK(memcmp(a->n->node_public, me(a)->key, 32) == 0);
    done(w);

    w = nw_begin(15);
    a = nw_add(w, "alpha");
    w->register_body = "{\"NodeKeyExpired\":true}";
    nw_up(a);
    nw_run(w, 30000);
    CHECK(w->registers == 2);
    CHECK(problem_of(a).result == TAILNET_ERR_CONTROL);
    nw_run(w, 3600000);
    CHECK(w->registers < 50);
    done(w);
}

/* NodeKeyExpired in answer to a follow-up: that URL was for the other key. */
static void expired_key_in_a_followup(void)
{
    nw_world *w = nw_begin(16);
    nw_node  *a = nw_add(w, "alpha");
    a->desc.auth_key = NULL;
    w->register_body = "{\"AuthURL\":\"https://control.test/register/1\"}";
    w->hold_register = true;
    nw_up(a);
    CHECK(nw_until(a, TAILNET_STATE_NEEDS_LOGIN, 10000));
    nw_run(w, 100);
    nw_answer(nw_stream_by_id(nw_conn_to(a, 0), 3), 200, "{\"NodeKeyExpired\":true}");
    w->register_body = NULL;
    nw_control_flush(w, nw_conn_to(a, 0));
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 5000));
    CHECK(w->registers == 3 && strstr(w->last_register, "Followup") == NULL);
    CHECK(strstr(w->last_register, "OldNodeKey") != NULL);
    done(w);
}

static void answers_that_are_none(void)
{
    static const char *const body[] = { "null\n", "", "{", "[]", "17", "{\"AuthURL\":\"\"", "{}{}",
                                        "{\"NodeKeySignature\":\"pQEB\"}" };
    unsigned i;
    for (i = 0; i < sizeof body / sizeof body[0]; i++) {
        nw_world *w = nw_begin(20 + i);
        nw_node  *a = nw_add(w, "alpha");
        w->register_body = body[i];
        nw_up(a);
        nw_run(w, 60000);
        CHECK(nw_state(a) != TAILNET_STATE_RUNNING && w->maps == 0);
        CHECK(w->registers < 12);
        CHECK(problem_of(a).result != TAILNET_OK);
        if (w->maps != 0) printf("  taken: %s\n", body[i]);
        done(w);
    }
}

static void server_is_busy(void)
{
    nw_world *w = nw_begin(30);
    nw_node  *a = nw_add(w, "alpha");
    uint64_t  at;
    w->register_status = 429;
    w->retry_after     = "7";
    nw_up(a);
    while (w->registers == 0) nw_run(w, 1);
    at                 = w->now_ms;
    w->register_status = 0;
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 60000));
CHECK(w->now_ms >= at + 7000 && w->now_ms < at + 9000);
    done(w);

    w = nw_begin(31);
    a = nw_add(w, "alpha");
    w->register_status = 503;
    nw_up(a);
    nw_run(w, 60000);
    CHECK(problem_of(a).result == TAILNET_ERR_CONTROL && problem_of(a).detail == 503);
    CHECK(w->registers > 3 && w->registers < 15);
    w->register_status = 0;
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 120000));
    done(w);
}

/* The hosted service answers 404 when a node was deleted: register again. */
static void deleted_node_registers_again(void)
{
    nw_world *w = nw_begin(32);
    nw_node  *a = nw_join(w, "alpha");
    nw_run(w, 2000);
    me(a)->known = false;                   /* nobody says so                      */
    nw_run(w, 1150000);
    CHECK(w->registers == 1);
    nw_run(w, 100000);                      /* the refresh shows it                */
    CHECK(w->registers == 2 && nw_state(a) == TAILNET_STATE_RUNNING && me(a)->known);
    nw_kill(a);
    me(a)->known = false;
    nw_up(a);
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 20000));
    CHECK(w->registers == 3);
    done(w);
}

static void rekey_keeps_the_old_key_until_taken(void)
{
    nw_world *w = nw_begin(33);
    nw_node  *a, *b;
    uint8_t   old[32];
    nw_pair(w, &a, &b);
    memcpy(old, a->n->node_public, 32);
    w->register_body = "{\"AuthURL\":\"https://control.test/register/9\"}";
    w->hold_register = true;
    CHECK(tailnet_login(a->n, NULL) == TAILNET_OK);
    nw_run(w, 5000);
    CHECK(strcmp(tailnet_login_url(a->n), "https://control.test/register/9") == 0);
    CHECK(nw_state(a) == TAILNET_STATE_RUNNING);
    CHECK(memcmp(old, a->n->node_public, 32) == 0);
    CHECK(nw_send(a, b, 7, "still there") == TAILNET_OK);
    nw_run(w, 200);
    CHECK(nw_got(b, "still there") == 1);
    w->register_body = NULL;
    w->hold_register = false;
    nw_cut(a, 0);
    nw_run(w, 20000);
    CHECK(memcmp(old, a->n->node_public, 32) != 0);
    CHECK(memcmp(me(a)->key, a->n->node_public, 32) == 0);
    CHECK(nw_state(a) == TAILNET_STATE_RUNNING);
    CHECK(nw_send(a, b, 7, "under the other key") == TAILNET_OK);
    nw_run(w, 10000);
    CHECK(nw_got(b, "under the other key") == 1);
    done(w);
}

static void rekey_with_a_key_that_is_refused(void)
{
    nw_world *w = nw_begin(34);
    nw_node  *a = nw_join(w, "alpha");
    w->register_body = "{\"Error\":\"authkey expired\"}";
    CHECK(tailnet_login(a->n, "key-9") == TAILNET_OK);
    CHECK(nw_until(a, TAILNET_STATE_FAILED, 10000));
    CHECK(strcmp(problem_of(a).text, "authkey expired") == 0);
    w->register_body = NULL;
    CHECK(tailnet_login(a->n, "key-1") == TAILNET_OK);
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 10000));
    done(w);
}

static void logout_signs_out(void)
{
    nw_world *w = nw_begin(35);
    nw_node  *a = nw_join(w, "alpha");
    uint8_t   old[32];
    memcpy(old, a->n->node_public, 32);
    nw_run(w, 1000);
    CHECK(tailnet_logout(a->n) == TAILNET_OK);
    CHECK(nw_until(a, TAILNET_STATE_DOWN, 10000));
    CHECK(strstr(w->last_register, "\"Expiry\":\"1970-01-01T00:02:03Z\"") != NULL);
    CHECK(strstr(w->last_register, "AuthKey") == NULL);
    CHECK(!me(a)->known && memcmp(old, a->n->node_public, 32) != 0);
    CHECK(tailnet_peer_count(a->n) == 0);
    nw_run(w, 1000);
    CHECK(nw_conn_to(a, 0) == NULL && nw_conn_to(a, 1) == NULL);
    CHECK(tailnet_deadline(a->n) == UINT64_MAX);
    CHECK(tailnet_up(a->n) == TAILNET_OK);
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 20000));
    CHECK(w->registers == 3);
    done(w);
}

static void logout_from_down(void)
{
    nw_world *w = nw_begin(36);
    nw_node  *a = nw_join(w, "alpha");
    CHECK(tailnet_down(a->n) == TAILNET_OK);
    CHECK(nw_until(a, TAILNET_STATE_DOWN, 1000));
    nw_run(w, 1000);
    CHECK(tailnet_deadline(a->n) == UINT64_MAX);
    CHECK(tailnet_logout(a->n) == TAILNET_OK);
    nw_run(w, 10000);
    CHECK(!me(a)->known && nw_state(a) == TAILNET_STATE_DOWN);
    CHECK(nw_conn_to(a, 0) == NULL);
    done(w);
}

/* The server is not well when we sign out: we come again. A person who has no
 * patience goes down, and then it is forgotten. */
static void logout_from_a_busy_server(void)
{
    nw_world *w = nw_begin(37);
    nw_node  *a = nw_join(w, "alpha");
    nw_run(w, 1000);
    w->register_status = 503;
    CHECK(tailnet_logout(a->n) == TAILNET_OK);
    nw_run(w, 5000);
    CHECK(nw_state(a) == TAILNET_STATE_RUNNING && me(a)->known && w->registers > 1);
    w->register_status = 0;
    CHECK(nw_until(a, TAILNET_STATE_DOWN, 60000));
    CHECK(!me(a)->known);
    done(w);

    w = nw_begin(38);
    a = nw_join(w, "alpha");
    nw_run(w, 1000);
    w->register_status = 503;
    CHECK(tailnet_logout(a->n) == TAILNET_OK);
    nw_run(w, 5000);
    CHECK(tailnet_down(a->n) == TAILNET_OK);
    nw_run(w, 1000);
    w->register_status = 0;
    CHECK(nw_state(a) == TAILNET_STATE_DOWN && tailnet_deadline(a->n) == UINT64_MAX);
    CHECK(tailnet_up(a->n) == TAILNET_OK);
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 20000));
    nw_run(w, 5000);
    CHECK(nw_state(a) == TAILNET_STATE_RUNNING && me(a)->known);
    done(w);
}

/* A key given to tailnet_login may be wiped once it is taken. */
static void lent_key_is_not_kept(void)
{
    nw_world *w   = nw_begin(39);
    nw_node  *a   = nw_join(w, "alpha");
    char     *key = (char *)malloc(16);
    if (key == NULL) return;
    strcpy(key, "key-lent");
    CHECK(tailnet_login(a->n, key) == TAILNET_OK);
    nw_run(w, 2000);
    CHECK(strstr(w->last_register, "key-lent") != NULL && nw_state(a) == TAILNET_STATE_RUNNING);
    free(key);
    me(a)->known = false;
    nw_cut(a, 0);
    nw_run(w, 5000);
    CHECK(me(a)->known && strstr(w->last_register, "AuthKey") == NULL);
    done(w);
}

/* ---- the map stream ---- */

static void first_map_has_no_node(void)
{
    nw_world *w = nw_begin(40);
    nw_node  *a = nw_add(w, "alpha");
    w->first_map = "{\"Peers\":[]}";
    nw_up(a);
    nw_run(w, 20000);
    CHECK(nw_state(a) == TAILNET_STATE_CONNECTING);
    CHECK(problem_of(a).result == TAILNET_ERR_MALFORMED && strcmp(problem_of(a).section, "map") == 0);
    CHECK(w->maps > 1 && w->maps < 15);
    w->first_map = NULL;
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 60000));
    done(w);
}

/* Raw bytes of the body of the map stream. */
static void raw(nw_node *d, const void *bytes, size_t len)
{
    nw_stream *s = nw_map_of(me(d));
    CHECK(s != NULL);
    if (s == NULL) return;
    nw_out(s, bytes, len);
    nw_control_flush(d->w, me(d)->conn);
}

static void messages_at_any_split(void)
{
    nw_world *w = nw_begin(41);
    nw_node  *a = nw_join(w, "alpha");
    char      text[200];
    unsigned  i, maps = w->maps;
    tn_wr     t;
    uint8_t   bytes[256];
    size_t    k;

    /* 0x7b is '{': nobody may look for the beginning of a message */
    for (i = 120; i < 126; i++) {
        memset(text, ' ', sizeof text);
        memcpy(text, "{\"KeepAlive\":true}", 18);
        tn_wr_over(&t, bytes, sizeof bytes);
        tn_wr_u32le(&t, i);
        tn_wr_bytes(&t, text, i);
        for (k = 0; k < tn_wr_len(&t); k++) {
            raw(a, bytes + k, 1);
            if (i % 2 == 0) nw_run(w, 7);
        }
        nw_run(w, 100);
    }
    nw_ghost(w, "ghost", 1);
    nw_announce(w, &w->members[1]);
    nw_run(w, 100);
    CHECK(tailnet_peer_count(a->n) == 1 && w->maps == maps);
    CHECK(w->upgrades == 1);
    done(w);
}

/* The answer to a registration comes in the middle of a map message. */
static void answer_inside_a_message(void)
{
    static const char text[] = "{\"PeersChanged\":[{\"ID\":9,\"Name\":\"late.tail.test.\",\"Key\":"
        "\"nodekey:1f2e3d4c5b6a79880716253443526170f0e1d2c3b4a5968778695a4b3c2d1e0f\","
        "\"Addresses\":[\"100.64.0.9/32\"],\"HomeDERP\":1}]}";
    nw_world *w = nw_begin(42);
    nw_node  *a = nw_join(w, "alpha");
    uint8_t   head[4] = { sizeof text - 1, 0, 0, 0 };
    nw_run(w, 2000);
    w->register_body = "{\"AuthURL\":\"https://control.test/register/1\"}";
    w->hold_register = true;
    raw(a, head, 4);
    raw(a, text, 60);
    CHECK(tailnet_login(a->n, NULL) == TAILNET_OK);
    nw_run(w, 500);
    CHECK(strcmp(tailnet_login_url(a->n), "https://control.test/register/1") == 0);
    raw(a, text + 60, sizeof text - 1 - 60);
    nw_run(w, 500);
    CHECK(tailnet_peer_count(a->n) == 1 && w->upgrades == 1);
    CHECK(nw_state(a) == TAILNET_STATE_RUNNING);
    done(w);
}

static void messages_that_are_none(void)
{
    static const struct { uint32_t len; const char *text; } bad[] = {
        { 0, "" }, { 67108865, "{" }, { 0xffffffffu, "{" }, { 2, "[]" }, { 4, "true" },
        { 19, "{\"KeepAlive\":true}x" }, { 18, "{\"KeepAlive\":true " }, { 3, "{} {" }, { 6, "{\"a\":}" }
    };
    unsigned i;
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        nw_world *w = nw_begin(50 + i);
        nw_node  *a = nw_join(w, "alpha");
        uint8_t   bytes[64];
        tn_wr     t;
        bool      legal = bad[i].len == 3;
        nw_run(w, 1000);
        tn_wr_over(&t, bytes, sizeof bytes);
        tn_wr_u32le(&t, bad[i].len);
        tn_wr_text(&t, bad[i].text);
        raw(a, bytes, tn_wr_len(&t));
        nw_run(w, 3000);
        CHECK(nw_state(a) == TAILNET_STATE_RUNNING);
        CHECK(legal || w->upgrades == 2);
        CHECK(legal || (problem_of(a).result == TAILNET_ERR_MALFORMED));
        if (!tn_test_ok) printf("  case %u, upgrades %u\n", i, w->upgrades);
        done(w);
    }
}

static void server_falls_silent(void)
{
    nw_world    *w = nw_begin(60);
    nw_node     *a = nw_join(w, "alpha");
    tailnet_self self;
    nw_run(w, 1000);
    w->keepalive_ms = 0;
    nw_run(w, 118000);
    CHECK(w->upgrades == 1);
    nw_run(w, 5000);
    CHECK(w->upgrades == 2 && nw_state(a) == TAILNET_STATE_RUNNING);
    CHECK(problem_of(a).result == TAILNET_ERR_TIMEOUT);
    CHECK(tailnet_get_self(a->n, &self) && self.control_up);
    done(w);

    w = nw_begin(61);                       /* the answer to the map request stays out */
    a = nw_add(w, "alpha");
    w->hold_map     = true;
    w->keepalive_ms = 0;
    nw_up(a);
    nw_run(w, 115000);
    CHECK(w->upgrades == 1);
    nw_run(w, 15000);
    CHECK(w->upgrades == 2);
    done(w);
}

typedef enum ending { END_STREAM, END_GOAWAY, END_RESET, END_CLOSE, END_FLIP, END_REFUSED } ending;

static void end_it(nw_node *d, ending how)
{
    nw_conn   *c = nw_conn_to(d, 0);
    nw_stream *s = nw_map_of(me(d));
    if (c == NULL || s == NULL) return;
    switch (how) {
    case END_STREAM:
        s->end = true;
        nw_out(s, "", 0);
        {
            uint8_t record[64];
            tn_wr   o;
            tn_wr_over(&o, record + 3, 40);
            CHECK(tn_h2_data_head(&c->h2, &o, s->id, 0, true));
            nw_pipe_put(d->w, &c->down, record, tn_nz_seal(&c->nz, record, tn_wr_len(&o)));
        }
        break;
    case END_GOAWAY:
        tn_h2_close(&c->h2, TN_H2_NO_ERROR);
        c->leave = true;
        nw_control_flush(d->w, c);
        break;
    case END_RESET:
        tn_h2_cancel(&c->h2, s->id, TN_H2_CANCEL);
        nw_control_flush(d->w, c);
        break;
    case END_CLOSE:
    case END_REFUSED:
        nw_cut(d, 0);
        break;
    case END_FLIP:
        c->down.flip = 5;
        (void)nw_say(d->w, me(d), "{\"KeepAlive\":true}");
        break;
    }
}

static void stream_ends_and_comes_back(void)
{
    unsigned how;
    for (how = 0; how <= END_FLIP; how++) {
        nw_world *w = nw_begin(70 + how);
        nw_node  *a, *b;
        unsigned  upgrades, registers, i;
        nw_pair(w, &a, &b);
        registers = w->registers;
        for (i = 0; i < 3; i++) {
            upgrades = w->upgrades;
            end_it(a, (ending)how);
            nw_run(w, 5000);
            CHECK(w->upgrades == upgrades + 1 && w->registers == registers);
            CHECK(nw_state(a) == TAILNET_STATE_RUNNING);
            CHECK(nw_send(a, b, 7, "meanwhile") == TAILNET_OK);
            nw_run(w, 100);
            CHECK(nw_got(b, "meanwhile") == i + 1);
            if (!tn_test_ok) printf("  ending %u, time %u\n", how, i);
        }
        done(w);
    }
}

/* However it fails, the server is not hammered. */
static void attempts_per_hour(void)
{
    unsigned how;
    for (how = 0; how < 5; how++) {
        nw_world *w = nw_begin(80 + how);
        nw_node  *a = nw_join(w, "alpha");
        unsigned  dials;
        nw_run(w, 1000);
        if (how == 0) w->refuse = true;
        if (how == 1) w->deaf = true;
        if (how == 2) w->drop_upgrade = true;
        if (how == 3) w->map_status = 500;
        if (how == 4) w->first_map = "{}";
        nw_cut(a, 0);
        nw_run(w, 60000);
        dials = w->dials;
        nw_run(w, 3600000);
        CHECK(w->dials - dials >= 40 && w->dials - dials <= 150);
        if (!tn_test_ok) printf("  case %u: %u dials in an hour\n", how, w->dials - dials);
        CHECK(nw_state(a) == TAILNET_STATE_RUNNING);
        w->refuse = w->deaf = w->drop_upgrade = false;
        w->map_status = 0;
        w->first_map  = NULL;
        nw_run(w, 120000);
        CHECK(a->n->ctl.state == TN_CTL_RUN);
        done(w);
    }
}

static void lite_updates_are_rare(void)
{
    nw_world     *w = nw_begin(90);
    nw_node      *a = nw_join(w, "alpha");
    tailnet_prefs prefs = a->desc.prefs;
    unsigned      lites;
    nw_run(w, 5000);
    lites = w->lites;
    CHECK(lites >= 1 && lites <= 3);
    nw_run(w, 900000);
    CHECK(w->lites == lites);               /* nothing changed                     */
    prefs.shields_up = true;
    CHECK(tailnet_set_prefs(a->n, &prefs) == TAILNET_OK);
    nw_run(w, 1000);
    CHECK(w->lites == lites + 1 && strstr(w->last_lite, "\"ShieldsUp\":true") != NULL);
    prefs.home_region = 2;
    CHECK(tailnet_set_prefs(a->n, &prefs) == TAILNET_OK);
    nw_run(w, 5000);
    CHECK(strstr(w->last_lite, "\"PreferredDERP\":2") != NULL);
    CHECK(w->lites <= lites + 4);
    CHECK(w->upgrades == 1 && w->maps == 1);
    done(w);

    w = nw_begin(91);                       /* no answer to one: the connection is dead */
    a = nw_join(w, "alpha");
    nw_run(w, 2000);
    prefs            = a->desc.prefs;
    prefs.shields_up = true;
    CHECK(tailnet_set_prefs(a->n, &prefs) == TAILNET_OK);
    nw_freeze(a, 0);
    nw_run(w, 40000);
    CHECK(w->upgrades == 2 && nw_state(a) == TAILNET_STATE_RUNNING);
    done(w);
}

static void prefs_change_while_a_request_is_written(void)
{
    nw_world     *w = nw_begin(92);
    nw_node      *a = nw_join(w, "alpha");
    tailnet_prefs prefs = a->desc.prefs;
    unsigned      i;
    a->sip = 60;                            /* a request takes many turns          */
    for (i = 0; i < 40; i++) {
        prefs.shields_up = i % 2 == 0;
        prefs.hostname   = i % 3 == 0 ? "a-much-longer-name-than-before" : "b";
        CHECK(tailnet_set_prefs(a->n, &prefs) == TAILNET_OK);
        nw_run(w, 1 + i % 7);
    }
    nw_run(w, 20000);
    CHECK(nw_state(a) == TAILNET_STATE_RUNNING && w->upgrades == 1);
    CHECK(strstr(w->last_lite, "ShieldsUp") == NULL);
    CHECK(strstr(w->last_lite, "\"Hostname\":\"a-much-longer-name-than-before\"") != NULL);
    done(w);
}

/* ---- pings of the server ---- */

static void server_asks_for_a_sign(void)
{
    nw_world *w = nw_begin(95);
    nw_node  *a = nw_add(w, "alpha");
    a->desc.max_links = 3;                  /* one for the request from outside    */
    nw_up(a);
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 20000));
    nw_run(w, 2000);
    CHECK(nw_say(w, me(a), "{\"PingRequest\":{\"URL\":\"https://unused/ping/1\",\"URLIsNoise\":true}}"));
    nw_run(w, 200);
    CHECK(w->answers == 1 && strcmp(w->last_method, "HEAD") == 0 && strcmp(w->last_path, "/ping/1") == 0);
    CHECK(nw_say(w, me(a), "{\"PingRequest\":{\"URL\":\"https://unused/ping/1\",\"URLIsNoise\":true}}"));
    nw_run(w, 200);
    CHECK(w->answers == 1);                 /* the same one again                  */
    CHECK(nw_say(w, me(a), "{\"PingRequest\":{\"URL\":\"http://control.test/machine/ping-response?id=7\"}}"));
    nw_run(w, 1000);
    CHECK(w->heads == 1 && strcmp(w->last_head, "/machine/ping-response?id=7") == 0);
    CHECK(nw_say(w, me(a), "{\"PingRequest\":{\"URL\":\"http://other.test/x\"}}"));
    nw_run(w, 1000);
    CHECK(w->heads == 1);                   /* we knock at no other door           */
    CHECK(w->upgrades == 1 && nw_state(a) == TAILNET_STATE_RUNNING);
    done(w);
}

/* Two connections, both in use: the relay makes place for the visit and comes back. */
static void visit_without_a_free_link(void)
{
    nw_world *w = nw_begin(98);
    nw_node  *a = nw_join(w, "alpha");
    unsigned  i;
    nw_run(w, 3000);
    CHECK(tn_relay_is_up(&a->n->relay));
    for (i = 1; i <= 3; i++) {
        CHECK(nw_say(w, me(a), "{\"PingRequest\":{\"URL\":\"http://control.test/visit\"}}"));
        CHECK(nw_say(w, me(a), "{\"PingRequest\":{\"URL\":\"http://control.test/again\"}}"));
        nw_run(w, 3000);
        CHECK(w->heads == 2 * i && strcmp(w->last_head, "/derp") == 0);
        CHECK(tn_relay_is_up(&a->n->relay) && !a->n->ctl.crowded);
    }
    CHECK(w->upgrades == 1 && nw_state(a) == TAILNET_STATE_RUNNING);
    done(w);
}

/* Where control was dialled: port, and whether with TLS. */
static struct { uint16_t port; bool tls; } dialled[8];
static unsigned dialled_count;

static int note_dial(void *user, tailnet_link link, const tailnet_dial *dial)
{
    if (strncmp(dial->host, "relay", 5) != 0 && dialled_count < 8) {
        dialled[dialled_count].port  = dial->port;
        dialled[dialled_count++].tls = dial->tls;
    }
    return nw_io_open(user, link, dial);
}

/* The key by TLS, then Noise in the clear: on port 80, or the one that is named. */
static void key_by_tls_then_plain(void)
{
    static const struct { const char *url; uint16_t http_port, key_port, port; bool tls, all; } rows[] = {
        { "https://control.test",      0,    443,  80,   false, false },
        { "https://control.test",      8080, 443,  8080, false, false },
        { "https://control.test:8443", 8080, 8443, 8080, false, false },
        { "https://control.test:8443", 0,    8443, 8443, true,  false },
        { "https://control.test:8443", 8080, 8443, 8443, true,  true },
        { "https://control.test",      0,    443,  443,  true,  true }
    };
    unsigned i;
    for (i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        nw_world *w = nw_begin(110 + i);
        nw_node  *a = nw_add(w, "alpha");
        dialled_count = 0;
        a->desc.io.tcp_open       = note_dial;
        a->desc.control_url       = rows[i].url;
        a->desc.control_http_port = rows[i].http_port;
        a->desc.control_tls       = rows[i].all;
        nw_up(a);
        CHECK(nw_until(a, TAILNET_STATE_RUNNING, 20000));
        CHECK(dialled_count == 2 && dialled[0].tls && dialled[0].port == rows[i].key_port);
        CHECK(dialled[1].port == rows[i].port && dialled[1].tls == rows[i].tls);
        nw_cut(a, 0);                       /* once more: the key is known            */
        nw_run(w, 5000);
        CHECK(dialled_count == 3 && dialled[2].port == rows[i].port && dialled[2].tls == rows[i].tls);
        if (!tn_test_ok) printf("  row %u: %u dials, then to %u\n", i, dialled_count, dialled[2].port);
        done(w);
    }
}

/* A server that takes the upgrade and then says nothing has another key. */
static void upgrade_then_silence(void)
{
    nw_world *w = nw_begin(117);
    nw_node  *a = nw_add(w, "alpha");
    w->mute_upgrade = true;
    nw_up(a);
    nw_run(w, 20000);
    CHECK(w->keys == 1 && problem_of(a).section[0] == '\0');
    nw_run(w, 20000);
    CHECK(w->keys >= 2);                    /* it asks for the key once more       */
    CHECK(problem_of(a).result == TAILNET_ERR_FORGED);
    CHECK(strcmp(problem_of(a).section, "noise") == 0);
    done(w);
}

static unsigned refused_by_proxy;

static int32_t proxy_refuses(void *user, tailnet_link link, const void *data, size_t size)
{
    static const char no[] = "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n";
    nw_node *d = (nw_node *)user;
    nw_conn *c = nw_conn_of(d, link);
    if (!tn_begins((const char *)data, size, "CONNECT ")) return (int32_t)size;
    CHECK(strcmp(c->host, "proxy.test") == 0);
    refused_by_proxy++;
    nw_pipe_put(d->w, &c->down, (const uint8_t *)no, sizeof no - 1);
    return (int32_t)size;
}

/* The problem is the proxy's, with its number, and no storm of attempts. */
static void proxy_refuses_us(void)
{
    nw_world *w = nw_begin(118);
    nw_node  *a = nw_add(w, "alpha");
    a->desc.proxy         = "us:wrong@proxy.test:3128";
    a->desc.io.tcp_output = proxy_refuses;
    refused_by_proxy      = 0;
    nw_up(a);
    nw_run(w, 60000);
    CHECK(strcmp(problem_of(a).section, "proxy") == 0);
    CHECK(problem_of(a).result == TAILNET_ERR_DENIED && problem_of(a).detail == 407);
    CHECK(refused_by_proxy >= 4 && refused_by_proxy <= 10);
    done(w);
}

static void say_c2n(nw_world *w, nw_node *a, unsigned number, const char *request)
{
    char  text[2048];
    tn_wr t;
    tn_wr_over(&t, text, sizeof text - 1);
    tn_wr_text(&t, "{\"PingRequest\":{\"URL\":\"https://unused/c2n/");
    tn_wr_dec(&t, number);
    tn_wr_text(&t, "\",\"Types\":\"c2n\",\"Payload\":\"");
    tn_wr_base64(&t, (const uint8_t *)request, strlen(request));
    tn_wr_text(&t, "\"}}");
    text[tn_wr_len(&t)] = '\0';
    CHECK(nw_say(w, me(a), text));
    nw_run(w, 300);
}

static void server_asks_inside(void)
{
    nw_world *w = nw_begin(96);
    nw_node  *a = nw_join(w, "alpha");
    char      longest[600];
    nw_run(w, 2000);
    say_c2n(w, a, 1, "POST /echo HTTP/1.1\r\nHost: \r\nTransfer-Encoding: chunked\r\n\r\n"
                     "a\r\nping=hello\r\n0\r\n\r\n");
    CHECK(w->answers == 1 && strcmp(w->last_path, "/c2n/1") == 0);
    CHECK(strcmp(w->last_answer, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nping=hello") == 0);
    say_c2n(w, a, 2, "GET /debug/goroutines HTTP/1.1\r\nHost: x\r\n\r\n");
    CHECK(w->answers == 2);
    CHECK(strstr(w->last_answer, "HTTP/1.1 400") == w->last_answer);
    CHECK(strstr(w->last_answer, "unknown c2n path") != NULL);
    say_c2n(w, a, 3, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
    CHECK(w->answers == 3 && strstr(w->last_answer, "200 OK\r\nContent-Length: 0\r\n") != NULL);
    say_c2n(w, a, 4, "rubbish");
    CHECK(w->answers == 4 && strstr(w->last_answer, "400") != NULL);
    memset(longest, 'x', sizeof longest);
    longest[sizeof longest - 1] = '\0';
    say_c2n(w, a, 5, longest);              /* more than is kept: no answer, no harm */
    CHECK(nw_say(w, me(a),
                 "{\"PingRequest\":{\"URL\":\"https://unused/6\",\"Types\":\"disco,TSMP\",\"IP\":\"100.64.0.9\"}}"));
    nw_run(w, 1000);
    CHECK(w->upgrades == 1 && nw_state(a) == TAILNET_STATE_RUNNING);
    nw_ghost(w, "ghost", 1);
    nw_announce(w, &w->members[1]);
    nw_run(w, 100);
    CHECK(tailnet_peer_count(a->n) == 1);   /* the stream goes on                  */
    done(w);
}

/* A ping request in the middle of a message, while the link is full. */
static void answer_waits_for_room(void)
{
    nw_world *w = nw_begin(97);
    nw_node  *a = nw_join(w, "alpha");
    nw_run(w, 2000);
    a->mute = true;
    nw_ghost(w, "ghost", 1);
    CHECK(nw_say(w, me(a), "{\"PingRequest\":{\"URL\":\"https://unused/1\",\"URLIsNoise\":true}}"));
    CHECK(nw_say(w, me(a), "{\"PingRequest\":{\"URL\":\"https://unused/2\",\"URLIsNoise\":true}}"));
    nw_announce(w, &w->members[1]);
    nw_run(w, 3000);
    CHECK(w->answers == 0);
    a->mute = false;
    nw_run(w, 1000);
    CHECK(w->answers == 2 && tailnet_peer_count(a->n) == 1);
    CHECK(nw_state(a) == TAILNET_STATE_RUNNING);
    done(w);
}

/* ---- states ---- */

static void states_end_at_down(void)
{
    unsigned ms;
    for (ms = 0; ms < 60; ms++) {           /* at every moment of a join           */
        nw_world *w = nw_begin(200);
        nw_node  *a = nw_add(w, "alpha");
        w->hold_map = ms % 2 == 0;
        w->early    = false;
        nw_up(a);
        nw_run(w, ms);
        CHECK(tailnet_down(a->n) == TAILNET_OK);
        nw_run(w, 100);
        CHECK(nw_state(a) == TAILNET_STATE_DOWN && a->n->ctl.state == TN_CTL_IDLE);
        CHECK(nw_conn_to(a, 0) == NULL && tailnet_deadline(a->n) == UINT64_MAX);
        w->hold_map = false;
        CHECK(tailnet_up(a->n) == TAILNET_OK);
        CHECK(nw_until(a, TAILNET_STATE_RUNNING, 20000));
        done(w);
    }
}

static void states_end_when_cut(void)
{
    unsigned ms, login;
    for (ms = 0; ms < 60; ms++) {
        nw_world *w = nw_begin(201);
        nw_node  *a = nw_add(w, "alpha");
        login       = ms % 3;
        if (login == 1) a->desc.auth_key = NULL;
        if (login == 1) w->register_body = "{\"AuthURL\":\"https://control.test/1\"}";
        if (login == 1) w->hold_register = true;
        w->early = false;
        nw_up(a);
        nw_run(w, ms);
        nw_cut(a, 0);
        nw_run(w, 2000);
        if (login == 2) CHECK(tailnet_login(a->n, "key-7") == TAILNET_OK);
        if (login == 1) CHECK(nw_state(a) == TAILNET_STATE_NEEDS_LOGIN);
        w->hold_register = false;
        w->register_body = NULL;
        if (login == 1) nw_cut(a, 0);
        CHECK(nw_until(a, TAILNET_STATE_RUNNING, 60000));
        if (!tn_test_ok) printf("  at %u ms\n", ms);
        done(w);
    }
}

static void down_while_waiting_for_a_person(void)
{
    nw_world *w = nw_begin(202);
    nw_node  *a = nw_add(w, "alpha");
    a->desc.auth_key = NULL;
    w->register_body = "{\"AuthURL\":\"https://control.test/1\"}";
    w->hold_register = true;
    nw_up(a);
    CHECK(nw_until(a, TAILNET_STATE_NEEDS_LOGIN, 5000));
    CHECK(tailnet_down(a->n) == TAILNET_OK);
    nw_run(w, 100);
    CHECK(nw_state(a) == TAILNET_STATE_DOWN && tailnet_login_url(a->n)[0] == '\0');
    w->refuse = true;
    CHECK(tailnet_up(a->n) == TAILNET_OK);
    nw_run(w, 5000);
    CHECK(tailnet_down(a->n) == TAILNET_OK);
    nw_run(w, 100);
    CHECK(nw_state(a) == TAILNET_STATE_DOWN);
    done(w);
}

/* A new login in every state. */
static void login_at_any_time(void)
{
    unsigned ms;
    for (ms = 0; ms < 60; ms++) {
        nw_world *w = nw_begin(203);
        nw_node  *a = nw_add(w, "alpha");
        w->early    = false;
        w->hold_map = ms % 2 == 0;
        nw_up(a);
        nw_run(w, ms);
        w->hold_map = false;
        CHECK(tailnet_login(a->n, "key-3") == TAILNET_OK);
        nw_run(w, 20);
        CHECK(nw_until(a, TAILNET_STATE_RUNNING, 20000));
        CHECK(strstr(w->last_register, "key-3") != NULL);
        CHECK(memcmp(me(a)->key, a->n->node_public, 32) == 0);
        done(w);
    }
}

static void network_goes_and_comes(void)
{
    nw_world       *w = nw_begin(204);
    nw_node        *a = nw_join(w, "alpha");
    tailnet_network net;
    unsigned        upgrades = w->upgrades;
    memset(&net, 0, sizeof net);
    net.changed = true;
    CHECK(tailnet_set_network(a->n, &net) == TAILNET_OK);
    nw_run(w, 1000);
    CHECK(w->upgrades == upgrades + 1 && a->n->ctl.state == TN_CTL_RUN);
    net.changed = false;
    net.down    = true;
    CHECK(tailnet_set_network(a->n, &net) == TAILNET_OK);
    w->refuse = true;
    nw_cut(a, 0);
    nw_run(w, 600000);
    w->refuse = net.down = false;
    CHECK(tailnet_set_network(a->n, &net) == TAILNET_OK);
    nw_run(w, 1000);                        /* at once, whatever the back-off was  */
    CHECK(a->n->ctl.state == TN_CTL_RUN && nw_state(a) == TAILNET_STATE_RUNNING);
    done(w);
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    TEST(table_is_the_drawing);
    TEST(join_by_key);
    TEST(join_at_any_split);
    TEST(pinned_key_asks_for_none);
    TEST(bad_pinned_key_is_refused);
    TEST(key_answers_that_are_none);
    TEST(server_too_old_or_too_new);
    TEST(key_redirect_is_refused);
    TEST(another_key_without_tls);
    TEST(auth_key_refused);
    TEST(login_by_a_person);
    TEST(login_url_changes);
    TEST(followup_on_a_dead_connection);
    TEST(expired_key_is_rotated_once);
    TEST(expired_key_in_a_followup);
    TEST(answers_that_are_none);
    TEST(server_is_busy);
    TEST(deleted_node_registers_again);
    TEST(rekey_keeps_the_old_key_until_taken);
    TEST(rekey_with_a_key_that_is_refused);
    TEST(logout_signs_out);
    TEST(logout_from_down);
    TEST(logout_from_a_busy_server);
    TEST(lent_key_is_not_kept);
    TEST(first_map_has_no_node);
    TEST(messages_at_any_split);
    TEST(answer_inside_a_message);
    TEST(messages_that_are_none);
    TEST(server_falls_silent);
    TEST(stream_ends_and_comes_back);
    TEST(attempts_per_hour);
    TEST(lite_updates_are_rare);
    TEST(prefs_change_while_a_request_is_written);
    TEST(server_asks_for_a_sign);
    TEST(visit_without_a_free_link);
    TEST(key_by_tls_then_plain);
    TEST(upgrade_then_silence);
    TEST(proxy_refuses_us);
    TEST(server_asks_inside);
    TEST(answer_waits_for_room);
    TEST(states_end_at_down);
    TEST(states_end_when_cut);
    TEST(down_while_waiting_for_a_person);
    TEST(login_at_any_time);
    TEST(network_goes_and_comes);
    TEST(every_arrow_was_driven);
    return tn_test_end();
}
