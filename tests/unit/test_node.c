#define TN_PLACEHOLDER
#include "tn_test.h"
#include "node_world.h"

static void join_by_key(void)
{
    nw_world *w = nw_begin(1);
    nw_node  *a, *b;
    nw_pair(w, &a, &b);
    nw_end(w);
}

int main(void)
{
    TEST(join_by_key);
    return tn_test_end();
}
