/* What a call into the library takes on this very processor: its instructions and
 * its stack, without those of the application.
 *
 * Each call runs on a stack of its own, painted before; a callback of the library
 * comes back to the stack of the program and stops the count until it returns. Who
 * includes this file after tailnet.h and before a world of tests/unit measures every
 * call that the world makes: the names of the library stand for the metered calls.
 *
 * Bare Cortex-M (QEMU's mps2 boards) and RISC-V 32 (virt), under -icount shift=0,
 * where an instruction takes a nanosecond. */
#ifndef METER_H
#define METER_H

enum { METER_STACK = 16384, METER_NODES = 4 };

#define METER_PAINT 0xa5c35a3cu

/* The calls that are metered. */
typedef enum meter_call {
    METER_POLL, METER_IP_INPUT, METER_UDP_INPUT, METER_TCP_INPUT, METER_TCP_COMMIT,
    METER_TCP_WRITABLE, METER_TCP_OPENED, METER_CALLS
} meter_call;

static const char *const meter_names[METER_CALLS] = {
    "tailnet_poll", "tailnet_ip_input", "tailnet_udp_input", "tailnet_tcp_input",
    "tailnet_tcp_commit", "tailnet_tcp_writable", "tailnet_tcp_opened"
};

/* What one node cost in one kind of call. */
typedef struct meter_sum {
    uint64_t instructions;
    uint32_t calls, longest;
} meter_sum;

/* For the assembler below: a function, its stack, its arguments. */
typedef struct meter_job {
    void    *function;
    void    *top;
    uint32_t argument[4];
} meter_job;

static uint32_t      meter_stack[METER_STACK / 4] __attribute__((aligned(16)));
static uint32_t      meter_deepest[METER_CALLS];    /* bytes, over everything measured */
static uint32_t      meter_deep;                    /* since the last reset           */
static meter_sum     meter_sums[METER_NODES][METER_CALLS];
static tailnet_node *meter_nodes[METER_NODES];
static uint64_t      meter_away;                    /* spent in callbacks             */
static tailnet_io    meter_io;                      /* the application's              */
/* The program's stack, NULL outside metered calls; a callback's return and stack. */
void                *meter_saved[3];

/* ---- the processor ---- */

uint64_t meter_enter(const meter_job *job);

#if defined(__arm__)
/* Timer 0 of the board counts down at 25 MHz: 40 instructions a tick. */
static void meter_begin(void)
{
    volatile uint32_t *timer = (volatile uint32_t *)0x40000000u;
    timer[2] = timer[1] = 0xffffffffu;
    timer[0] = 1;
}
static uint64_t meter_now(void)
{
    return (uint64_t)(0xffffffffu - *(volatile uint32_t *)0x40000004u) * 40u;
}
__asm__(".syntax unified\n.thumb\n.text\n.thumb_func\n.global meter_enter\nmeter_enter:\n"
        "push {r4, lr}\n ldr r1, =meter_saved\n mov r2, sp\n str r2, [r1]\n"
        "ldr r4, [r0]\n ldr r1, [r0, #4]\n mov sp, r1\n"
        "ldr r1, [r0, #12]\n ldr r2, [r0, #16]\n ldr r3, [r0, #20]\n ldr r0, [r0, #8]\n"
        "blx r4\n ldr r2, =meter_saved\n ldr r3, [r2]\n mov sp, r3\n movs r3, #0\n str r3, [r2]\n"
        "pop {r4, pc}\n.pool\n");
#  define METER_BACK(name, target)                                                        \
    __asm__(".thumb_func\n.global " #name "\n" #name ":\n"                                \
            "ldr r12, =meter_saved\n ldr r12, [r12]\n cmp r12, #0\n beq " #target "\n"    \
            "ldr r12, =meter_saved\n str lr, [r12, #4]\n mov lr, sp\n str lr, [r12, #8]\n" \
            "ldr lr, [r12]\n mov sp, lr\n bl " #target "\n"                               \
            "ldr r12, =meter_saved\n ldr r2, [r12, #8]\n mov sp, r2\n ldr pc, [r12, #4]\n.pool\n")
