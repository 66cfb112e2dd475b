/* status_page.h - a web page about a node and its peers: HTML from the questions of tailnet.h,
 * and the files that belong to it. No network in here; http.c serves it.
 *
 * The page works without scripts. With them it fetches itself every two seconds and takes over
 * what differs, so that nothing flickers. Whatever comes from others, names above all, goes
 * through page_safe; and page_policy forbids what is not a file of ours to run. */
#ifndef STATUS_PAGE_H
#define STATUS_PAGE_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tailnet.h"

#define page_policy                                                                      \
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "          \
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

enum { PAGE_PEERS = 1024 };

/* style.css */
static const char *const page_style[] = {
    ":root { color-scheme: light dark; --page: #f4f6f8; --card: #fff; --line: #dde2e8;\n"
    "  --text: #191d22; --soft: #56606b; --good: #0a6337; --good-bg: #e0f4e8;\n"
    "  --fair: #7d4300; --fair-bg: #fdeed7; --calm: #47515c; --calm-bg: #e9edf1;\n"
    "  --bad: #a11420; --bad-bg: #fde5e6; --focus: #1a5fd0; }\n"
    "@media (prefers-color-scheme: dark) {\n"
    "  :root { --page: #0f1317; --card: #171c22; --line: #2b333c; --text: #e8ecf1;\n"
    "    --soft: #a0abb7;\n"
    "    --good: #84e0aa; --good-bg: #12311f; --fair: #f5c47a; --fair-bg: #38290f;\n"
    "    --calm: #bcc6d0; --calm-bg: #262e37; --bad: #ffa3a8; --bad-bg: #431a1d;\n"
    "    --focus: #7fb0ff; } }\n"
    "* { box-sizing: border-box; }\n"
    "body { margin: 0; background: var(--page); color: var(--text);\n"
    "  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }\n"
    "main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 2rem; }\n"
    "header { display: flex; flex-wrap: wrap; align-items: center; gap: .25rem .75rem; }\n"
    "h1 { margin: 0; font-size: 1.75rem; line-height: 1.2; }\n"
    "h2 { margin: 0; font-size: 1.15rem; }\n"
    ".domain { flex-basis: 100%; margin: 0; color: var(--soft); }\n"
    ".tag { display: inline-flex; align-items: center; gap: .4em; padding: .1em .65em;\n"
    "  border-radius: 1em; font-size: .875rem; font-weight: 600; white-space: nowrap; }\n"
    ".tag::before { content: ''; width: .55em; height: .55em; border: .14em solid currentColor;\n"
    "  border-radius: 50%; }\n"
    ".good { color: var(--good); background: var(--good-bg); }\n"
    ".fair { color: var(--fair); background: var(--fair-bg); }\n"
    ".calm { color: var(--calm); background: var(--calm-bg); }\n"
    ".bad { color: var(--bad); background: var(--bad-bg); }\n"
    ".good::before { background: currentColor; }\n"
    ".fair::before { background: linear-gradient(90deg, currentColor 50%, transparent 50%); }\n"
    ".bad::before { border-radius: 0; background: currentColor; }\n"
    ".facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr));\n"
    "  gap: 1px; margin: 1.25rem 0 1.75rem; border: 1px solid var(--line); border-radius: .75rem;\n"
    "  overflow: hidden; background: var(--line); }\n"
    ".facts div { padding: .7rem 1rem; background: var(--card); }\n"
    "dt { font-size: .8125rem; color: var(--soft); }\n"
    "dd { margin: 0; font-weight: 500; }\n"
    ".trouble { margin: 1.25rem 0 0; padding: .7rem 1rem; border-radius: .75rem; }\n"
    ".trouble::before { content: none; }\n"
    ".peers { display: flex; flex-wrap: wrap; align-items: baseline; gap: .25rem .75rem; }\n"
    ".peers p { margin: 0; color: var(--soft); }\n"
    "table { width: 100%; margin: .75rem 0 0; border-collapse: separate; border-spacing: 0;\n"
    "  border: 1px solid var(--line); border-radius: .75rem; background: var(--card); }\n"
    "th, td { padding: .6rem .75rem; text-align: left; vertical-align: top; }\n"
    "thead th { font-size: .8125rem; font-weight: 500; color: var(--soft); white-space: nowrap; }\n"
    "tbody th, tbody td { border-top: 1px solid var(--line); }\n"
    "tbody th { font-weight: 600; }\n"
    ".number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }\n"
    ".more { display: block; font-size: .875rem; font-weight: 400; color: var(--soft);\n"
    "  font-variant-numeric: tabular-nums; }\n"
    ".off th, .off td { color: var(--soft); }\n"
    ".changed { animation: changed 2s; }\n"
    "@keyframes changed { from { background: var(--fair-bg); } }\n"
    "@media (prefers-reduced-motion: reduce) { .changed { animation: none; } }\n"
    "footer { display: flex; flex-wrap: wrap; justify-content: space-between; gap: .25rem 1rem;\n"
    "  margin-top: 1rem; font-size: .875rem; color: var(--soft); }\n"
    "footer p { margin: 0; }\n",
    ".aside { position: absolute; width: 1px; height: 1px; overflow: hidden; white-space: nowrap;\n"
    "  clip-path: inset(50%); }\n"
    "@media (max-width: 46rem) {\n"
    "  main { padding-top: 1rem; }\n"
    "  table, tbody { display: block; border: 0; background: none; }\n"
    "  thead { position: absolute; width: 1px; height: 1px; overflow: hidden;\n"
    "    clip-path: inset(50%); }\n"
    "  tbody tr { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem 1rem;\n"
    "    margin-bottom: .75rem; padding: .8rem 1rem; border: 1px solid var(--line);\n"
    "    border-radius: .75rem; background: var(--card); }\n"
    "  tbody th, tbody td { padding: 0; border: 0; min-width: 0; }\n"
    "  tbody th { grid-column: 1 / -1; font-size: 1.0625rem; }\n"
    "  tbody td::before { content: attr(data-label); display: block; font-size: .8125rem;\n"
    "    color: var(--soft); }\n"
    "  .number { text-align: left; white-space: normal; }\n"
    "  .none { grid-column: 1 / -1; }\n"
    "  .facts { grid-template-columns: 1fr 1fr; }\n"
    "  .facts .wide { grid-column: 1 / -1; } }\n"
};

