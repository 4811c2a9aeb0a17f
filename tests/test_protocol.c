/* test_protocol - what `sluice protocol` prints is what the programs speak: sizes add up, and
 * docs/protocol.md is the printed one. The Python package's tests hold every field to the C
 * programs (stages/python/tests). */
#include "tests/t.h"

#include <jansson.h>

#include "common/lease_block.h"
#include "common/protocol.h"
#include "common/wire.h"

static json_t *protocol(void)
{
    char *text = sl_protocol_json();
    json_error_t e;
    assert_non_null(text);
    json_t *root = json_loads(text, 0, &e);
    free(text);
    assert_non_null(root);
    return root;
}

static int64_t number(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    assert_true(json_is_integer(v));
    return json_integer_value(v);
}

/* Bytes of a list of fields by the table of kinds. */
static int64_t bytes_of(const json_t *kinds, const json_t *fields)
{
    int64_t sum = 0;
    size_t i;
    json_t *f;
    json_array_foreach(fields, i, f)
    {
        const json_t *kind = json_object_get(kinds, json_string_value(json_object_get(f, "kind"))),
                     *times = json_object_get(f, "times");
        assert_non_null(kind);
        sum += number(kind, "bytes") * (times ? json_integer_value(times) : 1);
    }
    return sum;
}

static void test_sizes(void **state)
{
    json_t *root = protocol(), *kinds = json_object_get(root, "kinds"), *m, *kind;
    const char *name;
    size_t i;
    (void)state;
    assert_int_equal(number(root, "magic"), SL_WIRE_MAGIC);
    assert_int_equal(number(root, "version"), SL_WIRE_VERSION);
    assert_int_equal(bytes_of(kinds, json_object_get(root, "header")), SL_WIRE_HEADER);
    json_object_foreach(kinds, name, kind)
    {
        const json_t *fields = json_object_get(kind, "fields");
        if (fields) assert_int_equal(bytes_of(kinds, fields), number(kind, "bytes"));
    }
    json_array_foreach(json_object_get(root, "messages"), i, m)
    {
        const sl_msg msg = {.type = (sl_msg_type)number(m, "number")};
        uint8_t buf[SL_WIRE_MAX];
        assert_string_equal(json_string_value(json_object_get(m, "name")), sl_wire_name(msg.type));
        assert_int_equal(number(m, "bytes"), sl_wire_encode(buf, &msg) - SL_WIRE_HEADER);
        assert_int_equal(bytes_of(kinds, json_object_get(m, "fields")), number(m, "bytes"));
    }
    assert_int_equal(i, 31); /* a message more is a line more in docs/protocol.md */
    json_decref(root);
}

static void test_pool(void **state)
{
    json_t *root = protocol(), *pool = json_object_get(root, "pool"),
           *block = json_object_get(pool, "block"),
           *slot = json_object_get(json_object_get(block, "fields"), "slot");
    (void)state;
    assert_int_equal(number(pool, "magic"), SL_BLOCK_MAGIC);
    assert_int_equal(number(block, "bytes"), sizeof(sl_block));
    assert_int_equal(number(slot, "offset"), offsetof(sl_block, slot));
    assert_int_equal(number(slot, "bytes"),
                     number(json_object_get(pool, "slot"), "bytes") * SL_POOL_MAX_SLOTS);
    assert_int_equal(json_array_size(json_object_get(pool, "states")), SL_SLOT_STATES);
    json_decref(root);
}

static void test_page(void **state)
{
    char *made = NULL, kept[65536];
    size_t n = 0;
    sl_err err = {0};
    FILE *to = open_memstream(&made, &n), *page = fopen("docs/protocol.md", "r");
    (void)state;
    assert_non_null(to);
    assert_non_null(page);
    T_OK(sl_protocol_markdown(to, &err));
    fclose(to);
    kept[fread(kept, 1, sizeof kept - 1, page)] = 0;
    fclose(page);
    if (strcmp(made, kept) != 0) fail_msg("bin/sluice protocol --markdown >docs/protocol.md");
    free(made);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sizes), cmocka_unit_test(test_pool),
                                       cmocka_unit_test(test_page)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