#elif defined(__riscv)
static void     meter_begin(void) {}
static uint64_t meter_now(void)
{
    uint32_t high, low, again;
    do {
        __asm__ volatile("rdinstreth %0\n rdinstret %1\n rdinstreth %2"
                         : "=r"(high), "=r"(low), "=r"(again));
    } while (high != again);
    return (uint64_t)high << 32 | low;
}
__asm__(".text\n.global meter_enter\nmeter_enter:\n"
        "addi sp, sp, -16\n sw ra, 12(sp)\n la t0, meter_saved\n sw sp, 0(t0)\n"
        "lw t1, 0(a0)\n lw t2, 4(a0)\n lw a1, 12(a0)\n lw a2, 16(a0)\n lw a3, 20(a0)\n"
        "lw a0, 8(a0)\n mv sp, t2\n jalr t1\n la t0, meter_saved\n lw sp, 0(t0)\n"
        "sw zero, 0(t0)\n lw ra, 12(sp)\n addi sp, sp, 16\n ret\n");
#  define METER_BACK(name, target)                                                         \
    __asm__(".global " #name "\n" #name ":\n la t0, meter_saved\n lw t1, 0(t0)\n"          \
            "bnez t1, 1f\n tail " #target "\n 1: sw ra, 4(t0)\n"                           \
            "sw sp, 8(t0)\n lw sp, 0(t0)\n call " #target "\n la t0, meter_saved\n"        \
            "lw sp, 8(t0)\n lw ra, 4(t0)\n ret\n")
#endif

/* ---- callbacks: back on the program's stack, the clock stopped ---- */