/* script.js: fetches the page anew and takes over what differs. */
static const char *const page_script[] = {
    "'use strict';\n"
    "const every = 2000;\n"
    "const told = document.getElementById('told'), live = document.getElementById('live');\n"
    "\n"
    "/* Makes a like b, touching only what differs: what is read, marked or focused stays. */\n"
    "function merge(a, b) {\n"
    "  for (const { name, value } of b.attributes)\n"
    "    if (a.getAttribute(name) !== value) a.setAttribute(name, value);\n"
    "  for (const { name } of [...a.attributes])\n"
    "    if (!b.hasAttribute(name)) a.removeAttribute(name);\n"
    "  const known = new Map([...a.children].filter(c => c.id).map(c => [c.id, c]));\n"
    "  let at = a.firstChild;\n"
    "  for (const fresh of [...b.childNodes]) {\n"
    "    const alike = at && !at.id && at.nodeName === fresh.nodeName ? at : null;\n"
    "    const old = fresh.id ? known.get(fresh.id) : alike;\n"
    "    if (!old) { a.insertBefore(document.importNode(fresh, true), at); continue; }\n"
    "    if (old === at) at = at.nextSibling; else a.insertBefore(old, at);\n"
    "    if (old.nodeType === Node.ELEMENT_NODE) merge(old, fresh);\n"
    "    else if (old.data !== fresh.data) old.data = fresh.data;\n"
    "  }\n"
    "  while (at) { const next = at.nextSibling; at.remove(); at = next; }\n"
    "}\n"
    "\n"
    "const ways = root => new Map([...root.querySelectorAll('tr[data-name]')].map(\n"
    "  row => [row.id, { name: row.dataset.name, way: row.dataset.way }]));\n"
    "\n"
    "/* Says to a screen reader, and marks for the eye, who is reached another way now. */\n"
    "function tell(before, after) {\n"
    "  const news = [];\n"
    "  for (const [id, { name, way }] of after) {\n"
    "    if (before.has(id) && before.get(id).way === way) continue;\n"
    "    news.push(`${name}: ${way}`);\n"
    "    const cell = document.getElementById(id).querySelector('.way');\n"
    "    cell.classList.add('changed');\n"
    "  }\n"
    "  for (const [id, { name }] of before) if (!after.has(id)) news.push(`${name}: gone`);\n"
    "  if (news.length) told.textContent = news.join(', ');\n"
    "}\n"
    "\n"
    "function show(kind, text) {\n"
    "  if (live.className !== `tag ${kind}`) live.className = `tag ${kind}`;\n"
    "  if (live.textContent !== text) live.textContent = text;\n"
    "}\n"
    "\n"
    "async function refresh() {\n"
    "  const stop = new AbortController(), timer = setTimeout(() => stop.abort(), 8000);\n"
    "  try {\n"
    "    const answer = await fetch('/', { cache: 'no-store', signal: stop.signal });\n"
    "    if (!answer.ok) throw new Error(answer.status);\n"
    "    const page = new DOMParser().parseFromString(await answer.text(), 'text/html');\n"
    "    const before = ways(document);\n"
    "    document.title = page.title;\n"
    "    merge(document.getElementById('node'), page.getElementById('node'));\n"
    "    tell(before, ways(document));\n"
    "    show('good', 'live');\n"
    "  } catch (e) {\n"
    "    show('bad', 'no answer, trying again');\n"
    "  } finally {\n"
    "    clearTimeout(timer);\n"
    "    setTimeout(refresh, every);\n"
    "  }\n"
    "}\n"
    "\n"
    "show('good', 'live');\n"
    "setTimeout(refresh, every);\n"
};

