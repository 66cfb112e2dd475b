/* report.h - one line of text at a time, without printf; used by main.c and modem.c. */
#ifndef REPORT_H
#define REPORT_H

#include "board.h"
#include "tailnet.h"

typedef struct report {
    char     text[100];
    unsigned at;
} report;

static inline void say_text(report *r, const char *text)
{
    while (*text != '\0' && r->at < sizeof r->text - 1) r->text[r->at++] = *text++;
}

static inline void say_number(report *r, uint64_t n)
{
    char     digits[21];
    unsigned i = sizeof digits;
    digits[--i] = '\0';
    do {
        digits[--i] = (char)('0' + (unsigned)(n % 10));
        n /= 10;
    } while (n != 0);
    say_text(r, digits + i);
}

static inline void say_ip4(report *r, const uint8_t *ip)
{
    unsigned i;
    for (i = 0; i < 4; i++) {
        if (i != 0) say_text(r, ".");
        say_number(r, ip[i]);
    }
}

static inline void say_end(report *r)
{
    r->text[r->at] = '\0';
    board_print(r->text);
    r->at = 0;
}

/* A word and a number, in one line. */
static inline void say(const char *what, uint64_t n)
{
    report r;
    r.at = 0;
    say_text(&r, what);
    say_text(&r, " ");
    say_number(&r, n);
    say_end(&r);
}

/* Who we are, when that was known, what it took. */
static inline void say_running(const tailnet_node *node)
{
    report       r;
    tailnet_self self;
    if (!tailnet_get_self(node, &self)) return;
    r.at = 0;
    say_text(&r, "running ");
    say_ip4(&r, self.ip4.ip);
    say_text(&r, " ms ");
    say_number(&r, board_millis());
    say_text(&r, " busy ");
    say_number(&r, board_busy());
    say_text(&r, " stack ");
    say_number(&r, board_stack_depth());
    say_end(&r);
}

static inline void say_problem(const tailnet_node *node)
{
    report          r;
    tailnet_problem p;
    if (!tailnet_get_problem(node, &p)) return;
    r.at = 0;
    say_text(&r, "problem ");
    say_text(&r, p.section);
    say_text(&r, p.result < 0 ? " -" : " ");
    say_number(&r, (uint64_t)(p.result < 0 ? -p.result : p.result));
    say_text(&r, " ");
    say_number(&r, (uint64_t)p.detail);
    say_text(&r, " ");
    say_text(&r, p.text);
    say_end(&r);
}

/* What is new of the node (bits of TAILNET_EVENT_): a problem, or where it stands. */
static inline void say_news(const tailnet_node *node, uint32_t events)
{
    tailnet_state state = tailnet_get_state(node);
    if (events & TAILNET_EVENT_PROBLEM) say_problem(node);
    if (events & (TAILNET_EVENT_STATE | TAILNET_EVENT_SELF)) {
        if (state == TAILNET_STATE_RUNNING) say_running(node);
        else                                say("state", (uint64_t)state);
    }
}

/* A number of the settings, or what it is without. */
static inline uint32_t setting_number(const char *name, uint32_t otherwise)
{
    const char *text = board_setting(name, NULL);
    uint32_t    n    = 0;
    if (text == NULL) return otherwise;
    while (*text >= '0' && *text <= '9') n = n * 10 + (uint32_t)(*text++ - '0');
    return n;
}

#endif