#define METER_CALLBACK(type, name, parameters, arguments)                      \
    type meter_back_##name parameters;                                         \
    type meter_do_##name parameters;                                           \
    __attribute__((used)) type meter_do_##name parameters                      \
    {                                                                          \
        uint64_t begun = meter_now();                                          \
        type     answer = meter_io.name arguments;                             \
        meter_away += meter_now() - begun;                                     \
        return answer;                                                         \
    }                                                                          \
    METER_BACK(meter_back_##name, meter_do_##name)

#define METER_CALLBACK_VOID(name, parameters, arguments)                       \
    void meter_back_##name parameters;                                         \
    void meter_do_##name parameters;                                           \
    __attribute__((used)) void meter_do_##name parameters                      \
    {                                                                          \
        uint64_t begun = meter_now();                                          \
        meter_io.name arguments;                                               \
        meter_away += meter_now() - begun;                                     \
    }                                                                          \
    METER_BACK(meter_back_##name, meter_do_##name)

METER_CALLBACK(uint64_t, now_ms, (void *user), (user));
METER_CALLBACK(uint64_t, unix_ms, (void *user), (user));
METER_CALLBACK(int, random, (void *user, void *dst, size_t size), (user, dst, size));
METER_CALLBACK(int, udp_output,
               (void *user, const tailnet_addr *to, tailnet_buf *pkts, size_t count),
               (user, to, pkts, count));
METER_CALLBACK_VOID(ip_output, (void *user, tailnet_buf *pkts, size_t count),
                    (user, pkts, count));
METER_CALLBACK(int, tcp_open, (void *user, tailnet_link link, const tailnet_dial *dial),
               (user, link, dial));
METER_CALLBACK(int32_t, tcp_output,
               (void *user, tailnet_link link, const void *data, size_t size),
               (user, link, data, size));
METER_CALLBACK_VOID(tcp_close, (void *user, tailnet_link link), (user, link));

/* The callbacks of an application, each by way of the meter. All nodes of a program
 * have the same ones. */
static void meter_callbacks(tailnet_io *io)
{
    meter_io       = *io;
    io->now_ms     = meter_back_now_ms;
    io->unix_ms    = meter_back_unix_ms;
    io->random     = meter_back_random;
    io->ip_output  = meter_back_ip_output;
    io->tcp_open   = meter_back_tcp_open;
    io->tcp_output = meter_back_tcp_output;
    io->tcp_close  = meter_back_tcp_close;
    if (io->udp_output != NULL) io->udp_output = meter_back_udp_output;
}

/* ---- calls ---- */

static void meter_paint(size_t from)
{
    size_t i;
    for (i = from; i < METER_STACK / 4; i++) meter_stack[i] = METER_PAINT;
}

/* Bytes of the stack that were written since it was painted; paints them anew. */
static uint32_t meter_used(void)
{
    size_t i = 0;
    while (i < METER_STACK / 4 && meter_stack[i] == METER_PAINT) i++;
    meter_paint(i);
    return (uint32_t)(METER_STACK - 4 * i);
}

static meter_sum *meter_of(const tailnet_node *node, meter_call call)
{
    unsigned i;
    for (i = 0; i < METER_NODES - 1 && meter_nodes[i] != node; i++) {}
    return &meter_sums[i][call];
}

/* Does the call on the painted stack and writes down what it took. */
static uint64_t meter_run(meter_call call, tailnet_node *node, void *function, uint32_t b,
                          uint32_t c, uint32_t d)
{
    meter_job  job = { function, meter_stack + METER_STACK / 4, { (uint32_t)node, b, c, d } };
    meter_sum *sum = meter_of(node, call);
    uint64_t   answer, begun, took;
    uint32_t   deep;

    meter_away = 0;
    begun      = meter_now();
    answer     = meter_enter(&job);
    took       = meter_now() - begun - meter_away;
    sum->instructions += took;
    sum->calls++;
    if (took > sum->longest) sum->longest = (uint32_t)took;
    deep = meter_used();
    if (deep > meter_deepest[call]) meter_deepest[call] = deep;
    if (deep > meter_deep) meter_deep = deep;
    return answer;
}

/* Forgets what was counted, but not how deep each kind of call ever went. */
static void meter_reset(void)
{
    memset(meter_sums, 0, sizeof meter_sums);
    meter_deep = 0;
}

/* All calls of one node since then. */
static uint64_t meter_total(const tailnet_node *node)
{
    uint64_t sum = 0;
    unsigned i;
    for (i = 0; i < METER_CALLS; i++) sum += meter_of(node, (meter_call)i)->instructions;
    return sum;
}

static uint64_t meter_cost(const tailnet_node *node, meter_call call)
{
    return meter_of(node, call)->instructions;
}

#define METER_RUN(call, function, node, b, c, d) \
    meter_run(call, node, (void *)(function), (uint32_t)(b), (uint32_t)(c), (uint32_t)(d))
#define tailnet_poll(n)               (uint32_t)METER_RUN(METER_POLL, tailnet_poll, n, 0, 0, 0)
#define tailnet_ip_input(n, p, count) \
    (tailnet_result)METER_RUN(METER_IP_INPUT, tailnet_ip_input, n, p, count, 0)
#define tailnet_udp_input(n, from, p, count) \
    (tailnet_result)METER_RUN(METER_UDP_INPUT, tailnet_udp_input, n, from, p, count)
#define tailnet_tcp_input(n, link, data, size) \
    (size_t)METER_RUN(METER_TCP_INPUT, tailnet_tcp_input, n, link, data, size)
#define tailnet_tcp_commit(n, link, size) \
    (tailnet_result)METER_RUN(METER_TCP_COMMIT, tailnet_tcp_commit, n, link, size, 0)
#define tailnet_tcp_writable(n, link) \
    (tailnet_result)METER_RUN(METER_TCP_WRITABLE, tailnet_tcp_writable, n, link, 0, 0)
#define tailnet_tcp_opened(n, link) \
    (tailnet_result)METER_RUN(METER_TCP_OPENED, tailnet_tcp_opened, n, link, 0, 0)

#endif