/* icon.svg */
static const char *const page_icon[] = {
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'>"
    "<rect width='32' height='32' rx='8' fill='#1a5fd0'/><g stroke='#fff' stroke-width='2'>"
    "<path d='M10 10 22 16 10 22'/></g><g fill='#fff'><circle cx='10' cy='10' r='4'/>"
    "<circle cx='22' cy='16' r='4'/><circle cx='10' cy='22' r='4'/></g></svg>\n"
};

/* ---- Text that grows -------------------------------------------------------------------- */

typedef struct page_text {
    char  *at;                      /* malloc'ed; NULL when there was no memory   */
    size_t len, cap;
    bool   broken;
} page_text;

static void page_bytes(page_text *t, const char *from, size_t size)
{
    if (t->broken) return;
    if (t->cap - t->len < size) {
        size_t cap  = t->cap + size + 8192;
        char  *more = (char *)realloc(t->at, cap);
        if (more == NULL) {
            t->broken = true;
            return;
        }
        t->at  = more;
        t->cap = cap;
    }
    memcpy(t->at + t->len, from, size);
    t->len += size;
}

static void page_put(page_text *t, const char *text) { page_bytes(t, text, strlen(text)); }

/* printf for numbers and words of our own, up to 255 bytes. */
static void page_printf(page_text *t, const char *format, ...)
{
    char    line[256];
    va_list list;
    int     len;
    va_start(list, format);
    len = vsnprintf(line, sizeof line, format, list);
    va_end(list);
    if (len > 0) page_bytes(t, line, (size_t)len < sizeof line ? (size_t)len : sizeof line - 1);
}

/* Text of others, in HTML or between quotes. Names are ASCII; what is not becomes '?'. */
static void page_safe(page_text *t, const char *text)
{
    for (; *text != '\0'; text++) {
        if (strchr("&<>\"'`", *text) != NULL) page_printf(t, "&#%d;", *text);
        else if (*text < ' ' || *text > '~') page_put(t, "?");
        else page_bytes(t, text, 1);
    }
}

/* ---- Words for values ------------------------------------------------------------------- */

static void page_addr(page_text *t, const tailnet_addr *a)
{
    unsigned group[8], i, best = 8, best_len = 1, len;
    if (a->family == 4) {
        page_printf(t, "%u.%u.%u.%u", a->ip[0], a->ip[1], a->ip[2], a->ip[3]);
        return;
    }
    for (i = 0; i < 8; i++) group[i] = (unsigned)a->ip[2 * i] << 8 | a->ip[2 * i + 1];
    for (i = 0; i < 8; i += len + 1) {      /* the longest run of zeros becomes "::" */
        for (len = 0; i + len < 8 && group[i + len] == 0; len++) {}
        if (len > best_len) best = i, best_len = len;
    }
    for (i = 0; i < 8;) {
        if (i == best) {
            page_put(t, "::");
            i += best_len;
            continue;
        }
        page_printf(t, i == 0 || i == best + best_len ? "%x" : ":%x", group[i]);
        i++;
    }
}

static void page_endpoint(page_text *t, const tailnet_addr *a)
{
    if (a->family == 6) page_put(t, "[");
    page_addr(t, a);
    page_printf(t, a->family == 6 ? "]:%u" : ":%u", (unsigned)a->port);
}

