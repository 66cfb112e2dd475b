/* http.c - a web page about this node, its peers and the paths to them, for every machine of the
 * tailnet: lwIP's own web server (apps/http) on the tailnet address, port 80, without root.
 *
 *     TAILNET_CONTROL=https://... TAILNET_AUTHKEY=... ./http
 *     then open http://NAME/ or http://100.64.x.y/ from another machine of the tailnet
 *
 * lwip/status_page.h makes the page; this file is what lwIP's web server needs: files. */
#include "lwip/loop.h"
#include "lwip/status_page.h"

#include "lwip/apps/fs.h"
#include "lwip/apps/httpd.h"

/* Room in front of a file for the head of the answer, which is made last. */
enum { HEAD = 1024 };

static loop l;

static void put_strings(page_text *t, const char *const *list, size_t count)
{
    size_t i;
    for (i = 0; i < count; i++) page_put(t, list[i]);
}

#define PUT_STRINGS(t, list) put_strings(t, list, sizeof(list) / sizeof *(list))

/* What is at this path; NULL: nothing. *status is the first line of the answer. */
static const char *make_body(page_text *t, const char *path, const char **status)
{
    *status = "200 OK";
    if (strcmp(path, "/index.html") == 0 || strcmp(path, "/") == 0) {
        page_make(t, l.posix.node, loop_now_ms());
        return "text/html; charset=utf-8";
    }
    if (strcmp(path, "/style.css") == 0) return PUT_STRINGS(t, page_style), "text/css";
    if (strcmp(path, "/script.js") == 0) return PUT_STRINGS(t, page_script), "text/javascript";
    if (strcmp(path, "/icon.svg") == 0) return PUT_STRINGS(t, page_icon), "image/svg+xml";
    /* lwIP asks for these when something is wrong. */
    if (strcmp(path, "/404.html") == 0) *status = "404 Not Found";
    else if (strcmp(path, "/400.html") == 0) *status = "400 Bad Request";
    else if (strcmp(path, "/501.html") == 0) *status = "501 Not Implemented";
    else return NULL;
    page_put(t, *status);
    page_put(t, "\n");
    return "text/plain";
}

/* The head of the answer, right before the body that begins at HEAD; returns its length. */
static size_t make_head(char *before, const char *status, const char *type, size_t size)
{
    char head[HEAD];
    int  len = snprintf(head, sizeof head,
                        "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %lu\r\n"
                        "Connection: keep-alive\r\nCache-Control: no-cache\r\n"
                        "Content-Security-Policy: " page_policy "\r\n"
                        "X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n"
                        "Cross-Origin-Resource-Policy: same-origin\r\n\r\n",
                        status, type, (unsigned long)size);
    if (len <= 0 || (size_t)len >= sizeof head) return 0;
    memcpy(before - len, head, (size_t)len);
    return (size_t)len;
}

/* For lwIP's web server: a file by its path; 0 when there is none. */
int fs_open_custom(struct fs_file *file, const char *name);
int fs_open_custom(struct fs_file *file, const char *name)
{
    page_text   t;
    const char *status, *type;
    char        room[HEAD];
    size_t      len;
    memset(&t, 0, sizeof t);
    memset(room, 0, sizeof room);
    page_bytes(&t, room, sizeof room);
    type = make_body(&t, name, &status);
    len  = type == NULL || t.broken ? 0 : make_head(t.at + HEAD, status, type, t.len - HEAD);
    if (len == 0) {
        free(t.at);
        return 0;
    }
    file->data       = t.at + HEAD - len;
    file->len        = (int)(t.len - HEAD + len);
    file->index      = file->len;
    file->pextension = t.at;
    file->flags      = FS_FILE_FLAGS_HEADER_INCLUDED | FS_FILE_FLAGS_HEADER_PERSISTENT |
                       FS_FILE_FLAGS_HEADER_HTTPVER_1_1;
    return 1;
}

void fs_close_custom(struct fs_file *file);
void fs_close_custom(struct fs_file *file)
{
    free(file->pextension);
    file->pextension = NULL;
}

int main(int argc, char **argv)
{
    (void)argv;
    if (argc > 1) return fputs("usage: http\n" loop_usage, stderr), 1;
    if (!loop_open(&l, "status")) return 2;
    httpd_init();
    while (!l.stop && loop_turn(&l, NULL, 0, 60000)) {}
    loop_close(&l);
    return l.stop ? 0 : 2;
}
