"""liblagkv through ctypes, without any package: test_ctypes.py LIBRARY."""

import ctypes
import random
import sys


class View(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("type", ctypes.c_int32), ("reserved", ctypes.c_int32), ("heads", ctypes.c_size_t),
                ("channels", ctypes.c_size_t), ("tokens", ctypes.c_size_t), ("head_stride", ctypes.c_ssize_t),
                ("token_stride", ctypes.c_ssize_t), ("channel_stride", ctypes.c_ssize_t), ("table", ctypes.c_void_p),
                ("table_size", ctypes.c_size_t), ("block_tokens", ctypes.c_size_t), ("block_stride", ctypes.c_ssize_t),
                ("pool_blocks", ctypes.c_size_t)]


class Layer(ctypes.Structure):
    _fields_ = [("keys", View), ("values", View), ("tokens", ctypes.c_size_t), ("extras", ctypes.c_void_p)]


def main():
    lib = ctypes.CDLL(sys.argv[1])
    lib.lagkv_dense_view.restype = View
    lib.lagkv_cursor_new.restype = ctypes.c_void_p
    lib.lagkv_cursor_seen.restype = ctypes.c_size_t
    error = ctypes.create_string_buffer(1024)
    policy, workspace, cursor = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p(lib.lagkv_cursor_new())

    assert lib.lagkv_policy_parse(b"lagkv:lag=0", ctypes.byref(policy), error) == 1
    assert error.value == b"lagkv: lag=0: must be a whole number from 1 to 2147483647", error.value
    assert lib.lagkv_policy_parse(b"lagkv:sink=4,lag=32,ratio=0.25", ctypes.byref(policy), error) == 0, error.value
    assert lib.lagkv_workspace_new(None, ctypes.byref(workspace), error) == 0, error.value

    heads, tokens, channels, f16 = 2, 300, 16, 1
    rng = random.Random(1)
    size = heads * tokens * channels
    memory = [(ctypes.c_uint16 * size)(*(rng.randrange(0x3800, 0x4000) for _ in range(size))) for _ in range(2)]
    before = [bytes(m) for m in memory]
    arguments = (ctypes.c_int32(f16), ctypes.c_size_t(heads), ctypes.c_size_t(tokens), ctypes.c_size_t(channels))
    views = [lib.lagkv_dense_view(ctypes.c_void_p(ctypes.addressof(m)), *arguments) for m in memory]
    layer, left = Layer(views[0], views[1], tokens, None), ctypes.c_size_t()
    outcome = lib.lagkv_compress(policy, ctypes.byref(layer), cursor, workspace, ctypes.c_int32(0), ctypes.byref(left), error)
    assert outcome == 0, error.value
    assert left.value == 4 + 8 * (296 // 32 - 1) + 32 + 296 % 32, left.value
    assert lib.lagkv_cursor_seen(cursor) == tokens

    # Each row in use is a row of before, keys and values of the same token, in order.
    row = 2 * channels
    for head in range(heads):
        first = head * tokens * row
        rows = [[(m[first + i * row:first + (i + 1) * row]) for i in range(tokens)] for m in before]
        after = [bytes(m) for m in memory]
        at = -1
        for i in range(left.value):
            k, v = (a[first + i * row:first + (i + 1) * row] for a in after)
            at = rows[0].index(k, at + 1)
            assert rows[1][at] == v
    lib.lagkv_cursor_free(cursor), lib.lagkv_workspace_free(workspace), lib.lagkv_policy_free(policy)
    print(f"{left.value} rows of {tokens} in use")


main()