/* "0 B", "12.3 MB" */
static void page_amount(page_text *t, uint64_t bytes)
{
    static const char unit[] = "KMGTPE";
    unsigned          i      = 0;
    uint64_t          tenths;
    if (bytes < 1000) {
        page_printf(t, "%u B", (unsigned)bytes);
        return;
    }
    for (tenths = bytes / 100; tenths >= 10000 && unit[i + 1] != '\0'; i++) tenths /= 1000;
    if (tenths >= 1000) page_printf(t, "%u %cB", (unsigned)(tenths / 10), unit[i]);
    else page_printf(t, "%u.%u %cB", (unsigned)(tenths / 10), (unsigned)(tenths % 10), unit[i]);
}

static void page_age(page_text *t, uint32_t s)
{
    if (s == UINT32_MAX) page_put(t, "none");
    else if (s < 60) page_printf(t, "%u s ago", (unsigned)s);
    else if (s < 3600) page_printf(t, "%u min ago", (unsigned)(s / 60));
    else page_printf(t, "%u h ago", (unsigned)(s / 3600));
}

static void page_date(page_text *t, uint64_t unix_ms)
{
    time_t    when = (time_t)(unix_ms / 1000);
    char      text[32];
    struct tm day;
    if (unix_ms == 0) page_put(t, "never");
    else if (gmtime_r(&when, &day) != NULL && strftime(text, sizeof text, "%Y-%m-%d", &day) != 0)
        page_put(t, text);
}

static void page_tag(page_text *t, const char *kind, const char *word)
{
    page_printf(t, "<span class=\"tag %s\">%s</span>", kind, word);
}

/* ---- The node ----------------------------------------------------------------------------- */

static void page_state(page_text *t, tailnet_state state)
{
    switch (state) {
    case TAILNET_STATE_RUNNING:        page_tag(t, "good", "running"); break;
    case TAILNET_STATE_CONNECTING:     page_tag(t, "fair", "connecting"); break;
    case TAILNET_STATE_NEEDS_LOGIN:    page_tag(t, "fair", "needs a login"); break;
    case TAILNET_STATE_NEEDS_APPROVAL: page_tag(t, "fair", "needs approval"); break;
    case TAILNET_STATE_FAILED:         page_tag(t, "bad", "failed"); break;
    case TAILNET_STATE_DOWN:
    default:                           page_tag(t, "calm", "down"); break;
    }
}

static void page_fact(page_text *t, const char *what, bool wide)
{
    page_printf(t, "<div%s><dt>%s</dt><dd>", wide ? " class=\"wide\"" : "", what);
}

static void page_fact_end(page_text *t) { page_put(t, "</dd></div>\n"); }

/* The relay that others reach us through, and how far it is. */
static void page_home(page_text *t, const tailnet_node *node, uint16_t home)
{
    tailnet_region region;
    size_t         i;
    if (home == 0) page_put(t, "none yet");
    for (i = 0; home != 0 && tailnet_get_region(node, i, &region); i++) {
        uint16_t ms = region.v4_ms != 0 ? region.v4_ms : region.v6_ms;
        if (region.region != home) continue;
        page_safe(t, region.host);
        if (ms != 0) page_printf(t, ", %u ms", (unsigned)ms);
        return;
    }
    if (home != 0) page_printf(t, "region %u", (unsigned)home);
}

static void page_way_out(page_text *t, const tailnet_node *node)
{
    static const char *const nat[] = { "", ", same address for all", ", another address for each" };
    tailnet_report           r;
    if (!tailnet_get_report(node, &r)) page_put(t, "not measured yet");
    else if (!r.udp) page_put(t, "blocked");
    else page_printf(t, "works%s%s", r.ip6 ? ", IPv4 and IPv6" : "", nat[r.varies % 3]);
}

static void page_facts(page_text *t, const tailnet_node *node, const tailnet_self *self)
{
    tailnet_stats s;
    memset(&s, 0, sizeof s);
    tailnet_get_stats(node, &s);
    page_put(t, "<dl class=\"facts\">\n");
    page_fact(t, "IPv4 address", true);
    if (self->ip4.family != 0) page_addr(t, &self->ip4);
    page_fact_end(t);
    page_fact(t, "IPv6 address", true);
    if (self->ip6.family != 0) page_addr(t, &self->ip6);
    page_fact_end(t);
    page_fact(t, "Control server", false);
    page_put(t, self->control_up ? "connected" : "away, peers stay reachable");
    page_fact_end(t);
    page_fact(t, "Home relay", false);
    page_home(t, node, self->home_region);
    page_fact_end(t);
    page_fact(t, "UDP", false);
    page_way_out(t, node);
    page_fact_end(t);
    page_fact(t, "Key expires", false);
    page_date(t, self->key_expiry_unix_ms);
    page_fact_end(t);
    page_fact(t, "Packets in, out", false);
    page_printf(t, "%lu, %lu", s.ip_out, s.ip_in);
    page_fact_end(t);
    page_fact(t, "Refused, forged", false);
    page_printf(t, "%lu, %lu", s.dropped_denied, s.dropped_forged);
    page_fact_end(t);
    page_put(t, "</dl>\n");
}

