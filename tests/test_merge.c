/* test_merge.c - LoRA merged and taken off: in host memory, and on a device of the CPU's bodies
 * whose memory is not the host's and whose weights are bf16.
 *
 * test_merge --bench FOLDER [RANK]: seconds of a switch in host memory (t_merge.h). */
#include "tests/t_merge.h"

#include "kernels/cpu/cpu.h"

static sl_ops apart;

/* The CPU's body makes float32; a device rounds it. */
static void rounding_low_rank_add(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x,
                                  const sl_tensor *up, const sl_tensor *down, float scale)
{
    const int64_t n = sl_count(y);
    float *sum = malloc((size_t)n * sizeof *sum);
    sl_tensor s = sl_view(sum, SL_F32, y->rank, y->shape);
    assert_non_null(sum);
    sl_cpu_low_rank_add(ctx, &s, x, up, down, scale);
    assert_int_equal(sl_from_floats(y->data, y->dtype, sum, n, NULL), SL_OK);
    free(sum);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {T_MERGE_TESTS};
    t_merge_ops = &sl_ops_cpu;
    if (argc > 2 && !strcmp(argv[1], "--bench"))
        return t_merge_bench(argv[2], argc > 3 ? atoi(argv[3]) : 64);
    int failed = cmocka_run_group_tests_name("merge, host memory", tests, NULL, NULL);
    apart = sl_ops_cpu;
    apart.name = "apart";
    apart.act = SL_BF16;
    apart.host_memory = apart.stored_matrices = false;
    apart.low_rank_add = rounding_low_rank_add;
    t_merge_ops = &apart;
    return failed + cmocka_run_group_tests_name("merge, a device", tests, NULL, NULL);
}