/* ---- The peers ---------------------------------------------------------------------------- */

typedef struct page_way {
    const char *kind, *word;
} page_way;

static void page_way_of(page_way *w, const tailnet_peer *p)
{
    bool online = (p->flags & TAILNET_PEER_ONLINE) != 0;
    w->kind = "calm";
    w->word = online ? "idle" : "offline";
    if ((p->flags & TAILNET_PEER_EXPIRED) != 0) w->kind = "bad", w->word = "key expired";
    else if (p->path == TAILNET_PATH_DIRECT) w->kind = "good", w->word = "direct";
    else if (p->path == TAILNET_PATH_RELAY) w->kind = "fair", w->word = "by relay";
    else if (p->path == TAILNET_PATH_PEER_RELAY) w->kind = "fair", w->word = "by peer relay";
}

/* The answer of sort: those online first, then by name, then by number. */
static bool page_before(const tailnet_peer *a, const tailnet_peer *b)
{
    unsigned one = a->flags & TAILNET_PEER_ONLINE, two = b->flags & TAILNET_PEER_ONLINE;
    int      names = strcmp(a->name, b->name);
    if (one != two) return one != 0;
    return names != 0 ? names < 0 : a->id < b->id;
}

/* All peers in their order; *list is to be freed. */
static size_t page_gather(const tailnet_node *node, tailnet_peer **list)
{
    tailnet_peer one;
    size_t       count = tailnet_peer_count(node), n = 0, i, k;
    if (count > PAGE_PEERS) count = PAGE_PEERS;
    *list = (tailnet_peer *)malloc((count + 1) * sizeof **list);
    for (i = 0; *list != NULL && i < count && tailnet_get_peer(node, i, &one); i++) {
        for (k = n++; k > 0 && page_before(&one, &(*list)[k - 1]); k--) (*list)[k] = (*list)[k - 1];
        (*list)[k] = one;
    }
    return n;
}

static void page_number(page_text *t, const char *what)
{
    page_printf(t, "<td role=\"cell\" class=\"number\" data-label=\"%s\">", what);
}

static void page_peer(page_text *t, const tailnet_peer *p)
{
    page_way w;
    page_way_of(&w, p);
    page_printf(t, "<tr role=\"row\" id=\"p%llx\"%s data-way=\"%s\" data-name=\"",
                (unsigned long long)p->id,
                (p->flags & TAILNET_PEER_ONLINE) != 0 ? "" : " class=\"off\"", w.word);
    page_safe(t, p->name);
    page_put(t, "\"><th role=\"rowheader\" scope=\"row\">");
    page_safe(t, p->name);
    if (p->ip4.family != 0) page_put(t, "<span class=\"more\">"), page_addr(t, &p->ip4);
    if (p->ip4.family != 0) page_put(t, "</span>");
    if (p->ip6.family != 0) page_put(t, "<span class=\"more\">"), page_addr(t, &p->ip6);
    if (p->ip6.family != 0) page_put(t, "</span>");
    page_put(t, "</th>\n<td role=\"cell\" class=\"way\" data-label=\"Path\">");
    page_tag(t, w.kind, w.word);
    if (p->path == TAILNET_PATH_DIRECT) {
        page_put(t, "<span class=\"more\">");
        page_endpoint(t, &p->endpoint);
        page_put(t, "</span>");
    } else if (p->region != 0) {
        page_printf(t, "<span class=\"more\">region %u</span>", (unsigned)p->region);
    }
    page_put(t, "</td>\n");
    page_number(t, "Round trip");
    if (p->latency_ms != 0) page_printf(t, "%lu ms", (unsigned long)p->latency_ms);
    else page_put(t, "&ndash;");
    page_put(t, "</td>\n");
    page_number(t, "Received");
    page_amount(t, p->rx_bytes);
    page_put(t, "</td>\n");
    page_number(t, "Sent");
    page_amount(t, p->tx_bytes);
    page_put(t, "</td>\n");
    page_number(t, "Handshake");
    page_age(t, p->handshake_age_s);
    page_put(t, "</td></tr>\n");
}

static void page_summary(page_text *t, const tailnet_peer *list, size_t count, bool missing)
{
    size_t online = 0, direct = 0, relay = 0, i;
    for (i = 0; i < count; i++) {
        online += (list[i].flags & TAILNET_PEER_ONLINE) != 0;
        direct += list[i].path == TAILNET_PATH_DIRECT;
        relay += list[i].path == TAILNET_PATH_RELAY || list[i].path == TAILNET_PATH_PEER_RELAY;
    }
    page_printf(t, "<p>%lu known%s, %lu online, %lu direct, %lu by relay</p>",
                (unsigned long)count, missing ? " of more" : "", (unsigned long)online,
                (unsigned long)direct, (unsigned long)relay);
}

static void page_peers(page_text *t, const tailnet_node *node, bool missing)
{
    static const char *const head[] = { "Round trip", "Received", "Sent", "Handshake" };
    tailnet_peer            *list;
    size_t                   count = page_gather(node, &list), i;
    page_put(t, "<div class=\"peers\"><h2 id=\"peers\">Peers</h2>");
    page_summary(t, list, count, missing);
    page_put(t, "</div>\n<table role=\"table\" aria-labelledby=\"peers\">\n"
                "<thead role=\"rowgroup\"><tr role=\"row\">"
                "<th role=\"columnheader\" scope=\"col\">Peer</th>"
                "<th role=\"columnheader\" scope=\"col\">Path</th>");
    for (i = 0; i < 4; i++)
        page_printf(t, "<th role=\"columnheader\" scope=\"col\" class=\"number\">%s</th>", head[i]);
    page_put(t, "</tr></thead>\n<tbody role=\"rowgroup\">\n");
    for (i = 0; i < count; i++) page_peer(t, &list[i]);
    if (count == 0)
        page_put(t, "<tr role=\"row\"><td role=\"cell\" class=\"none\" colspan=\"6\">"
                    "No peer yet.</td></tr>\n");
    page_put(t, "</tbody></table>\n");
    free(list);
}

/* The newest trouble, for ten minutes. */
static void page_trouble(page_text *t, const tailnet_node *node, uint64_t now_ms)
{
    tailnet_problem pr;
    if (!tailnet_get_problem(node, &pr) || now_ms - pr.at_ms > 600000) return;
    page_put(t, "<p class=\"trouble bad\">");
    page_safe(t, tailnet_result_text(pr.result));
    page_put(t, " (");
    page_safe(t, pr.section);
    page_printf(t, " %ld)", (long)pr.detail);
    if (pr.text[0] != '\0') page_put(t, ": ");
    page_safe(t, pr.text);
    page_put(t, "</p>\n");
}

/* The whole page. now_ms is on the node's clock. */
static void page_make(page_text *t, const tailnet_node *node, uint64_t now_ms)
{
    tailnet_self self;
    const char  *name = "tailnet node", *dot;
    memset(&self, 0, sizeof self);
    if (tailnet_get_self(node, &self) && self.name != NULL) name = self.name;
    dot = strchr(name, '.');
    page_put(t, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
                "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
                "<noscript><meta http-equiv=\"refresh\" content=\"5\"></noscript>\n"
                "<link rel=\"stylesheet\" href=\"/style.css\">"
                "<link rel=\"icon\" type=\"image/svg+xml\" href=\"/icon.svg\">\n<title>");
    page_safe(t, name);
    page_put(t, "</title></head><body><main>\n<div id=\"node\">\n<header><h1>");
    for (; *name != '\0' && name != dot; name++) {
        char one[2] = { *name, '\0' };
        page_safe(t, one);
    }
    page_put(t, "</h1>");
    page_state(t, tailnet_get_state(node));
    page_put(t, "<p class=\"domain\">");
    if (dot != NULL) page_safe(t, dot + 1);
    page_put(t, "</p></header>\n");
    page_trouble(t, node, now_ms);
    page_facts(t, node, &self);
    page_peers(t, node, self.peers_missing);
    page_put(t, "</div>\n<footer><p>tailnet.h " TAILNET_VERSION " on lwIP</p>"
                "<p role=\"status\"><span id=\"live\" class=\"tag calm\">not live</span></p>"
                "</footer>\n<p class=\"aside\" id=\"told\" aria-live=\"polite\"></p>\n"
                "</main><script src=\"/script.js\"></script></body></html>\n");
}

#endif
